"""The operations and the memory of a training step, counted: see LLaMA in pyllama/models/llama.py.

Arrays      B sequences of T tokens; L blocks of width D; H heads of width K,
            G of keys and values; F hidden units; V words; tied embeddings.
            An operation is a multiplication or an addition.  Only products
            of matrices are counted: all else needs a few operations for each
            number, while a product needs 2 D or more.

Forward     A linear layer makes n rows of E numbers, one row for each token.
            Each number is a sum of D products:

            n = B T
            f = 2 n D E

            The weights of a block, in q and o, k and v, and the network:

            w = 2 D H K + 2 D G K + 3 D F

            N counts the weights of all products, with the output matrix.  To
            look up the embeddings needs no product.

            N = L w + V D
            p = 2 n N

            Attention has no weights.  The scores are B H T T sums of K
            products, and the outputs B H T K sums of T:

            a = 2 B H T² K + 2 B H T² K
              = 4 n T H K

            Numbers that a block saves for its backward pass: both norms; the
            inputs of the projections, which are those of q, k and v, of o, of
            gate and up, and of down; q, k, v, y and lse of attention; both
            inputs of swiglu.

            norms = 2 n (D + 1)
            inputs = n (D + H K + D + F)
            heads = n (H K + G K + G K + H K + H)
            gates = 2 n F
            s = norms + inputs + heads + gates
              = n (4 D + 3 H K + 2 G K + 3 F + H + 2)

Backward    Of a linear layer: dx is n D sums of E products, and dw is E D
            sums of n (see linear).

            b = 2 n D E + 2 E D n
              = 2 f
            f + b = 6 n D E

            So a step needs 6 operations for each weight and token: 2 forward
            and 4 backward.

            p + 2 p = 6 N n

            Attention has four products backward, for dv, dp, dq and dk:

            a' = 4 · 2 B H T² K
               = 2 a
            C = 3 p + L (a + a')
              = 6 n (N + 2 L T H K)

            If hidden pairs are skipped, a query at t has t + 1 keys:

            m = Σ_t (t + 1)
              = T (T + 1) / 2
            C' = 3 p + 3 L a m / T²
               = 6 n (N + L (T + 1) H K)

            The reference computes all pairs, and the scores twice, since it
            does not save them:

            R = C + 2 L B H T² K

            Numbers that a step keeps: P parameters with 2 L + 1 norms, their
            gradients, and the two means of AdamW:

            P = N + (2 L + 1) D
            M = P + P + 2 P
              = 4 P

            In single precision these are 16 bytes for each parameter.  With
            them, the blocks' activations S grow with the batch.  Recomputed,
            each block keeps its input, and one at a time all that it saves:

            S = L s
            S' = L n D + s
            S - S' = (L - 1) s - L n D
"""
import numpy as np

from pyllama import backend, params
from pyllama.models import llama
from pyllama.models.llama_config import LlamaConfig
from pyllama.op import watching
from pyllama.ops import linear
from pyllama.study.derivation import Derivation, Step
from pyllama.training.optim import AdamW

SIZES = {"B": 2, "T": 5, "D": 6, "H": 4, "G": 2, "K": 8, "F": 7, "V": 11, "L": 3, "E": 13}


class Counted(np.ndarray):
    """An array whose products of matrices are counted, and whose results are such arrays again."""
    operations = 0
    __array_priority__ = 1.0                    # np.concatenate returns such an array, too

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(x) if isinstance(x, np.ndarray) else x for x in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(x) for x in out)
        result = getattr(ufunc, method)(*plain, **options)
        if ufunc is np.matmul:
            Counted.operations += 2 * result.size * plain[0].shape[-1]
        return result.view(Counted) if isinstance(result, np.ndarray) else result


def operations(f, *arrays) -> int:
    """The operations of the products in f(*arrays), which the reference computes."""
    Counted.operations = 0
    with backend.use("numpy"):
        f(*(x.view(Counted) for x in arrays))
    return Counted.operations


def saved(f, *arrays) -> dict[str, int]:
    """op -> the numbers that its calls in f() save, without those of the arrays; each array counts once."""
    owners: dict[str, dict[int, np.ndarray]] = {}

    def watch(op, call, inputs, options):
        y, kept = op.forward(*inputs, **options)
        owners.setdefault(op.name, {}).update((id(owner(x)), owner(x)) for x in kept if isinstance(x, np.ndarray))
        return y, None

    with watching(watch):
        f()
    known = {id(owner(x)) for x in arrays}
    return {name: sum(x.size for key, x in of_op.items() if key not in known) for name, of_op in owners.items()}


def owner(x: np.ndarray) -> np.ndarray:
    """The array whose memory x is a view of."""
    return x if x.base is None else owner(x.base)


