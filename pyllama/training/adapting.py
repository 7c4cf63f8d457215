"""Training of adapters: what trains, and what a checkpoint says of it and of the base."""
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pyllama import params
from pyllama.device import on_host
from pyllama.errors import UserError, check_choices
from pyllama.formats import peft
from pyllama.models import adapters
from pyllama.models.adapters import Lora
from pyllama.quantization import EncodedArray
from pyllama.quantization.adapted_base import BaseDtype, stored_base
from pyllama.training.fingerprint import fingerprint, require_same
from pyllama.training.loop import Settings, State, start
from pyllama.training.run import Saved, from_stored, restore, resumed


@dataclass(frozen=True)
class Adapting:
    """Adapters to train in place of the model's own parameters.

    Raises UserError if a value is out of range, or has no effect without adapters.

    >>> from pyllama.training.adapting import Adapting
    >>> Adapting(lora=("q_proj,v_proj",), rank=4).settings().scale
    4.0
    """

    lora: tuple[str, ...] = ()                  # train adapters of these matrices alone: q_proj,v_proj or all-linear
    rank: int = 8                               # rank of the adapters
    lora_alpha: float = 16.0                    # adapters are multiplied by lora_alpha / rank
    rslora: bool = False                        # multiply them by lora_alpha / sqrt(rank) instead
    dora: Literal["exact", "detached"] | None = None        # DoRA; detached: without the gradient of the norm, as PEFT
    base_dtype: BaseDtype | None = None         # storage of the frozen matrices

    def __post_init__(self):
        check_choices(self)
        words = (self.lora,) if isinstance(self.lora, str) else self.lora
        names = tuple(name for word in words for name in word.split(",") if name)
        object.__setattr__(self, "lora", names)
        changed = [f.name for f in fields(self) if getattr(self, f.name) != f.default]
        if changed and not names:
            raise UserError(f"{changed[0]} has no effect without adapters; set lora to the matrices that have them, or "
                            f"remove it")
        if names:
            self.settings()

    def settings(self, saved: tuple[str, ...] = ()) -> Lora:
        """The settings of the adapters.    saved: see Lora"""
        return Lora(self.lora, self.rank, self.lora_alpha, self.rslora, self.dora or "", saved)


class Base(NamedTuple):
    """A trained model beside which adapters are trained."""
    tree: dict                                      # its parameters
    path: str                                       # where it is; "": nowhere


class Adapters(NamedTuple):
    """What a run trains instead of its model."""
    lora: Lora
    about: dict[str, Any]                           # what a resume needs besides, JSON-serializable


def begin(config, settings: Settings, adapting: Adapting, base: Base, like=None) -> State:
    """The state at step 0 of a run that trains adapters.

    A head that the base was not trained with is trained whole.  Raises UserError if a matrix is not there, the rank is
    too high, or settings.freeze names parameters, because all but the adapters are frozen.
    """
    if settings.freeze:
        raise UserError("freeze has no effect with lora, which freezes all but the adapters; remove one of them")
    tree = stored_base(base.tree, config, adapting.base_dtype, settings.master_dtype)
    on_gpu = like is not None and not on_host(like)
    if on_gpu and any(isinstance(leaf, EncodedArray) for _, leaf in params.leaves(tree)):
        raise UserError("a base of few bits is multiplied on the CPU alone; remove base_dtype, or train on the CPU")
    head = [name for name, _ in params.leaves(tree) if not config.learns and not name.startswith(config.BODY)]
    lora = adapting.settings(tuple(sorted({name.rpartition(".")[0] for name in head})))
    arrays = adapters.begun(tree, config, lora, settings.seed, settings.master_dtype)
    trained = {*head, *(name for name in arrays if not name.endswith(peft.CONSTANTS))}
    state = start(config, settings, adapters.attached(tree, arrays), like, trained)
    about = {"adapting": asdict(adapting), "base": base.path, "fingerprint": fingerprint(tree, but=head)}
    state.adapters = Adapters(lora, about)
    return state


def started(config, settings: Settings, tree: dict | None, like=None, adapting: Adapting | None = None,
            base: Path | None = None, saves: bool = True) -> State:
    """The state at step 0 of any run.

    tree    the parameters; None: those of the model's init()
    base    where they are, absolute; None: nowhere
    saves   does the run save checkpoints, from which a resume must find the base?

    Raises UserError as start() and begin() do, and if there is no trained model to adapt.
    """
    if adapting is None or not adapting.lora:
        return start(config, settings, tree, like)
    if tree is None:
        raise UserError("lora trains adapters of a trained model, but this one starts from scratch; give a trained "
                        "model, or remove lora")
    if saves and base is None:
        raise UserError("the adapters of a model are saved without it, so it must have a place of its own; save the "
                        "model and load it from there")
    return begin(config, settings, adapting, Base(tree, str(base or "")), like)


def continued(config, saved: Saved, like=None, base: dict | None = None) -> State:
    """The state of a saved run.  The checkpoint's arrays are removed from it: they would fill memory while it trains.

    base    the base's parameters, of a run of adapters

    Raises UserError if the base has changed.
    """
    state = restored(config, saved, like, base)
    saved.checkpoint.tensors.clear()
    saved.checkpoint.optimizer.clear()
    return state


def restored(config, saved: Saved, like, base: dict | None) -> State:
    """continued(), with a copy of the checkpoint's arrays."""
    about = saved.about.get("adapter")
    if about is None:
        return resumed(config, saved.checkpoint, saved.settings, like)
    stored = about["adapting"]
    adapting = from_stored(Adapting, stored | {"lora": tuple(stored["lora"])})
    state = begin(config, saved.settings, adapting, Base(base or {}, about["base"]), like)
    require_same(state.adapters.about["fingerprint"], about)
    restore(state, saved.checkpoint)
    return state
