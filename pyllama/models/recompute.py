"""Functions of functions with a back."""


def recomputed(f):
    """f with its activations dropped after forward and computed again for backward: memory for time.

    Exact, because f is pure: random draws depend on their key alone (pyllama/rng.py).  Source: Chen et al.,
    "Training deep nets with sublinear memory cost", 2016.
    """
    def g(*inputs, **options):
        y, _ = f(*inputs, **options)
        return y, lambda dy: f(*inputs, **options)[1](dy)

    return g