def code(names: dict) -> dict:
    """What the reference computes and saves, counted while it runs."""
    B, T, D, H, G, K, F, V, L, E = map(int, SIZES.values())
    c = LlamaConfig(vocab_size=V, hidden_size=D, intermediate_size=F, num_hidden_layers=L, num_attention_heads=H,
                    num_key_value_heads=G, head_dim=K, tie_word_embeddings=True)
    p = llama.init(c, dtype="float64")
    leaves = [leaf for _, leaf in params.leaves(p)]
    size = sum(leaf.size for leaf in leaves)
    x, w = np.ones((B, T, D)), np.ones((E, D))
    ids = np.arange(B * (T + 1)).reshape(B, T + 1) % V

    def step(*leaves):
        llama.loss(ids, ids, params.rebuild(p, iter(leaves)), c)[1]()

    both = operations(lambda x, w: linear(x, w)[1](linear(x, w)[0]), x, w)
    forward = operations(linear, x, w)
    state = AdamW(size, np.float64, matrices=[]).state()
    kept = saved(lambda: llama.block(x, p["model"]["layers"][0], c), *leaves)
    del kept["rope"]                                            # its tables are the same for all blocks and sequences
    counts = {"f": forward, "b": both - 2 * forward, "R": operations(step, *leaves),
              "norms": kept["rms_norm"] + kept["add_rms_norm"], "inputs": kept["linear"], "heads": kept["attention"],
              "gates": kept["swiglu"], "s": sum(kept.values()),
              "P": size, "M": 2 * size + state["m"].size + state["v"].size}
    return {name: np.asarray(count) for name, count in counts.items()}


DERIVATION = Derivation(
    title="Operations and memory of a training step",
    source="pyllama.models.llama",
    letters={"t": "T"},
    whole=SIZES,
    sizes={"T": SIZES["T"]},
    fixed=("T",),
    code=code,
    steps=(
        Step("n = B T", "The rows of a linear layer: one for each token."),
        Step("f = 2 n D E", "`n E` numbers, and `D` multiplications and about as many additions for each."),
        Step("w = 2 D H K + 2 D G K + 3 D F",
             "`H K` rows or columns of width `D` in `q` and `o`, `G K` in `k` and `v`, and three matrices of `F` times "
             "`D`."),
        Step("N = L w + V D", "All weights that are in a product."),
        Step("p = 2 n N", "In each token's row, each weight is in one multiplication and one addition."),
        Step("a = 2 B H T² K + 2 B H T² K", "Scores and outputs: two products for each sequence and head."),
        Step("= 4 n T H K", "One `T` goes into `n`.  What is left is twice `T` keys of `H K` numbers, for each token."),
        Step("norms = 2 n (D + 1)", "A norm saves its input, and one number for each row (see rms_norm)."),
        Step("inputs = n (D + H K + D + F)",
             "A linear layer saves its input.  Layers with the same input share one array: it is kept once."),
        Step("heads = n (H K + G K + G K + H K + H)",
             "Attention saves queries, keys, values, outputs and one number for each query (see attention).  It does "
             "not save the scores, of which there are `T` for each query."),
        Step("gates = 2 n F", "`silu(g) u` needs both of its factors (see swiglu)."),
        Step("s = norms + inputs + heads + gates", "No array is saved by two of these kinds of ops."),
        Step("= n (4 D + 3 H K + 2 G K + 3 F + H + 2)",
             "So the number for each token does not grow with the text.  Saved scores would add `H T`."),
        Step("b = 2 n D E + 2 E D n", "Two products, for the two gradients."),
        Step("= 2 f", "Each has the size of the forward product."),
        Step("f + b = 6 n D E", "The rule of six, for one layer: `D E` weights, `n` tokens."),
        Step("p + 2 p = 6 N n", "The same for all weights together, since it is the same for each of them."),
        Step("a' = 4 · 2 B H T² K", "Each of the two forward products has two gradients."),
        Step("= 2 a", "So backward is twice forward here, too."),
        Step("C = 3 p + L (a + a')", "The whole step, if every number is computed once."),
        Step("= 6 n (N + 2 L T H K)",
             "Attention counts as `2 L T H K` more weights.  While that is small beside `N`, the rule is `6 N n`."),
        Step("m = Σ_t (t + 1)", "The pairs of a query and a key that is not hidden; positions are counted from 0."),
        Step("= T (T + 1) / 2", "The numbers from 1 to `T`."),
        Step("C' = 3 p + 3 L a m / T²", "`m` of `T²` pairs are left."),
        Step("= 6 n (N + L (T + 1) H K)", "About half of attention's part."),
        Step("R = C + 2 L B H T² K", "One more product for each block: the scores, again."),
        Step("P = N + (2 L + 1) D", "Two norms in each block and one after them.  The table is in `N` already."),
        Step("M = P + P + 2 P", "Parameters, gradients, and `m` and `v` of AdamW."),
        Step("= 4 P", "Whatever the batch is."),
        Step("S = L s", "All blocks together."),
        Step("S' = L n D + s", "A block that is recomputed needs all it saves, but then no other one does."),
        Step("S - S' = (L - 1) s - L n D",
             "What recomputation saves.  It costs a second forward pass: a third more operations."),
    ))
