"""Decision rules of packages that pip has, called as users call them: each says whether it finds a case wrong."""
import functools
import os
import warnings

import numpy as np

from bench.checkers.rules_cases import is_float


def alarm(check) -> bool:
    """Does check() raise, or return False?"""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return check() is False
        except Exception:
            return True


@functools.cache
def torch():
    import torch
    torch.set_num_threads(1)
    return torch


def torch_gradcheck(case, rng, **options):
    """torch.autograd.gradcheck of a torch.autograd.Function whose two passes are ours."""
    t = torch()

    class Function(t.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            y, ctx.back = case.run(*[x.detach().numpy() for x in tensors])
            return t.from_numpy(y)

        @staticmethod
        def backward(ctx, dy):
            return tuple(t.from_numpy(np.array(d)) for d in ctx.back(dy.numpy()))

    t.manual_seed(int(rng.integers(2 ** 31)))
    tensors = [t.from_numpy(x).requires_grad_() for x in case.floats]
    return alarm(lambda: t.autograd.gradcheck(Function.apply, tensors, check_batched_grad=False, **options))


@functools.cache
def jax():
    os.environ |= {"JAX_PLATFORMS": "cpu",
                   "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    import jax
    jax.config.update("jax_enable_x64", True)
    return jax


def jax_check_vjp(case, rng, **options):
    """jax.test_util.check_vjp, the reverse half of check_grads."""
    jax()
    from jax.test_util import check_vjp

    def with_vjp(*floats):
        y, back = case.run(*map(np.asarray, floats))
        return y, lambda dy: tuple(back(np.array(dy)))

    return alarm(lambda: check_vjp(lambda *floats: case.y(*map(np.asarray, floats)), with_vjp, tuple(case.floats),
                                   **options))


def autograd_check_grads(case, rng):
    """autograd.test_util.check_grads, modes=["rev"], order=1, of a primitive whose two passes are ours."""
    from autograd.extend import defvjp, primitive
    from autograd.test_util import check_grads

    f = primitive(lambda *floats: case.y(*floats))
    count = len(case.floats)
    defvjp(f, *[lambda ans, *floats, i=i: lambda dy: case.run(*floats)[1](np.array(dy))[i] for i in range(count)])
    np.random.seed(int(rng.integers(2 ** 31)))                              # noqa: NPY002 -- autograd draws from it
    check = check_grads(f, argnum=tuple(range(count)), modes=["rev"], order=1)
    return alarm(lambda: check(*case.floats))


def ours(case, rng):
    """pyllama.testing.gradcheck on the same call, without the search for the reason if it is wrong."""
    from pyllama.testing import gradcheck

    def call(*floats):
        given = iter(floats)
        y, back = case.op(*[next(given) if is_float(x) else x for x in case.inputs], **case.options)
        return y, lambda dy: [d for x, d in zip(case.inputs, back(dy), strict=True) if is_float(x)]

    return alarm(lambda: bool(gradcheck(call, case.floats, seed=int(rng.integers(2 ** 31)), budget=None,
                                        raise_exception=False, explain=False)))
