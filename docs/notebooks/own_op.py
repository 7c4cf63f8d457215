# %% [markdown]
# # Derive and check an op of your own
#
# You write an op with its backward pass, prove every line of the derivation, and let the checkers find the bugs that
# you plant. It takes half a minute.
#
# The op is the cosine similarity of two rows, as models of sentences and images use it: the inner product of `a` and
# `b`, divided by both lengths. Replace it by your own, and go through the same six steps.

# %%
import inspect
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from IPython.display import HTML

from pyllama.op import between, op
from pyllama.study.derivation import Derivation, Step
from pyllama.study.mathml import mathml
from pyllama.study.running import Run
from pyllama.testing import check, gradcheck
from pyllama.testing.verify import verify

SEEDS = 100                         # on which a test is tried for false alarms

# %% [markdown]
# ## 1. Two passes
#
# `forward` returns the result, and what `backward` needs. `backward` takes `dy`, the derivative of the loss with
# respect to `y`, and returns the gradient of each input. The small `eps` keeps rows of zeros finite.


# %%
def forward(a, b, *, eps=1e-5):
    p = (np.sum(a * a, axis=1) + eps) ** -0.5
    q = (np.sum(b * b, axis=1) + eps) ** -0.5
    y = p * q * np.sum(a * b, axis=1)
    return y, (a, b, p, q, y)


def backward(dy, a, b, p, q, y, *, eps=1e-5):
    dy, p, q, y = (row[:, None] for row in (dy, p, q, y))
    return one_side(dy, a, b, p, q, y), one_side(dy, b, a, q, p, y)


def one_side(dy, a, b, p, q, y):
    """The gradient of a.  That of b is the same with both exchanged."""
    return dy * p * (q * b - p * y * a)


# %% [markdown]
# ## 2. Is the gradient right?
#
# `gradcheck` compares `backward` with the derivative of `forward`. A complex step gives that derivative to the last
# digits, so no tolerance has to be chosen.

# %%
a, b = np.random.default_rng(0).standard_normal((2, 3, 5))
gradcheck(forward, [a, b], backward=backward, saved=True, seed=0)


# %% [markdown]
# ## 3. Plant a bug, and read the report
#
# The lengths depend on the inputs, too. It is easy to forget that: then the second term of each gradient is missing.


# %%
def forgets_the_length(dy, a, b, p, q, y, *, eps=1e-5):
    dy, p, q = (row[:, None] for row in (dy, p, q))
    return dy * p * q * b, dy * p * q * a


report = gradcheck(forward, [a, b], backward=forgets_the_length, saved=True, seed=0,
                   raise_exception=False)
report

# %% [markdown]
# The report names the cause: what is missing is `a` times a number for each row. Look at the code above: `- dy * p *
# p * y * a` is such a term. The smallest failing case at the end is Python to paste into a test.
#
# ## 4. How good is your test?
#
# A test may pass although the gradient is wrong. `pyllama score` plants small bugs into `one_side` one at a time, and
# counts how many a test notices. This test looks thorough: it compares every entry with a difference quotient. But it
# does so at rows of ones.

# %%
FOLDER = Path(tempfile.mkdtemp())
CODE = map(inspect.getsource, (forward, backward, one_side))
(FOLDER / "cosine.py").write_text("\n\n".join(["import numpy as np\n", *CODE]))

AT_ONES = """
import numpy as np
from cosine import backward, forward

def test_cosine():
    a, b = np.ones((2, 4)), np.ones((2, 4))
    y, saved = forward(a, b)
    da, db = backward(np.ones_like(y), *saved)
    for i in np.ndindex(a.shape):
        h = np.zeros_like(a)
        h[i] = 1e-6
        of_a = (forward(a + h, b)[0] - forward(a - h, b)[0]).sum() / 2e-6
        of_b = (forward(a, b + h)[0] - forward(a, b - h)[0]).sum() / 2e-6
        assert abs(of_a - da[i]) < 1e-6
        assert abs(of_b - db[i]) < 1e-6
"""


