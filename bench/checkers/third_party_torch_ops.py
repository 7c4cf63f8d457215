"""torch's own operations, through the adapter; forward mode is checked, too, where torch has it."""
import torch
from torch.nn import functional as F

from bench.checkers.third_party_case import Case
from bench.checkers.third_party_torch import LABELS, t, tensors

X, Y = tensors((3, 4), (3, 4))
QKV = tensors(*3 * [(1, 2, 4, 3)])
OPERATIONS = [
    ("add", torch.add, [X, Y]),
    ("mul broadcast", torch.mul, [X, *tensors((4,))]),
    ("div", torch.div, [X, Y]),
    ("pow", lambda x: x.abs() ** 1.5, [X]),
    ("exp", torch.exp, [X]),
    ("log", lambda x: torch.log(1 + x * x), [X]),
    ("tanh", torch.tanh, [X]),
    ("sigmoid", torch.sigmoid, [X]),
    ("abs", torch.abs, [X]),
    ("erf", torch.erf, [X]),
    ("relu", F.relu, [X]),
    ("gelu", F.gelu, [X]),
    ("silu", F.silu, [X]),
    ("mish", F.mish, [X]),
    ("elu", F.elu, [X]),
    ("softplus", F.softplus, [X]),
    ("hardtanh", F.hardtanh, [X]),
    ("glu", F.glu, [X]),
    ("selu", F.selu, [X]),
    ("softmax", lambda x: torch.softmax(x, -1), [X]),
    ("log_softmax", lambda x: torch.log_softmax(x, 0), [X]),
    ("logsumexp", lambda x: torch.logsumexp(x, -1), [X]),
    ("cumsum", lambda x: torch.cumsum(x, 1), [X]),
    ("cumprod", lambda x: torch.cumprod(x, 1), [X]),
    ("sum", torch.sum, [X]),
    ("mean", lambda x: x.mean(0), [X]),
    ("var", lambda x: x.var(1), [X]),
    ("norm", lambda x: torch.linalg.norm(x, dim=1), [X]),
    ("max", lambda x: x.max(1), [X]),
    ("sort", lambda x: torch.sort(x, 1), [X]),
    ("topk", lambda x: x.topk(2, 1), [X]),
    ("matmul", torch.matmul, tensors((2, 3, 4), (4, 5))),
    ("einsum", lambda a, b: torch.einsum("ij,kj->ik", a, b), [X, Y]),
    ("layer_norm", lambda x, w, b: F.layer_norm(x, (4,), w, b), [X, *tensors((4,), (4,))]),
    ("rms_norm", lambda x, w: F.rms_norm(x, (4,), w, 1e-5), [X, *tensors((4,))]),
    ("batch_norm", lambda x: F.batch_norm(x, None, None, training=True), [X]),
    ("group_norm", lambda x: F.group_norm(x, 2), tensors((2, 4, 3))),
    ("conv1d", F.conv1d, tensors((2, 3, 6), (4, 3, 2))),
    ("conv2d", F.conv2d, tensors((1, 2, 4, 4), (3, 2, 2, 2))),
    ("max_pool1d", lambda x: F.max_pool1d(x, 2), tensors((2, 3, 6))),
    ("embedding", lambda table, ids: F.embedding(ids, table), [*tensors((5, 3)), t([[4, 0], [4, 1]])]),
    ("cross_entropy", lambda x: F.cross_entropy(x, LABELS), [X]),
    ("mse_loss", F.mse_loss, [X, Y]),
    ("huber_loss", F.huber_loss, [X, Y]),
    ("smooth_l1_loss", F.smooth_l1_loss, [X, Y]),
    ("kl_div", lambda p, q: F.kl_div(p, q, log_target=True, reduction="batchmean"), [X, Y]),
    ("attention", lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), QKV),
    ("inv", torch.linalg.inv, [t([[3.0, 1, 0], [0, 2, 1], [1, 0, 4]])]),
    ("det", torch.linalg.det, tensors((3, 3))),
    ("cholesky", lambda x: torch.linalg.cholesky(x @ x.mT + torch.eye(3)), tensors((3, 3))),
    ("gather", lambda x: x.gather(1, t([[0, 0], [3, 1], [2, 2]])), [X]),
    ("where", lambda x, y: torch.where(X > 0, x, y), [X, Y]),
    ("index_add", lambda x: x.new_zeros(5, 4).index_add(0, t([1, 1, 4]), x), [X]),
    ("relu at 0", F.relu, [t([0.0, 1.0, -1.0])]),
    ("abs at 0", torch.abs, [t([0.0, 1.0, -1.0])]),
    ("hardtanh at its bounds", F.hardtanh, [t([-1.0, 0.5, 1.0])]),
    ("amax of equal numbers", torch.amax, [t([2.0, 1.0, 2.0])]),
    ("maximum of equal numbers", torch.maximum, [t([2.0, 1.0]), t([2.0, 3.0])]),
    ("norm at 0", torch.linalg.norm, [t([0.0, 0.0, 0.0])]),
    ("prod with a zero", torch.prod, [t([0.0, 2.0, 3.0])]),
    ("sinc at 0", torch.sinc, [t([0.0, 0.5])]),
    ("std of equal numbers", torch.std, [t([2.0, 2.0, 2.0])]),
    ("a transposed view", lambda x: x.mT, [X]),
    ("an expanded view", lambda x: x[:, :1].expand(3, 4), [X]),
    ("a slice", lambda x: x[:, 1:3], [X]),
    ("Linear", torch.nn.Linear(4, 2).double(), [X]),
    ("LSTM", torch.nn.LSTM(4, 3).double(), tensors((5, 2, 4))),
    ("MultiheadAttention", torch.nn.MultiheadAttention(4, 2).double(), tensors(*3 * [(3, 2, 4)])),
]


def cases():
    for name, function, inputs in OPERATIONS:
        yield Case(name, function, inputs)
