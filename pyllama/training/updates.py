"""Which parameters a step updates, and how fast: the settings, and the optimizer that follows them."""
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pyllama import params
from pyllama.device import on_host
from pyllama.errors import UserError
from pyllama.training.groups import Group, levels, own_values
from pyllama.training.masks import Mask
from pyllama.training.optim import Optimizer, Part, is_matrix
from pyllama.training.rows import Tables


@dataclass(frozen=True, kw_only=True)
class Updates:
    """Rates of some parameters, and updates that leave others out; see docs/parameters.md.

    Raises UserError if a value is out of range, or if two exclude each other.
    """

    group: tuple[str, ...] = ()                 # own values of some parameters: NAMES:lr=RATE,weight_decay=DECAY
    lr_decay_by_layer: float = 1.0              # factor of the learning rate from each layer to the one below it
    unfreeze_steps: int = 0                     # train the head first, and one layer more after so many steps; 0: all
    sparse_updates: bool = False                # of a table, update only the rows that a step looks up
    sparsity: float = 0.0                       # share of each matrix that is zero, and stays so: the smallest weights
    sparsity_steps: int = 0                     # steps in which sparsity grows from 0; 0: it is there from the start

    def check_updates(self, freeze: tuple[str, ...]) -> None:
        """Raise UserError as the class says."""
        for name, texts in (("freeze", freeze), ("group", self.group)):
            if isinstance(texts, str):                          # its letters would count as texts
                raise UserError(f"{name} is {texts!r}; give a tuple of texts, such as ({texts!r},)")
        for text in self.group:
            Group.of(text)
        if not 0 < self.lr_decay_by_layer <= 1:
            raise UserError(f"lr_decay_by_layer is {self.lr_decay_by_layer}; it must lie in 0 < a <= 1")
        for name in ("unfreeze_steps", "sparsity_steps"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 0")
        if not 0 <= self.sparsity < 1:
            raise UserError(f"sparsity is {self.sparsity}; it must lie in 0 <= a < 1")
        if self.sparsity_steps and not self.sparsity:
            raise UserError("sparsity_steps has no effect without sparsity; set sparsity, or remove sparsity_steps")
        if self.unfreeze_steps and freeze:
            raise UserError("unfreeze_steps trains every parameter in the end, but freeze keeps some fixed; remove one "
                            "of them")

    def unreached(self, max_steps: int) -> tuple[str, ...]:
        """Notes for the user on what a run of so many steps ends before."""
        late = {"the run ends before sparsity is reached": ("sparsity_steps", self.sparsity_steps > max_steps),
                "the head alone trains": ("unfreeze_steps", self.unfreeze_steps >= max_steps)}
        return tuple(f"{what}: {name} is {getattr(self, name)} and max_steps {max_steps}; make {name} smaller"
                     for what, (name, is_late) in late.items() if is_late)


def follow(optimizer: Optimizer, settings: Updates, learning_rate: float, config: Any, p: dict,
           trained: Collection[str], like=None) -> None:
    """Give an optimizer the parts, tables and mask that the settings ask for.

    learning_rate   the peak rate of parameters without one of their own
    p               all parameters, a tree
    trained         the names of those that the optimizer updates
    like            an array on the device to train on; None: the host

    Raises UserError if a group names no parameter, or the model has no layers or tables to which a setting applies.
    """
    level_of, layers = levels([name for name, _ in params.leaves(p)])
    named = {name: leaf for name, leaf in params.leaves(p) if name in trained}
    check_names(settings, named, level_of, layers)
    if settings.sparse_updates:
        optimizer.tables = tables_of(config, named, like)
    optimizer.parts = parts_of(settings, learning_rate, named, level_of, layers, optimizer.tables)
    if settings.sparsity:
        optimizer.mask = Mask(matrices_of(named), optimizer.size, settings.sparsity, settings.sparsity_steps, like)


def check_names(settings: Updates, named: dict, level_of: dict[str, int], layers: int) -> None:
    """Raise UserError for a group without parameters, and for settings by layer of a model without layers."""
    for text in settings.group:
        for pattern in Group.of(text).patterns:
            if not any(Group((pattern,)).matches(name) for name in named):
                raise UserError(f"the group {text!r} changes nothing: no parameter that is trained has {pattern!r} in "
                                f"its name; give a part of one, such as {next(iter(named))}")
    by_layer = "lr_decay_by_layer" if settings.lr_decay_by_layer < 1 else "unfreeze_steps"
    if (settings.lr_decay_by_layer < 1 or settings.unfreeze_steps) and not layers:
        raise UserError(f"{by_layer} needs numbered layers, and this model has none; remove it")
    if settings.unfreeze_steps and not any(level_of[name] > layers for name in named):
        raise UserError("unfreeze_steps trains the head first, but nothing of it is trained; remove unfreeze_steps")


def tables_of(config: Any, named: dict, like) -> Tables:
    """The parameters with a row for each token.  Raises UserError if there are none, or on a GPU."""
    if like is not None and not on_host(like):
        raise UserError("sparse_updates runs on the CPU only; remove it")
    tables = Tables(named, getattr(config, "vocab_size", 0))
    if not tables.of_name:
        raise UserError("sparse_updates has no effect: nothing that is trained has a row for each token; remove it")
    return tables


def parts_of(settings: Updates, learning_rate: float, named: dict, level_of: dict[str, int], layers: int,
             tables: Tables | None) -> list[Part]:
    """The parts of the vector of these parameters, end to end; neighbors that are updated alike are one part."""
    groups = [Group.of(text) for text in settings.group]
    parts: list[Part] = []
    end = 0
    for name, leaf in named.items():
        start, end, own = end, end + leaf.size, own_values(groups, name)
        rate = 1.0 if own.lr is None else own.lr / learning_rate
        rate *= settings.lr_decay_by_layer ** max(0, layers - level_of[name])
        decay = own.weight_decay if own.weight_decay is not None or is_matrix(name, leaf) else 0.0
        since = settings.unfreeze_steps * (layers + 1 - level_of[name])
        part = Part(slice(start, end), rate, decay, since, tables.of_name.get(name) if tables else None)
        alike = parts and part.table is None and parts[-1][1:] == part[1:]
        parts.append(part._replace(where=slice(parts.pop().where.start, end)) if alike else part)
    return parts


def matrices_of(named: dict) -> list[slice]:
    """The slice of each matrix in the vector of these parameters."""
    slices, end = [], 0
    for name, leaf in named.items():
        start, end = end, end + leaf.size
        if is_matrix(name, leaf):
            slices.append(slice(start, end))
    return slices
