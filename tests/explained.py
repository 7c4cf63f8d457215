"""A small run, and what the backward explorer makes of it."""
import pyllama
from pyllama.study.explain.document import document
from pyllama.study.explain.nudges import nudges, weights
from pyllama.study.explain.recording import record
from pyllama.study.explain.subject import load
from pyllama.study.explain.update import update
from pyllama.training.run import RunPolicy
from tests.shared import written

TEXT = "the cat sat on the mat; the dog sat on the log.\n" * 40
SENTENCE = "the cat sat on the log"
SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}


def small_run(folder, **options):
    """A run of four steps in float64, with the checkpoints of steps 2 and 4."""
    text = written(folder / "text.txt", TEXT)
    model = pyllama.create("llama", text, intermediate_size=12, dtype="float64", **SMALL)
    settings = pyllama.Settings(max_steps=4, batch_size=2, block_size=16, warmup_steps=0, learning_rate=1e-2, shards=1,
                                **options)
    policy = RunPolicy(eval_steps=4, save_steps=2)
    for _ in pyllama.train(model, text, settings, out_dir=folder / "tiny", policy=policy):
        pass
    return folder / "tiny"


def made(run):
    """(subject, recording, document) of the sentence."""
    subject = load(run, SENTENCE)
    recording = record(subject.loss, subject.state.p)
    found = nudges(subject, weights(recording.grads)[:3])
    return subject, recording, document(subject, recording, update(subject, recording), found, 64, 3)
