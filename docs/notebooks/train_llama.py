# %% [markdown]
# # Train a LLaMA in five minutes
#
# You train a small LLaMA on a text until it writes, stop it halfway and resume it, and look at what one step of
# training does. It takes two minutes on two cores, and nothing is downloaded.

# %%
import tempfile
from itertools import islice
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import pyllama
from pyllama import params
from pyllama.study.explain.page import explained
from pyllama.testing import check_partials
from pyllama.text.corpus import documents
from pyllama.training.run import RunPolicy

TEXT = "python-docs"                # Python's language reference; or a file of your own
PROMPT = "The for statement"
STEPS = 800

# %% [markdown]
# ## 1. The text
#
# A text is a list of documents. This one has a document for each topic of the reference.

# %%
texts = dict(documents(TEXT))
print(f"{len(texts)} documents, {sum(map(len, texts.values())):,} characters\n")
print(next(iter(texts.values()))[:300])

# %% [markdown]
# ## 2. The model
#
# `create` learns a tokenizer from the text and draws random weights. The tokenizer is a byte-pair encoding: frequent
# words become one token, rare words become several. A model sees nothing but the numbers.

# %%
model = pyllama.create("llama", TEXT, tokenizer="bpe", vocab_size=1024, hidden_size=128,
                       num_hidden_layers=4, num_attention_heads=4,
                       max_position_embeddings=128)
for token in model.tokenizer.encode(f"{PROMPT} iterates over a list."):
    print(token, repr(model.tokenizer.decode([token])))

# %% [markdown]
# The parameters are arrays with the names that Hugging Face gives them. Most are in the layers; the others turn
# tokens into vectors, and vectors into scores for the next token.

# %%
weights = dict(params.leaves(model.params))
print(f"{sum(w.size for w in weights.values()):,} parameters, among them")
for name, w in islice(weights.items(), 4):
    print(f"{name:42} {w.shape}")

# %% [markdown]
# Before training, every token is about equally likely to come next. The loss is the mean of `-log p` over the tokens
# that do come next, so it is near `log 1024`, which is 6.93. The model writes noise.

# %%
ids = model.tokenizer.encode(next(iter(texts.values())))[None, :128]        # [B T]
before, _ = model.loss(ids, ids)
print(f"loss {before:.2f}\n\n{model.generate(PROMPT, max_new_tokens=20)}")

# %% [markdown]
# ## 3. Train, and stop halfway
#
# `train` is a generator: each turn of the loop is one step, forward, backward and update. A tenth of the text is held
# out to evaluate the model. A `break` stops the run, as Ctrl-C does, and saves it in its folder.

