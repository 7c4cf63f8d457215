"""Gradient checkpointing; functions without a backward pass."""


def recomputed(f):
    """f, but without saved activations: the backward pass computes them again.  It saves memory and costs time.

    The result is exact, because f is pure: random draws depend only on their key (pyllama/rng.py).  Source: Chen et
    al., "Training deep nets with sublinear memory cost", 2016.
    """
    def g(*inputs, **options):
        y, _ = f(*inputs, **options)
        return y, lambda dy: f(*inputs, **options)[1](dy)

    return g


def forward_only(f):
    """f, but with None for back: not even its inputs are kept."""
    def g(*inputs, **options):
        return f(*inputs, **options)[0], None

    return g
