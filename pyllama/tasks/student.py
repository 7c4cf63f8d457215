"""Students: models that a teacher teaches, made new or loaded."""
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyllama import params, pretrained
from pyllama.errors import UserError, with_article
from pyllama.models import MODELS, sharing
from pyllama.models.config import Config, Dimensions
from pyllama.models.factored import RANKS
from pyllama.models.uneven import UNEVEN
from pyllama.quantization import decoded_tree
from pyllama.tasks.task import labels_of
from pyllama.text import special
from pyllama.training.loop import Settings

LAYER = re.compile(r"(^|.*?\.)(\d+)(?=\.|$)")             # the first number of a name is that of its layer
# The names that families have for a size.
SIZES = {"num_hidden_layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
         "hidden_size": ("hidden_size", "n_embd", "dim"),
         "num_attention_heads": ("num_attention_heads", "n_head", "n_heads"),
         "intermediate_size": ("intermediate_size", "n_inner", "hidden_dim")}


@dataclass(frozen=True)
class Student:
    """The model that learns."""

    student: Path | None = None                 # folder of the model to train (default: a new one, as below)
    model: str | None = None                    # family of a new one, see `pyllama models` (default: the teacher's)
    num_hidden_layers: int | None = None        # number of layers (default: half of the teacher's)
    hidden_size: int | None = None              # width of the model (default: the teacher's)
    num_attention_heads: int | None = None      # number of attention heads (default: the teacher's)
    intermediate_size: int | None = None        # width of the feed-forward (default: in proportion to hidden_size)
    embedding_size: int | None = None           # width of the table of token embeddings, projected (default: teacher's)
    resid_pdrop: float | None = None            # dropout rate (default: the teacher's)
    copy_layers: bool = False                   # start from the teacher's embeddings, head and every n-th of its layers

    def __post_init__(self):
        if self.model is not None and self.model not in MODELS:
            raise UserError(f"model is {self.model!r}; it must be one of {', '.join(MODELS)}")
        for name in SIZES:
            if (size := getattr(self, name)) is not None and size < 1:
                raise UserError(f"{name} is {size}; it must be at least 1")
        others = [name for name, value in vars(self).items() if value and name not in ("student", "resid_pdrop")]
        if self.student and others:
            raise UserError(f"{others[0]} has no effect with student, which sets the model's shape; remove one of them")


def size_of(config: Config, name: str) -> Any:
    """A size of a model by its name in SIZES; None if the family does not have it."""
    return next((getattr(config, own) for own in SIZES[name] if hasattr(config, own)), None)


