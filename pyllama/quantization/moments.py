"""Second moments H = E[x xᵀ] of the inputs of a matrix, estimated from a sample.

The sample's S is unbiased, but where it has few rows its least eigenvalues are too small, and rounding.py would put
errors where they seem to cost nothing.  The estimate is therefore drawn towards a multiple of the identity,

    H = S + λI,     λ = μ ρ/(1 - ρ),     μ = tr S / D, the mean eigenvalue

which is a multiple of the (1 - ρ) S + ρ μ I that has the least expected error ‖· - H‖² (Frobenius).  There

    ρ = β²/δ²,      δ² = ‖S - μI‖²,      β² = E‖S - H‖² ≈ (E‖x xᵀ - S‖²)/n = (E|x|⁴ - ‖S‖²)/n

so that λ depends on the sample alone: 0 for many rows, large for few.  The rows are taken for independent.

Source: Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004, about a mean
that is not subtracted here.

Axes: n rows, D numbers of a row.
"""
import numpy as np

from pyllama.errors import UserError

ROUNDING = 2.0**-23                             # the rows are float32: below this share of tr S, S is rounding errors
NOISE = 1 - 2.0**-10                            # the largest ρ, so that λ is finite where S is noise alone
AT_ONCE = 4096                                  # rows in float64


def pieces(count: int) -> list[slice]:
    """Slices of AT_ONCE rows."""
    return [slice(begin, begin + AT_ONCE) for begin in range(0, count, AT_ONCE)]


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """aᵀ b in float64: a [n D], b [n F] -> [D F]."""
    return sum((a[rows].astype(np.float64).T @ b[rows].astype(np.float64) for rows in pieces(len(a))),
               np.zeros((a.shape[1], b.shape[1])))


class Moments:
    """The sum over rows x of x xᵀ, and of |x|⁴.

    >>> import numpy as np
    >>> from pyllama.quantization.moments import Moments
    >>> moments = Moments(2)
    >>> moments.add(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [3.0, 4.0]]))
    >>> moments.mean()
    array([[2.75, 3.  ],
           [3.  , 4.25]])
    """

    def __init__(self, width: int):
        self.sum, self.fourth, self.count = np.zeros((width, width)), 0.0, 0

    def add(self, x: np.ndarray) -> None:
        """Count the rows of x [n D]."""
        self.sum += product(x, x)
        self.fourth += float((np.square(x, dtype=np.float64).sum(axis=1)**2).sum())
        self.count += len(x)

    def mean(self) -> np.ndarray:
        """S [D D]; zeros without rows."""
        return self.sum / max(1, self.count)

    def estimate(self) -> np.ndarray:
        """H [D D], positive definite.  If all rows are zeros, or there are none, the identity.

        Raises UserError if a row is not finite.
        """
        s, identity = self.mean(), np.eye(len(self.sum))
        trace = float(np.trace(s))
        if not np.isfinite(trace):
            raise UserError("the model computes NaN or infinities on this text, so it cannot be calibrated; repair the "
                            "model, or leave the text out")
        if trace == 0:
            return identity
        mean = trace / len(s)
        distance = float(((s - mean * identity)**2).sum())
        noise = max(0.0, self.fourth / self.count - float((s * s).sum())) / self.count
        share = min(noise / distance, NOISE) if distance else NOISE
        return s + max(mean * share / (1 - share), ROUNDING * trace) * identity
