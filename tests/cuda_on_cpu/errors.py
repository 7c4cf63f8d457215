class KernelError(AssertionError):
    """A kernel does not compile, is launched as it must not be, or does what it must not do: one sentence says what."""
