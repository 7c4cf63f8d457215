"""Wrong calls of the compiled module: each is refused before a kernel could access memory out of bounds."""
import numpy as np
import pytest

from pyllama import backend

cpu = backend.cpu


def wrong_calls():
    x, w, r, ids = np.ones((3, 4)), np.ones(4), np.ones((3, 1)), np.arange(3)
    return {
        "w too short": (ValueError, lambda: cpu.rms_norm(x, w[:3])),
        "w a matrix": (ValueError, lambda: cpu.rms_norm(x, x)),
        "x a number": (ValueError, lambda: cpu.rms_norm(np.ones(()), w[:1])),
        "dy too small": (ValueError, lambda: cpu.rms_norm_backward(x[:2], x, w, r)),
        "dy transposed": (ValueError, lambda: cpu.rms_norm_backward(x.T, x, w, r)),
        "r too short": (ValueError, lambda: cpu.rms_norm_backward(x, x, w, r[:2])),
        "a too short": (ValueError, lambda: cpu.add_rms_norm(x, x[:2], w)),
        "w too short for the sum": (ValueError, lambda: cpu.add_rms_norm(x, x, w[:3])),
        "ds too short": (ValueError, lambda: cpu.add_rms_norm_backward((x[:2], x), x, w, r)),
        "dy too short for the sum": (ValueError, lambda: cpu.add_rms_norm_backward((x, x[:2]), x, w, r)),
        "r too short for the sum": (ValueError, lambda: cpu.add_rms_norm_backward((x, x), x, w, r[:2])),
        "w and b too short": (ValueError, lambda: cpu.layer_norm(x, w[:3], w[:3])),
        "b too short": (ValueError, lambda: cpu.layer_norm(x, w, w[:3])),
        "dy too short for layer_norm": (ValueError, lambda: cpu.layer_norm_backward(x[:2], x, w, r)),
        "r too short for layer_norm": (ValueError, lambda: cpu.layer_norm_backward(x, x, w, r[:2])),
        "dy too short for gelu": (ValueError, lambda: cpu.gelu_backward(x[:2], x)),
        "dy too short for relu": (ValueError, lambda: cpu.relu_backward(x[:2], x)),
        "u too short": (ValueError, lambda: cpu.swiglu(x, x[:2])),
        "u too short going back": (ValueError, lambda: cpu.swiglu_backward(x, x, x[:2])),
        "dy too short": (ValueError, lambda: cpu.swiglu_backward(x[:2], x, x)),
        "x turned by other tables": (ValueError, lambda: cpu.rope_backward(x, np.ones((3, 3)), np.ones((3, 3)))),
        "cos and sin of two shapes": (ValueError, lambda: cpu.rope_backward(x, np.ones((3, 2)), np.ones((2, 2)))),
        "a row without a position": (ValueError, lambda: cpu.rope(w)),
        "no pairs": (ValueError, lambda: cpu.rope(x[:, :3])),
        "a table of one axis": (ValueError, lambda: cpu.embedding(ids, w)),
        "ids in halves": (TypeError, lambda: cpu.embedding(ids / 2, x)),
        "dy of other ids": (ValueError, lambda: cpu.embedding_backward(x[:2], ids, x)),
        "dy wider than the table": (ValueError, lambda: cpu.embedding_backward(x, ids, x[:, :3])),
        "an id too large going back": (IndexError, lambda: cpu.embedding_backward(x, ids + 1, x)),
        "softmax of a number": (ValueError, lambda: cpu.softmax(np.ones(()))),
        "softmax of a number going back": (ValueError, lambda: cpu.softmax_backward(np.ones(()), np.ones(()))),
        "dy wider than y": (ValueError, lambda: cpu.softmax_backward(x, x[:, :3])),
        "targets for fewer rows": (ValueError, lambda: cpu.cross_entropy(x, ids[:2])),
        "logits of one axis": (ValueError, lambda: cpu.cross_entropy(w, ids)),
        "no logits": (ValueError, lambda: cpu.cross_entropy(x[:, :0], ids)),
        "targets for fewer rows going back": (ValueError, lambda: cpu.cross_entropy_backward(1.0, x, ids[:2], r)),
        "lse too short": (ValueError, lambda: cpu.cross_entropy_backward(1.0, x, ids, r[:2])),
        "a target too large going back": (IndexError, lambda: cpu.cross_entropy_backward(1.0, x, ids + 2, r)),
        "nothing kept": (ValueError, lambda: cpu.dropout(x, rate=1.0)),
        "a draw before the first": (OverflowError, lambda: cpu.dropout(x, start=-1)),
        "mixed precision": (TypeError, lambda: cpu.swiglu(x, x.astype("float32"))),
        "dy complex": (TypeError, lambda: cpu.swiglu_backward(x + 0j, x, x)),
        "integers": (TypeError, lambda: cpu.swiglu(np.ones(3, int), np.ones(3, int))),
        "half precision": (TypeError, lambda: cpu.swiglu(x.astype("float16"), x.astype("float16"))),
        "None": (TypeError, lambda: cpu.swiglu(None, x)),
        "dy None": (TypeError, lambda: cpu.swiglu_backward(None, x, x)),
    }


@pytest.mark.skipif(cpu is None, reason=backend.why_no_cpu)
@pytest.mark.parametrize("case", wrong_calls())
def test_wrong_inputs_raise_before_the_kernel_runs(case):
    error, call = wrong_calls()[case]
    with pytest.raises(error):
        call()
