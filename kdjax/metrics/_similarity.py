"""How alike two networks' features of the same examples are, over a whole data set."""

from typing import Literal

import jax.numpy as jnp
from jax.lax import Precision
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import AnyArray


def cka(
    first: Float[AnyArray, " examples *first_dims"],
    second: Float[AnyArray, " examples *second_dims"],
    *,
    kernel: Literal["linear", "rbf"] = "linear",
    width: float = 0.5,
    debiased: bool = False,
) -> float:
    r"""Centred kernel alignment of two networks' features: 1 where one is a rotation and scaling of the other.

    $$\frac{\operatorname{HSIC}(K, L)}{\sqrt{\operatorname{HSIC}(K, K) \operatorname{HSIC}(L, L)}}$$

    Args:
      first: features of some hundred to some thousand examples; its kernel is [examples, examples].
      second: features of the same examples; dims may differ.
      kernel: x·y, or ``"rbf"``, exp(−d² / 2σ²).
      width: of ``"rbf"``: σ in multiples of the median distance between two examples.
      debiased: whether HSIC is estimated without bias. With fewer examples than dims, features that have nothing to do with
        each other then have 0 on average, not a number near 1.

    Returns:
      At most 1, and not below 0 unless `debiased`; NaN where all of one network's features are equal.

    Raises:
      ValueError: if the numbers of examples differ or are too few (2, or 4 where `debiased`), if an array holds no
        floating-point numbers, the kernel is none, or `width` is not a finite number above 0.

    Example:
      >>> import jax
      >>> first = jax.random.normal(jax.random.key(0), (50, 8))
      >>> round(cka(first, 3.0 * first[:, ::-1] + 1.0), 4)
      1.0

    Reference:
      Kornblith et al., Similarity of Neural Network Representations Revisited, 2019, eq. 2 and 3.
      https://arxiv.org/abs/1905.00414. Without bias: Song et al., Feature Selection via
      Dependence Maximization, 2012, eq. 5.
    """
    for name, array in (("first", first), ("second", second)):
        _checks.rank_at_least(name, array, 2, "[examples, dim]")
        _checks.floating(name, array)
    _checks.same_batch("first", first, "second", second)
    _checks.one_of("kernel", kernel, ("linear", "rbf"))
    _checks.positive("width", width)
    least = 4 if debiased else 2
    if len(first) < least:
        raise ValueError(f"first and second must have {least} examples or more; got {len(first)}.")
    kernels = [_kernel(jnp.asarray(a).reshape(len(a), -1), kernel, width) for a in (first, second)]
    hsic = _unbiased if debiased else _biased
    both, one, other = hsic(*kernels), hsic(kernels[0], kernels[0]), hsic(kernels[1], kernels[1])
    return float(both / jnp.sqrt(one * other))


def _kernel(features: Float[Array, "examples dim"], kernel: str, width: float) -> Float[Array, "examples examples"]:
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32))
    features = features - jnp.mean(features, axis=0, keepdims=True)
    largest = jnp.max(jnp.abs(features))
    # Neither kernel depends on the scale; squares of what is far from 1 might not be numbers.
    features = features / jnp.where(largest == 0, 1.0, largest)
    products = jnp.matmul(features, features.T, precision=Precision.HIGHEST)
    if kernel == "linear":
        return products
    squares = jnp.diagonal(products)
    distances = jnp.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0)
    apart = distances[jnp.triu_indices(len(features), 1)]
    median = jnp.median(apart)
    return jnp.exp(-distances / (2.0 * width**2 * median))


def _biased(one: Float[Array, "examples examples"], other: Float[Array, "examples examples"]) -> Array:
    return jnp.sum(_centred(one) * _centred(other))


def _centred(kernel: Float[Array, "examples examples"]) -> Float[Array, "examples examples"]:
    of_rows = jnp.mean(kernel, axis=1, keepdims=True)
    return kernel - of_rows - of_rows.T + jnp.mean(kernel)


def _unbiased(one: Float[Array, "examples examples"], other: Float[Array, "examples examples"]) -> Array:
    count = len(one)
    off = 1.0 - jnp.eye(count, dtype=one.dtype)
    one, other = one * off, other * off
    rows, columns = jnp.sum(one, axis=1), jnp.sum(other, axis=1)
    mixed = jnp.sum(one) * jnp.sum(other) / ((count - 1) * (count - 2)) - 2.0 * jnp.sum(rows * columns) / (count - 2)
    return (jnp.sum(one * other) + mixed) / (count * (count - 3))
