"""Principal components of a network's channels, fitted once on data and then a fixed projection of its feature."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import Precision
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import AnyArray, Apply, Batch, Outputs, Weights

Moments = tuple[Any, Any, Any]


class Projection(NamedTuple):
    """An affine map of channels, y = V (x − m), as arrays.

    Attributes:
      mean: m, [channels].
      components: V, [kept, channels]; its rows are orthonormal, the one of the largest variance first.
      explained_share: [kept], each component's share of the whole variance.
    """

    mean: Float[Array, " channels"]
    components: Float[Array, "kept channels"]
    explained_share: Float[Array, " kept"]


def fit_pca(
    apply: Apply, weights: Weights, batches: Iterable[Batch], feature: str, *, share: float | int = 0.9
) -> Projection:
    """Fits the principal components of a feature's channels in one pass over the data.

    With x every position of every example, m their mean and C = Σ (x − m)(x − m)ᵀ / (n − 1) = Vᵀ diag(λ) V: keeps the
    fewest components whose variances λ add up to more than `share` of the whole.

    Args:
      apply: the network, mostly a teacher; run with ``train=False``, one batch after the other.
      weights: its weights.
      batches: each with ``"inputs"``, and ``"mask"`` [batch] where some examples only fill it up, as `open_evaluation` gives
        them. One after the other: no more than one is held, and of the feature only its moments.
      feature: the feature's name; [batch, …, channels].
      share: of the variance to keep, above 0 and at most 1.

    Returns:
      A `Projection`, float32. Each component's largest entry is positive, which makes it unique.

    Raises:
      ValueError: if `share` is out of range, there is no such feature, a mask has another shape, or the data are fewer than
        two positions or all the same.
      FloatingPointError: if the feature is not finite.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs, {"embedding": inputs * jnp.array([[1.0, 3.0, 0.1]])}), model_state
      >>> inputs = jax.random.normal(jax.random.key(0), (2, 50, 3))
      >>> pca = fit_pca(network, Weights({}, {}), ({"inputs": half} for half in inputs), "embedding")
      >>> pca.components.shape, abs(pca.components[0]).round(1).tolist(), bool(pca.explained_share.sum() > 0.9)
      ((2, 3), [0.0, 1.0, 0.0], True)

    Note:
      How many are kept is scikit-learn's rule, ``PCA(n_components=0.9, svd_solver="full")``. Sums are taken on the device in
      float32 about each batch's own mean, and joined on the host in float64: means far larger than the spread do no harm.

    Reference:
      Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances, 1982,
      section 2 (joining the batches). https://doi.org/10.1007/978-3-642-51461-6_3
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}.")

    @jax.jit
    def of_batch(weights: Weights, batch: Batch) -> tuple[Array, Array, Array, Array]:
        outputs, _ = run(apply, *weights, batch["inputs"], train=False)
        return _moments(feature, _checks.feature("network", outputs, feature), batch.get("mask"))

    count, mean, scatter = 0.0, np.zeros(()), np.zeros(())
    for batch in batches:
        read = {name: batch[name] for name in ("inputs", "mask") if name in batch}
        sums = [np.asarray(value, np.float64) for value in of_batch(weights, read)]
        if not all(np.isfinite(value).all() for value in sums):
            raise FloatingPointError(f"The network's feature {feature!r} is not all finite.")
        count, mean, scatter = _joined((count, mean, scatter), sums)
    if count < 2:
        raise ValueError(f"batches must hold two positions at least; got {int(count)}.")
    return _leading(feature, share, count, mean, scatter)


def project(projection: Projection, feature: Float[AnyArray, "batch *positions channels"]) -> Float[Array, "batch ..."]:
    """Projects a feature's channels at every position: y = V (x − m), float32 at least.

    Args:
      projection: of `fit_pca`.
      feature: [batch, …, channels], of the projection's channels.

    Returns:
      [batch, …, kept].

    Raises:
      ValueError: if the channels are not the projection's.
    """
    _checks.rank_at_least("feature", feature, 2, "[batch, ..., channels]")
    _checks.per_channel("projection.mean", projection.mean, "feature", feature)
    x = feature.astype(jnp.promote_types(feature.dtype, jnp.float32))
    mean = jnp.reshape(projection.mean, (1,) * (x.ndim - 1) + projection.mean.shape)
    return jnp.einsum("...c,kc->...k", x - mean, projection.components, precision=Precision.HIGHEST)