# %%
RUN = Path(tempfile.mkdtemp()) / "run"
settings = pyllama.Settings(max_steps=STEPS, batch_size=8, learning_rate=4e-3,
                            warmup_steps=STEPS // 16)
policy = RunPolicy(eval_steps=STEPS // 8, eval_tokens=10_000)

records = []


def note(record):
    """Keep a record, and print it if the model was evaluated."""
    records.append(record)
    if record.evaluation:
        held_out = record.evaluation.loss
        print(f"step {record.step:4}  loss {record.loss:.2f}  on held-out text {held_out:.2f}")


for record in pyllama.train(model, TEXT, settings, out_dir=RUN, policy=policy):
    note(record)
    if record.step == STEPS // 2:
        break

print(f"\n{model.generate(PROMPT, max_new_tokens=40)}")

# %% [markdown]
# ## 4. Resume
#
# `resume` continues as if the run had never stopped, bit for bit: with the same batches, the same learning rates and
# the state of the optimizer. It also works tomorrow, in another process.

# %%
for record in pyllama.resume(RUN):
    note(record)

model = pyllama.load(RUN)

# %% alt="The training loss falls below the held-out loss, which levels off; the learning rate rises and falls."
steps = [record.step for record in records]
losses = [record.loss for record in records]
held_out = {record.step: record.evaluation.loss for record in records if record.evaluation}

figure, (above, below) = plt.subplots(2, sharex=True, figsize=(7, 5),
                                      height_ratios=[3, 1], layout="constrained")
above.plot(steps, losses, linewidth=0.8, label="training, each step")
above.plot(held_out.keys(), held_out.values(), "o-", label="held-out text")
above.axvline(STEPS // 2, linestyle=":", color="gray", label="stopped and resumed")
above.set_ylabel("loss (nats per token)")
above.legend()
below.plot(steps, [record.lr for record in records])
below.set_ylabel("learning rate")
_ = below.set_xlabel("step")

# %% [markdown]
# The two losses part: the model begins to know its text by heart. More text would help it more than more steps.
#
# ## 5. Write
#
# Greedy decoding takes the most likely token each time, and soon repeats itself. Sampling draws from the
# probabilities; a temperature below 1 makes likely tokens more likely.

# %%
print(model.generate(PROMPT, max_new_tokens=60))
for temperature in (0.5, 1.0):
    sampled = model.generate(PROMPT, max_new_tokens=60, do_sample=True,
                             temperature=temperature, seed=0)
    print(f"\n--- temperature {temperature}\n{sampled}")

# %% alt="Bars: the probabilities of the eight most likely tokens after the prompt."
z, _ = model.logits(model.tokenizer.encode(PROMPT)[None])                   # [B T V]
p = np.exp(z[0, -1] - z[0, -1].max())
p /= p.sum()
likely = np.argsort(p)[::-1][:8]

figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
axes.bar([repr(model.tokenizer.decode([token])) for token in likely], p[likely])
axes.set_ylabel("probability")
_ = axes.set_title(f"What comes after {PROMPT!r}?")

# %% [markdown]
# ## 6. One step, explained
#
# `loss` returns a value and a function `back`, and `back()` returns the gradient of every weight. The gradient
# predicts how the loss changes when a weight changes a little. Take the weight with the largest one, and try:

# %%
value, back = model.loss(ids, ids)
gradients = dict(params.leaves(back()))
weights = dict(params.leaves(model.params))
name = max(gradients, key=lambda name: np.abs(gradients[name]).max())
place = np.unravel_index(np.abs(gradients[name]).argmax(), gradients[name].shape)
slope, kept = gradients[name][place], weights[name][place].copy()

nudges, nudged = np.linspace(-3, 3, 25), []
for nudge in nudges:
    weights[name][place] = kept + nudge
    nudged.append(float(model.loss(ids, ids)[0]))
weights[name][place] = kept
print(f"{name}{[int(i) for i in place]}: gradient {slope:.3f}")

# %% alt="The loss over the change of one weight: a curve, and the line that the gradient predicts, its tangent."
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.plot(nudges, nudged, "o-", markersize=4, label="the loss")
axes.plot(nudges, value + slope * nudges, "--", label="what the gradient predicts")
axes.set_xlabel("change of the weight")
axes.set_ylabel("loss")
_ = axes.legend()

# %% [markdown]
# `explained` writes a page that shows a whole step like this: every op of the forward and the backward pass with its
# numbers, and what the optimizer makes of the gradients. Open it in a browser; it needs no network.

# %%
page = RUN.parent / "step.html"
page.write_bytes(explained(RUN, f"{PROMPT} iterates."))
print(f"{page.name}: {page.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# Are the gradients right? Every backward pass here is written by hand, so this is a fair question. A complex step
# through the model gives the exact derivative, in double precision and best on a tiny model:

# %%
tiny = pyllama.create("llama", TEXT, tokenizer="byte", hidden_size=8, num_hidden_layers=1,
                      num_attention_heads=2, dtype="float64")
few = tiny.tokenizer.encode(PROMPT)[None]
report = check_partials(tiny, few, few, seed=0)
report

# %% [markdown]
# ## 7. Save
#
# The folder is one of Hugging Face: `transformers` reads it, and so does `pyllama.load`.

# %%
folder = RUN.parent / "my-llama"
model.save(folder)
print(*sorted(path.name for path in folder.iterdir()), sep="\n")
again = pyllama.load(folder)
print(again.generate(PROMPT) == model.generate(PROMPT))

# %% [markdown]
# ## What next?
#
# - Set `TEXT` to a file of your own. With more text, raise `hidden_size`, `num_hidden_layers` and `STEPS`.
# - The same from the command line: `pyllama train`, `pyllama generate`, `pyllama resume`, `pyllama plot`.
# - The other notebooks write an op of their own, and fine-tune a BERT.
