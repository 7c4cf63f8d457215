"""The models of bench/decode.py.  Needs only NumPy, so that PyTorch's environment can do without pyllama."""
from typing import NamedTuple

from bench.sizes import SIZES as TRAINED


class Size(NamedTuple):
    """A LLaMA; the letters are those of pyllama/shapes.py."""
    D: int
    L: int
    H: int
    G: int
    F: int
    V: int
    tied: bool = True                           # is the head the embedding?

    @property
    def weights(self):
        """The weights that a token needs: all matrices, except for the table of embeddings if the head is another."""
        heads = self.D // self.H * self.G
        return self.L * (2 * self.D * self.D + 2 * self.D * heads + 3 * self.D * self.F) + self.D * self.V

    def cache(self, positions, itemsize=4):
        """Bytes of the keys and values of so many positions."""
        return 2 * self.L * self.D // self.H * self.G * positions * itemsize


SIZES = {name: Size(s.D, s.L, s.H, s.H, s.F, s.V) for name, s in TRAINED.items() if name in ("S", "M")} | {
    "L": Size(D=2048, L=22, H=32, G=4, F=5632, V=32000, tied=False),       # TinyLlama's
    "tiny": Size(D=64, L=2, H=4, G=2, F=96, V=512),                        # a smoke test
}
