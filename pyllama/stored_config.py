"""The configuration of a model that is read from a folder."""
from pyllama.errors import UserError
from pyllama.models import MODELS
from pyllama.models.config import OURS
from pyllama.models.factored import RANKS
from pyllama.models.sharing import SHARING, SharingConfig
from pyllama.models.uneven import UNEVEN
from pyllama.training import checkpoint


def reading_notes(saved: checkpoint.Checkpoint) -> tuple[str, ...]:
    """Notes for the user on how the configuration of a checkpoint is read."""
    kind, stored = family_of(saved)
    family = MODELS[kind].config
    again = family.from_dict(stored).to_dict()["model_type"]
    written = saved.config.get("model_type", again)
    retyped = (f"config.json says {written}, which transformers refuses or computes in another way; saved again, the "
               f"model is of type {again}",) if written != again else ()
    return (*retyped, *family.notes_on(stored))


def config_of(saved: checkpoint.Checkpoint, any_head: bool = True):
    """The configuration of a checkpoint.

    any_head    accept an architecture with a head that the family lacks, because the head is going to be replaced

    Raises UserError if its model_type or its architecture is not supported.
    """
    kind, stored = family_of(saved)
    family = MODELS[kind].config
    architectures = stored.get("architectures") or []
    supported = any(other.config.head_of(name) for other in MODELS.values() for name in architectures)
    if not any_head and "head" not in stored and architectures and not supported:
        raise UserError(f"{saved.folder} contains a {architectures[0]}, which is not supported; of the type {kind}, "
                        f"the supported models are {', '.join(family.HEADS.values())}")
    return family.from_dict(stored)


def family_of(saved: checkpoint.Checkpoint) -> tuple[str, dict]:
    """(the name of the family, the config.json with this name as its model_type).

    Raises UserError if the family is not supported.
    """
    stored = saved.config
    if not isinstance(stored, dict):
        raise UserError(f"the config.json of {saved.folder} is not an object; give the one that belongs to the weights")
    architectures = stored.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(name, str) for name in architectures):
        raise UserError(f"the config.json of {saved.folder} has architectures = {architectures!r}, but it must be a "
                        f"list of names; fix it")
    by_architecture = next((kind for kind, family in MODELS.items() for name in architectures
                            if family.config.head_of(name)), "llama")
    written = str(stored.get("model_type", by_architecture))
    kind = written.removeprefix(OURS)
    if kind not in MODELS:
        named = f" ({architectures[0]})" if architectures else ""
        raise UserError(f"{saved.folder} contains a {kind!r} model{named}, which is not supported; the supported types "
                        f"are {', '.join(MODELS)}")
    # Other programs have keys that are named like our fields.
    ours = (*SHARING, *UNEVEN, RANKS) if issubclass(MODELS[kind].config, SharingConfig) else ()
    foreign = ours if kind == written else ()
    return kind, {name: value for name, value in stored.items() if name not in foreign} | {"model_type": kind}