def score(test):
    """What pyllama score finds out about a test."""
    (FOLDER / "test_cosine.py").write_text(test)
    command = [sys.executable, "-m", "pyllama", "score", "test_cosine.py",
               "--target", "cosine:one_side", "--seeds", str(SEEDS), "--json", "score.json"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr                   # 1: it missed a bug
    return json.loads((FOLDER / "score.json").read_text("utf-8"))


at_ones = score(AT_ONES)
print(f"noticed {at_ones['killed']} of {at_ones['total']} bugs, not these:")
for bug in at_ones["findings"]:
    if bug["verdict"] == "survived":
        print("   ", bug["cause"])

# %% [markdown]
# Two equal rows have a cosine of one, whatever their size: its gradient is almost zero, and so is that of many bugs.
# Random numbers, a random `dy` and an exact derivative are what makes a test of gradients strong, and `gradcheck` has
# all three. (`explain=False`: no causes, because only the verdict counts here.)

# %%
AT_RANDOM = """
import numpy as np
from cosine import backward, forward
from pyllama.testing import gradcheck

def test_cosine():
    a, b = np.random.standard_normal((2, 3, 5))
    gradcheck(forward, [a, b], backward=backward, saved=True, explain=False)
"""
at_random = score(AT_RANDOM)
print(f"noticed {at_random['killed']} of {at_random['total']} bugs; "
      f"{len(at_random['alarms'])} false alarms with {at_random['seeds']} seeds")

# %% [markdown]
# ## 5. Derive it
#
# A number that agrees is evidence; a derivation says why. Each `Step` is a line of mathematics and its reason. The
# line itself is what runs: on symbols, where SymPy proves it, and on random numbers. Then both passes of the code run
# on the same numbers, and must compute what the lines say.


# %%
def passes(names):
    """What the code computes of the numbers that the derivation has."""
    y, saved = forward(names["a"], names["b"], eps=names["ε"])
    da, db = backward(names["dy"], *saved, eps=names["ε"])
    return {"y": y, "da": da, "db": db}


derivation = Derivation(
    title="Cosine similarity",
    arrays={"a": "rows D", "b": "rows D", "dy": "rows"},
    loss={"y": "dy"},
    letters={"i": "D", "j": "D"},
    sizes={"rows": 2, "D": 3},
    constants={"ε": ""},
    code=passes,
    steps=(
        Step("p = (Σ_i a_i² + ε)^-½", "One over the length of a."),
        Step("q = (Σ_i b_i² + ε)^-½", "The same for b."),
        Step("y = p q Σ_i a_i b_i", "The inner product, divided by both lengths."),
        Step("∂p/∂a_j = -p³ a_j", "The chain rule for the power -½."),
        Step("da_j = dy ∂y/∂a_j", "a_j reaches the loss through y alone."),
        Step("= dy q (p b_j + ∂p/∂a_j Σ_i a_i b_i)",
             "The product rule: p and the sum depend on a_j, q does not."),
        Step("= dy p (q b_j - p y a_j)", "The sum is y / (p q)."),
        Step("db_j = dy q (p a_j - q y b_j)", "a and b enter y in the same way."),
    ))


def shown(derivation):
    """Run a derivation, and show each line beside how it was found to hold."""
    run = Run(derivation)
    lines = [f"<td>{mathml(step.line)}</td><td>{wrong or kind}</td><td>{step.why}</td>"
             for step, kind, wrong, _ in run.steps()]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return HTML(f"<table>{rows}</table>{run.code() or 'The code computes the same.'}")


shown(derivation)

# %% [markdown]
# A wrong line is refused. Here the factor `p` of the second term is lost:

# %%
*before, last, after = derivation.steps
slipped = last._replace(line="= dy p (q b_j - y a_j)")
slip = replace(derivation, steps=(*before, slipped, after))
outcomes = [*Run(slip).steps()]
for number, outcome in enumerate(outcomes, 1):
    if outcome.wrong:
        print(f"step {number}: {outcome.step.line}\n{outcome.wrong}")

# %% [markdown]
# ## 6. Register it
#
# An op is both passes with a shape line, which says how long each axis is. `check` draws sizes, options and inputs
# from that line.

# %%
cosine = op("a[N D], b[N D] -> y[N]", forward, backward, name="cosine",
            eps=between(1e-3, 1.0))
cosine

# %%
checked = check(cosine, seed=0)
checked

# %% [markdown]
# The op is now the reference for faster versions. This one computes fewer roots, in single precision. It also saves
# memory: it divides `dy` in place. Is it the same function?


# %%
def fast(a, b, *, eps=1e-5):
    aa, bb, ab = np.vecdot(a, a) + eps, np.vecdot(b, b) + eps, np.vecdot(a, b)
    length = np.sqrt(aa * bb)

    def back(dy):
        dy /= length
        da = dy[:, None] * (b - (ab / aa)[:, None] * a)
        db = dy[:, None] * (a - (ab / bb)[:, None] * b)
        return da, db

    return ab / length, back


found = verify(fast, cosine, dtype="float32", seed=0)
print(found.text(only_wrong=True))

# %% [markdown]
# The numbers are right, but `dy` belongs to the caller, who may need it again. A new array cures that:


# %%
def faster(a, b, *, eps=1e-5):
    aa, bb, ab = np.vecdot(a, a) + eps, np.vecdot(b, b) + eps, np.vecdot(a, b)
    length = np.sqrt(aa * bb)

    def back(dy):
        dy = dy / length
        da = dy[:, None] * (b - (ab / aa)[:, None] * a)
        db = dy[:, None] * (a - (ab / bb)[:, None] * b)
        return da, db

    return ab / length, back


corrected = verify(faster, cosine, dtype="float32", seed=0)
print(corrected)

# %% [markdown]
# ## What next?
#
# - Your op in a file, with the derivation in its docstring, is what every file in `pyllama/ops` is: `rms_norm.py` is
#   a short pattern, and CONTRIBUTING.md says where the file goes.
# - `pyllama dojo` has exercises: backward passes with one bug each.
# - `pyllama.ops.rms_norm?` in a cell shows how an op of the package is derived.
# - `docs/testing.md` lists what a check can see, and what it cannot.