def shape_of(teacher: pretrained.Model, s: Student) -> Config:
    """The configuration of a new student."""
    c = teacher.config
    layers = s.num_hidden_layers or max(1, (size_of(c, "num_hidden_layers") + 1) // 2)
    width = s.hidden_size or c.hidden_size
    heads = s.num_attention_heads or size_of(c, "num_attention_heads")
    if s.model in (None, c.TYPE):
        inner = size_of(c, "intermediate_size")
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads,
                 "intermediate_size": s.intermediate_size or (inner and inner * width // c.hidden_size)}
        changes: dict[str, Any] = {own: value for name, value in sizes.items() for own in SIZES[name]
                                   if own in c.names() and value != size_of(c, name)}
        if "share_layers" in c.names():
            changes["share_layers"] = sharing.fitting(c.share_layers, layers)
        if "num_hidden_groups" in c.names():
            changes["num_hidden_groups"] = sharing.fitting(c.num_hidden_groups, layers)
        changes |= dict.fromkeys({*UNEVEN, RANKS} & c.names())  # a new model has equal layers of whole matrices
        if s.num_attention_heads or s.hidden_size:              # of the teacher's heads
            changes |= dict.fromkeys({"num_key_value_heads", "head_dim"} & c.names())
        config = replace(c, **changes)
    else:
        family = MODELS[s.model].config
        if c.head not in family.HEADS:
            raise UserError(f"{with_article(s.model)} has no head {c.head!r}, which the teacher has; choose another "
                            f"model")
        shape = Dimensions(vocab_size=c.vocab_size, context=c.context or 2048, head=c.head, width=width, layers=layers,
                           heads=heads or 4, hidden=s.intermediate_size, dropout=0.0,
                           **special.ids_of(teacher.require_tokenizer()))
        config = family.small(shape)
        labels = {name: c.extra[name] for name in ("id2label", "label2id") if name in c.extra}
        changes = {"num_labels": len(labels_of(c))} if labels else {}
        config = replace(config, **changes, extra={**config.extra, **labels})
    if s.embedding_size is not None:
        if "embedding_size" not in config.names():
            raise UserError(f"the table of {with_article(config.TYPE)} cannot be projected; remove embedding_size")
        config = replace(config, embedding_size=s.embedding_size)
    if s.resid_pdrop is not None:
        config = replace(config, **dict.fromkeys(config.DROPOUTS, s.resid_pdrop))
    return config


def student_of(teacher: pretrained.Model, s: Student, settings: Settings) -> pretrained.Model:
    """The model to train.

    Raises UserError if the folder has none, if it cannot be made so, or if copy_layers does not fit.
    """
    if s.student:
        model = pretrained.load(s.student, None, settings.master_dtype)
        config = model.config
        if s.resid_pdrop is not None:
            config = replace(config, **dict.fromkeys(config.DROPOUTS, s.resid_pdrop))
        return replace(model, config=config, params=decoded_tree(model.params))
    config = shape_of(teacher, s)
    tree = config.model.init(config, settings.seed, settings.master_dtype)
    if s.copy_layers:
        tree = copied(tree, teacher.params)
    return pretrained.Model(config, tree, teacher.tokenizer)


def copied(tree: dict, teacher: dict) -> dict:
    """The tree with the teacher's numbers: of L layers, those that are spread evenly over the teacher's.

    Of 12 layers, 6 are 0, 2, 4, 7, 9, 11, as in DistilBERT.  A table that is two factors gets those of factored().
    Raises UserError if the teacher's parameters differ.

    >>> import numpy as np
    >>> from pyllama.tasks.student import copied
    >>> copied({"layers": [0, 0]}, {"layers": [5, 6, 7]})
    {'layers': [5, 7]}
    """
    source = dict(params.leaves(as_factored(teacher, tree)))
    depth, own = layers_in(source), layers_in(dict(params.leaves(tree)))
    chosen: Any = np.linspace(0, depth - 1, own).round().astype(int) if own else []

    def twin(name: str) -> str:
        return LAYER.sub(lambda found: f"{found[1]}{chosen[int(found[2])]}", name, count=1)

    for name, leaf in params.leaves(tree):
        if twin(name) not in source or np.shape(source[twin(name)]) != np.shape(leaf):
            raise UserError(f"copy_layers needs a student of the teacher's family and width, but the teacher has no "
                            f"{twin(name)} of shape {np.shape(leaf)}; remove copy_layers, or the sizes but "
                            f"num_hidden_layers")
    return params.rebuild(tree, iter([source[twin(name)].copy() if np.ndim(leaf) else source[twin(name)]
                                      for name, leaf in params.leaves(tree)]))


def as_factored(teacher: Any, tree: Any) -> Any:
    """The teacher's tree, with the tables as two factors that are so in `tree`, and of the same width."""
    if not isinstance(teacher, dict) or not isinstance(tree, dict):
        return teacher
    if "projection" in tree and "weight" in teacher:
        width = tree["weight"].shape[1]
        return teacher if teacher["weight"].shape[1] == width else factored(sharing.whole(teacher), width)
    return {name: as_factored(branch, tree.get(name)) for name, branch in teacher.items()}


def factored(table: np.ndarray, width: int) -> dict[str, np.ndarray]:
    """The factors W [V E] and P [D E] of a table [V D], whose product W Pᵀ is the nearest to it of all of rank E.

    P has the E first right singular vectors of the table, and W is the table in their coordinates (Eckart and Young,
    1936).  They are the eigenvectors of tableᵀ table [D D], which is small.

    >>> import numpy as np
    >>> from pyllama.tasks.student import factored
    >>> table = np.array([[3.0, 4.0], [6.0, 8.0]])                      # of rank 1
    >>> factors = factored(table, 1)
    >>> (factors["weight"] @ factors["projection"].T).round(4)
    array([[3., 4.],
           [6., 8.]])
    """
    wide = table.astype("float64")
    _, vectors = np.linalg.eigh(wide.T @ wide)                  # in ascending order
    p = vectors[:, :-width - 1:-1]
    return {name: np.ascontiguousarray(a, table.dtype) for name, a in (("weight", wide @ p), ("projection", p))}


def layers_in(names) -> int:
    """The number of layers of a tree with these names."""
    return len({found[2] for name in names if (found := LAYER.match(name))})
