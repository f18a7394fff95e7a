"""How alike two networks' features of the same examples are, over a whole data set."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

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
      At most 1, and not below 0 unless `debiased`; computed on the host in float64. NaN where it has no value: where all of
      one network's features are equal; with ``"rbf"``, where so many are that the median distance is 0; where `debiased`,
      if HSIC(K, K) is no more than rounding in the features' dtype makes of 0, as for examples that are all equally far
      apart, such as one-hot codes.

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
    centred = _unbiased if debiased else _biased
    with np.errstate(all="ignore"):  # a network's features may be equal, or not finite
        one, other = (centred(*_kernel(array, kernel, width)) for array in (first, second))
        found = np.sum(one * other) / np.sqrt(np.sum(one * one) * np.sum(other * other))
    return float(np.minimum(found, 1.0))


def _kernel(array: AnyArray, kernel: str, width: float) -> tuple[np.ndarray, float]:
    """The kernel, [examples, examples] in float64, and how large the rounding of the features may be in it."""
    features = np.asarray(array).reshape(len(array), -1).astype(np.float64)
    # Equal features are exactly 0 about the first of them.
    features = features - features[:1]
    features = features - np.mean(features, axis=0, keepdims=True)
    largest = np.max(np.abs(features), initial=0.0)
    # Neither kernel depends on the scale; squares of what is far from 1 might not be numbers.
    features = features / (largest or 1.0)
    products = features @ features.T
    squares = np.diagonal(products)
    found = products
    if kernel == "rbf":
        # Of equal examples the difference is rounding, and where most are equal there would be nothing but that.
        _, groups = np.unique(features, axis=0, return_inverse=True)
        same = groups.reshape(-1, 1) == groups.reshape(1, -1)
        distances = np.where(same, 0.0, np.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 0.0))
        median = np.median(distances[np.triu_indices(len(features), 1)])
        found = np.exp(-distances / (2.0 * width**2 * median)) if median > 0 else np.full_like(distances, np.nan)
    rounding = float(jnp.finfo(array.dtype).eps) / np.sqrt(max(1, features.shape[1])) * np.mean(np.diagonal(found))
    return found, float(rounding)


def _biased(kernel: np.ndarray, rounding: float) -> np.ndarray:
    of_rows = np.mean(kernel, axis=1, keepdims=True)
    return kernel - of_rows - of_rows.T + np.mean(kernel)


def _unbiased(kernel: np.ndarray, rounding: float) -> np.ndarray:
    """The kernel without its diagonal, centred so that the sum of two kernels' products is HSIC without bias.

    All 0 where nothing is left but rounding.
    """
    count = len(kernel)
    off = 1.0 - np.eye(count)
    kernel = kernel * off
    of_rows = np.sum(kernel, axis=1, keepdims=True) / (count - 2)
    centred = off * (kernel - of_rows - of_rows.T + np.sum(kernel) / ((count - 1) * (count - 2)))
    return np.where(np.sqrt(np.mean(centred**2)) > rounding, centred, 0.0)