def projection_of(name: str, projection: Projection) -> Callable[[Outputs], Array]:
    """A fixed projection of a feature, for `kdjax.networks.with_features`.

    Args:
      name: the feature's.
      projection: of `fit_pca`. It enters a compiled step as a constant.

    Returns:
      A function of `Outputs`.

    Raises:
      ValueError: later, as `project` does, or if there is no such feature.

    Example:
      The teacher shows its principal components; the student, of other channels, learns to predict them.

      >>> from kdjax.connectors import regressor
      >>> from kdjax.networks import with_features
      >>> def teacher_apply(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs.mean((1, 2)), {"stage2": inputs}), model_state
      >>> pca = Projection(jnp.zeros(4), jnp.eye(2, 4), jnp.array([0.8, 0.15]))
      >>> teacher_apply = with_features(teacher_apply, stage2_pca=projection_of("stage2", pca))
      >>> outputs, _ = teacher_apply({}, {}, jnp.ones((5, 7, 7, 4)), train=False)
      >>> outputs.features["stage2_pca"].shape
      (5, 7, 7, 2)
      >>> connectors = {"pca": regressor("stage2", "stage2_pca")}

      A student of the same channels may be seen through the same projection: ``with_features(student_apply, …)`` too, and
      then ``on_feature(hint, "stage2_pca")``.
    """
    return lambda outputs: project(projection, _checks.feature("network", outputs, name))


def _moments(name: str, feature: Array, mask: Array | None) -> tuple[Array, Array, Array, Array]:
    """How many positions, a centre near their mean, and the first and second moments about it.

    The centre is rounded; the first moment, which would be 0 for the mean itself, tells by how much.
    """
    _checks.rank_at_least(name, feature, 2, "[batch, ..., channels]")
    x = feature.astype(jnp.float32)
    if mask is not None and mask.shape != x.shape[:1]:
        raise ValueError(
            f'batch["mask"] must have shape {x.shape[:1]}, one number for each example; got shape {mask.shape}.'
        )
    kept = jnp.ones(x.shape[:1], bool) if mask is None else mask > 0
    kept = jnp.broadcast_to(kept.reshape(-1, *[1] * (x.ndim - 1)), (*x.shape[:-1], 1)).reshape(-1, 1)
    # `where`, not a product: a padded example may be NaN.
    x = jnp.where(kept, x.reshape(-1, x.shape[-1]), 0.0)
    count = jnp.sum(kept)
    centre = jnp.sum(x, axis=0) / jnp.maximum(count, 1)
    x = jnp.where(kept, x - centre[None], 0.0)
    return count, centre, jnp.sum(x, axis=0), jnp.einsum("ni,nj->ij", x, x, precision=Precision.HIGHEST)


def _joined(before: Moments, batch: list[np.ndarray]) -> Moments:
    """The count, mean and scatter of what was seen before and one batch more."""
    count, mean, scatter = before
    more, centre, first, second = batch
    if more == 0:
        return before
    its_mean = centre + first / more
    its_scatter = second - np.outer(first, first) / more
    total = count + more
    apart = its_mean - mean
    return total, mean + apart * (more / total), scatter + its_scatter + np.outer(apart, apart) * (count * more / total)


def _leading(name: str, share: float | int, count: float, mean: np.ndarray, scatter: np.ndarray) -> Projection:
    variances, vectors = np.linalg.eigh(scatter / (count - 1))
    variances, vectors = np.maximum(variances[::-1], 0.0), vectors.T[::-1]
    if not variances.sum() > 0:
        raise ValueError(f"The network's feature {name!r} must vary; it is the same at all {int(count)} positions.")
    shares = variances / variances.sum()
    kept = min(int(np.searchsorted(np.cumsum(shares), share, side="right")) + 1, len(shares))
    largest = np.abs(vectors).argmax(axis=1)
    vectors = vectors * np.sign(vectors[np.arange(len(vectors)), largest])[:, None]
    parts = (mean, vectors[:kept], shares[:kept])
    return Projection(*(jnp.asarray(part, jnp.float32) for part in parts))
