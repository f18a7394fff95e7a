"""What tells programs apart: also the numbers that a function within one holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import _trees

X = jnp.ones(3)


def with_own_gradient(constant):
    function = jax.custom_vjp(lambda x: x - constant)
    function.defvjp(lambda x: (x - constant, None), lambda _, given: (given,))
    return function


HOLDERS = {
    "plain": lambda constant: lambda x: x - constant,
    "jit": lambda constant: jax.jit(lambda x: x - constant),
    "scan": lambda constant: (
        lambda x: jax.lax.scan(lambda k, row: (k, jax.jit(lambda r: r - constant)(row)), 0.0, x[None])
    ),
    "remat": lambda constant: jax.checkpoint(jax.jit(lambda x: x - constant)),
    "gradient": lambda constant: jax.grad(lambda x: jax.jit(lambda x: (x * constant).sum())(x)),
    "own gradient": with_own_gradient,
    "a branch": lambda constant: lambda x: jax.lax.cond(x.sum() > 0, jax.jit(lambda x: x - constant), lambda x: x, x),
}


@pytest.mark.parametrize("kind", [jnp.array, np.float32], ids=["jax", "numpy"])
@pytest.mark.parametrize("name", HOLDERS)
def test_a_constant_tells_programs_apart_wherever_it_is_held(name, kind):
    first, again, other = (
        _trees.digest_of_program(HOLDERS[name](kind(values)), X) for values in ([1, 2, 3], [1, 2, 3], [1, 2, 4])
    )
    assert first == again
    assert first != other
