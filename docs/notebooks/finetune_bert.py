# %% [markdown]
# # Fine-tune a BERT
#
# You train a classifier of short film reviews from a hundred labelled sentences, and see what pre-training adds to
# them. It takes a minute on two cores; without a trained BERT at hand, the notebook makes a small one first.

# %%
import csv
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

import pyllama

FOLDER = ""                         # of a trained BERT, such as MiniLM; "": make one here
PRETRAINING = 1000                  # steps, if a BERT is made here
STEPS = 200                         # of fine-tuning
WORK = Path(tempfile.mkdtemp())

# %% [markdown]
# ## 1. A hundred labels
#
# The reviews are made here, so that we know what there is to learn. A review is good or bad, and its words follow
# from that. Only the first four words of each kind occur in sentences with a label. The others occur in reviews that
# nobody has labelled, and in the sentences on which we test.

# %%
WORDS = {"good": ["superb", "charming", "moving", "clever",
                  "funny", "gripping", "tender", "bright"],
         "bad": ["dull", "clumsy", "boring", "stale",
                 "noisy", "hollow", "lazy", "bland"]}
LABELLED = 4                        # words of each kind that occur with a label
THINGS = ["plot", "cast", "music", "ending", "dialogue", "story"]
FORMS = ["The {thing} is {word}.", "I found the {thing} {word}.",
         "What a {word} {thing}!"]
ENDINGS = {"good": ["I will watch it again.", "I told all my friends."],
           "bad": ["I left after an hour.", "I want my money back."]}
rng = random.Random(0)


def sentence(words):
    return rng.choice(FORMS).format(thing=rng.choice(THINGS), word=rng.choice(words))


def review():
    """Three sentences and an ending of one kind."""
    label = rng.choice(["good", "bad"])
    sentences = [sentence(WORDS[label]) for _ in range(3)]
    return " ".join([*sentences, rng.choice(ENDINGS[label])])


def labelled(count, chosen):
    """(sentence, label) pairs, balanced; chosen is the slice of words that they use."""
    return [(sentence(words[chosen]), label)
            for label, words in WORDS.items() for _ in range(count // 2)]


reviews = [review() for _ in range(4000)]
rows = labelled(100, slice(LABELLED))
same_words = labelled(200, slice(LABELLED))
other_words = labelled(200, slice(LABELLED, None))

TEXT, ROWS = WORK / "reviews.txt", WORK / "rows.csv"
TEXT.write_text("\n<|endoftext|>\n".join(reviews))
with ROWS.open("w", newline="") as file:
    csv.writer(file).writerows([("text", "label"), *rows])

print(reviews[0], *rows[:2], *rows[-2:], sep="\n")

# %% [markdown]
# ## 2. A BERT
#
# A BERT reads a text with some tokens masked, and learns to say which they were. No labels are needed for that. If
# you have a trained one, name its folder above. Otherwise a small one learns from the 4,000 reviews without labels.


# %%
def small_bert():
    return pyllama.create("bert", TEXT, tokenizer="bpe", vocab_size=512, hidden_size=64,
                          num_hidden_layers=2, num_attention_heads=4,
                          max_position_embeddings=64)


losses = []
if FOLDER:
    bert = pyllama.load(FOLDER)
else:
    bert = small_bert()
    settings = pyllama.Settings(max_steps=PRETRAINING, batch_size=32, block_size=32,
                                learning_rate=3e-3)
    for record in pyllama.train(bert, TEXT, settings):
        losses.append(record.loss)
    print(f"loss {losses[0]:.2f} at first, {losses[-1]:.2f} at the end")
bert.save(WORK / "bert")

# %% alt="The loss of predicting masked tokens: a plateau for some hundred steps, then it falls again."
if losses:
    figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
    axes.plot(losses, linewidth=0.8)
    axes.set_xlabel("step")
    axes.set_ylabel("loss (nats per masked token)")

# %% [markdown]
# On the plateau the model knows little more than how often each token occurs. Then it finds out that the tokens
# around a mask say something about it, and the loss falls again. What does it put in place of a mask?


# %%
def fill(text):
    """The five most likely tokens at the mask."""
    ids = bert.tokenizer.encode(text, allowed_special="all")
    z, _ = bert.logits(ids[None])                                           # [B T V]
    likely = np.argsort(z[0, ids == bert.tokenizer.mask_id][0])[::-1][:5]
    return [bert.tokenizer.decode([token]).strip() for token in likely]


if not FOLDER:
    for ending in ("I told all my friends.", "I want my money back."):
        print(ending, fill(f"The plot is <mask>. {ending}"))

# %% [markdown]
# ## 3. Fine-tune
#
# `finetune` gives the model a head for two classes, and trains all of it on the hundred rows. The embeddings stay as
# they are (`freeze`): words that have no label would otherwise be left behind by those that have one. For comparison,
# a small BERT with random weights learns from the same rows.

# %%
def accuracy(model, pairs):
    answers = pyllama.predict(model, [text for text, _ in pairs])
    both = zip(answers, pairs, strict=True)
    return np.mean([answer == label for answer, (_, label) in both])


pretrained = pyllama.load(WORK / "bert")
models = {"random weights": (small_bert(), 5e-4),
          "pre-trained": (pretrained, 5e-5 if FOLDER else 5e-4)}
scores, tuning = {}, {}
for name, (model, learning_rate) in models.items():
    settings = pyllama.Settings(max_steps=STEPS, batch_size=16, learning_rate=learning_rate,
                                freeze=("bert.embeddings",))
    records = pyllama.finetune(model, ROWS, "classify", settings)
    tuning[name] = [record.loss for record in records]
    scores[name] = accuracy(model, same_words), accuracy(model, other_words)

lines = ["<td></td><th>words with labels</th><th>other words</th>",
         *(f"<th>{name}</th><td>{same:.0%}</td><td>{other:.0%}</td>"
           for name, (same, other) in scores.items())]
HTML(f"<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>")

# %% alt="The loss of fine-tuning, from random and from pre-trained weights: both fall."
figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
for name, values in tuning.items():
    axes.plot(values, linewidth=1, label=name)
axes.set_xlabel("step")
axes.set_ylabel("loss (nats per row)")
_ = axes.legend()

# %% [markdown]
# Both models learn their rows. But a word that had no label says nothing to the model that began at random: it
# guesses. The pre-trained one has seen in which company such a word occurs, and puts it where its neighbors are.
#
# ## 4. Use it
#
# `predict` answers new texts. `save` writes a folder of Hugging Face, with the names of the classes.

# %%
for text in ("The ending is gripping.", "What a bland story!", "I found it tender."):
    print(text, "->", pyllama.predict(pretrained, text))

pretrained.save(WORK / "reviewer")
print(pyllama.predict(WORK / "reviewer", "The music is hollow."))

# %% [markdown]
# ## What next?
#
# - Set `FOLDER` to a real BERT, such as all-MiniLM-L6-v2, and `ROWS` to a file of your own with the columns `text`
#   and `label`. On two thousand real film reviews it reaches an accuracy of 0.81, and a bag of words 0.69:
#   `bench/TASKS.md` has the commands.
# - Other tasks (tags, questions, translations) take the same call with another name: `docs/tasks.md` lists them.
# - Make the labels harder: let `not` turn a word into its opposite. What must change in the reviews?
