"""Second derivatives of torch's and JAX's functions: gradgradcheck and check_grads."""
import jax
import jax.numpy as jnp
import torch

from bench.checkers import third_party_torch as by_hand
from bench.checkers import third_party_torch_losses as losses
from bench.checkers import third_party_torch_pointwise as pointwise
from bench.checkers import third_party_torch_sequences as sequences
from bench.checkers.third_party_case import RIGHT, Case, between, normal
from bench.checkers.third_party_jax import arrays, rms_norm
from bench.checkers.third_party_torch import tensors
from pyllama.testing import check_grads, gradgradcheck

CONSTANTS = "what forward saved are intermediate results, which torch takes for constants"
WRONG = {
    pointwise.RMSNorm: CONSTANTS, pointwise.LayerNorm: CONSTANTS, pointwise.GroupNorm: CONSTANTS,
    pointwise.L2Normalize: CONSTANTS, pointwise.SquaredReLU: CONSTANTS, losses.CrossEntropy: CONSTANTS,
    losses.FusedLinearCrossEntropy: CONSTANTS, losses.KLDivergence: CONSTANTS,
    losses.Huber: CONSTANTS, sequences.Attention: CONSTANTS,
    sequences.Scan: "its backward pass writes into a tensor that its derivative needs; torch refuses",
}
OPERATIONS = [
    ("torch tanh", torch.tanh, tensors((3, 4)), check_grads),
    ("torch softmax", lambda x: torch.softmax(x, -1), tensors((3, 4)), check_grads),
    ("torch layer_norm", lambda x, w: torch.nn.functional.layer_norm(x, (4,), w), tensors((3, 4), (4,)), check_grads),
    ("torch gelu", torch.nn.functional.gelu, tensors((3, 4)), check_grads),
    ("torch matmul", torch.matmul, tensors((3, 4), (4, 2)), check_grads),
    ("JAX tanh", jnp.tanh, arrays(normal(3, 4)), check_grads),
    ("JAX softmax", jax.nn.softmax, arrays(normal(3, 4)), gradgradcheck),
    ("JAX rms_norm, custom_vjp", rms_norm, arrays(normal(3, 4), between(0.5, 2, 4)), gradgradcheck),
]


def cases():
    for function, inputs in by_hand.FUNCTIONS:
        inputs = by_hand.requiring(function, inputs)
        yield Case(f"{function.__name__}, gradgradcheck", function, inputs, WRONG.get(function, RIGHT),
                   check=gradgradcheck)
    for name, function, inputs, check in OPERATIONS:
        yield Case(f"{name}, {check.__name__}", function, inputs, check=check)
    yield Case("JAX tanh, check_grads, fwd", jnp.tanh, arrays(normal(3, 4)), check=check_grads,
               options={"modes": ["fwd"]})
