"""A training run on text: start one with a model, or resume one from its folder."""
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from pyllama.errors import UserError, check_choices
from pyllama.text import borders, corpus, special
from pyllama.text.tokenizer import Tokenizer
from pyllama.text.tokens import Tokens, prepare, split, token_file
from pyllama.training import objectives
from pyllama.training.adapting import Adapting, continued, started
from pyllama.training.lock import RunLock
from pyllama.training.loop import SOLO, Settings, State
from pyllama.training.parallel import Communicator, first_alone
from pyllama.training.run import BestSoFar, Plan, RunPolicy, Saved, changed_since, from_stored

LEARNED = ("char", "byte", "bpe")                           # tokenizers that need no file
SAMPLE = 2**24                                              # characters that byte pairs are learned from, at most


@dataclass(frozen=True)
class Text:
    """The text to train on."""

    data: tuple[str, ...]                       # files, folders, patterns, "-", "python-docs", or a .bin of tokens
    tokenizer: str = "char"                     # char, byte, bpe (learned from the text), or a tokenizer.json
    vocab_size: int = 4096                      # size of the bpe vocabulary
    field: str = "text"                         # field of a .jsonl file that holds the text
    validation: float = 0.1                     # share of the text held out for validation
    split: Literal["position", "document"] = "position"     # hold out the last part, or randomly chosen documents

    def __post_init__(self):
        check_choices(self)

    @property
    def token_file(self) -> Path | None:
        """The path of the .bin file of tokens, if the data are one."""
        return Path(self.data[0]).resolve() if len(self.data) == 1 and self.data[0].endswith(".bin") else None


def make_tokenizer(text: Text, with_mask: bool, say: Callable[[str], object] = warnings.warn
                   ) -> Tokenizer:
    """Make or load the tokenizer that text.tokenizer names.

    with_mask   add a mask token to one of byte pairs
    say         takes a note if byte pairs are learned from a sample of the text: see sample()
    """
    if text.tokenizer in ("char", "bpe") and text.token_file:
        raise UserError("a .bin has tokens, not text to learn a tokenizer from; set tokenizer to a tokenizer.json")
    if text.tokenizer == "byte":
        return Tokenizer.bytes()
    if text.tokenizer == "char":
        found: set[str] = set()
        for document in documents(text):
            found.update(document)
        return Tokenizer.characters("".join(found))
    if text.tokenizer == "bpe" and with_mask:
        return special.framed(special.byte_pairs(sample(text, say), text.vocab_size, [special.MASK]))
    if text.tokenizer == "bpe":
        return Tokenizer.byte_pairs(sample(text, say), text.vocab_size)
    return Tokenizer.load(text.tokenizer)


def documents(text: Text) -> Iterator[str]:
    """The documents, without their names."""
    return (document for _, document in corpus.documents(text.data, text.field))


def sample(text: Text, say: Callable[[str], object]) -> Iterator[str]:
    """The text to learn byte pairs from: all of it, or SAMPLE characters that are spread evenly over it."""
    total = sum(map(len, documents(text)))
    if total > SAMPLE:
        say(f"the text has {total:,} characters: byte pairs are learned from {SAMPLE:,} of them, spread evenly over it")
    return borders.spread(documents(text), total, SAMPLE)


def begin(folder: Path | None, config, tokenizer: Tokenizer, text: Text, settings: Settings, policy: RunPolicy, *,
          params: dict | None = None, tokens_in: Path | None = None, like=None, comm: Communicator = SOLO,
          encode: Callable = prepare, lock: RunLock | None = None, adapting: Adapting | None = None,
          base: Path | None = None) -> Plan:
    """Plan a run from step 0.

    folder      of the run; None: nothing is saved
    params      the initial parameters; None: those of the model's init()
    tokens_in   the folder for tokens.bin; None: `data` in the run's folder
    like        an array on the device to train on; None: the host
    encode      prepare(), or a function with the same arguments, such as one that shows progress
    lock        of the folder; None: run() locks it
    adapting    adapters to train in place of the parameters; None: none
    base        where the parameters are, of which a run of adapters saves no copy

    Raises UserError if the model cannot learn from text, sees fewer tokens than block_size or cannot keep packed
    documents apart, or if the text cannot be read.
    """
    written = Path(text.data[0]) if text.token_file else None       # as messages name it
    if text.token_file:
        text = replace(text, data=(str(text.token_file),))          # absolute: a resume may run in another folder
    objective = objectives.objective_of(config, tokenizer)          # first: raises if it does not learn from text
    objectives.check_packing(config, settings)
    context = config.context
    if context is not None and settings.block_size > context:
        raise UserError(f"block_size is {settings.block_size}, but the model sees only {context} tokens "
                        f"(max_position_embeddings); make block_size smaller")

    def tokens_of_text() -> Tokens:
        if written:
            return token_file(written, tokenizer.vocab_size, tokenizer.hash)
        return encode(text.data, tokenizer, tokens_in or Path(folder or ".", "data"), text.field)

    tokens = first_alone(comm, tokens_of_text, like)
    about = {"text": asdict(text), "tokens": tokens.fingerprint, "documents": tokens.documents_fingerprint}
    state = started(config, settings, params, like, adapting, base, saves=folder is not None)
    return plan(folder, state, objective, tokens, text, settings, policy, about, tokenizer, BestSoFar(), comm, lock)


def resume(folder: Path, saved: Saved, config, *, like=None, comm: Communicator = SOLO, base: dict | None = None
           ) -> Plan:
    """Plan the rest of a saved run, from its latest checkpoint.    base: the base's parameters, of a run of adapters

    Raises UserError if its tokens, or the borders of the documents, have changed.
    """
    stored = saved.about["text"]
    text = from_stored(Text, stored | {"data": tuple(stored["data"])})
    path = text.token_file or folder / "data/tokens.bin"
    tokens = token_file(path, saved.tokenizer.vocab_size if text.token_file else None)
    about = {"tokens": tokens.fingerprint, "documents": tokens.documents_fingerprint}
    about |= saved.about                                    # a run of 0.1.0 has no fingerprint of the documents
    if tokens.fingerprint != about["tokens"]:
        raise UserError(changed_since(folder, path))
    if tokens.documents_fingerprint != about["documents"]:
        raise UserError(changed_since(folder, f"{path}.json"))
    state = continued(config, saved, like, base)
    objective = objectives.objective_of(config, saved.tokenizer)
    return plan(folder, state, objective, tokens, text, saved.settings, saved.policy, about, saved.tokenizer,
                saved.best_so_far, comm, saved.lock)


def plan(folder, state: State, objective, tokens: Tokens, text: Text, settings: Settings, policy: RunPolicy,
         about: dict, tokenizer: Tokenizer, best_so_far: BestSoFar, comm: Communicator, lock: RunLock | None) -> Plan:
    """Split the tokens and put the arguments of run() together."""
    if settings.packing and len(tokens.starts) == 1 and tokenizer.eos_id is not None:
        tokens = tokens.ending_with(tokenizer.eos_id)           # a .bin of other programs does not list its documents
    training, validation = split(tokens, text.validation, text.split, settings.seed, settings.block_size)
    return Plan(folder, state, objective.source(training), objective.source(validation), settings, policy, about,
                tokenizer.files(state.config.takes_types), best_so_far, objective.evaluate, comm, lock)
