"""Linear probes: what a feature knows of the classes, read off by one linear layer that is fitted after all training."""

import warnings
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.lax import Precision
from jaxtyping import Array, Float, Integer

from kdjax import _checks
from kdjax._types import AnyArray, Number

Layer = dict[str, Array]

_NEAR = 1e-6  # the largest entry of the gradient where the fit ends
_FAR = 1e-5  # and where it is said to have ended too early; float32 may not come nearer than something between


def linear_probe(
    features: Float[AnyArray, "examples dim"],
    labels: Integer[AnyArray, " examples"],
    classes: int,
    *,
    l2: Number = 1e-4,
    steps: int = 1000,
) -> Layer:
    r"""Fits multinomial logistic regression to features that stay as they are.

    With the kernel W and the bias b, the one minimum of

    $$\frac{1}{n} \sum_i -\log \operatorname{softmax}(W^\top x_i + b)_{y_i}
    + \frac{\lambda}{2} \left\lVert W \right\rVert_F^2, \qquad \textstyle\sum_c b_c = 0$$

    by L-BFGS over all examples at once, from zero: the same numbers at every call.

    Args:
      features: x, [examples, dim], such as a student's ``"embedding"`` of the training images, in inference mode.
      labels: y, whole numbers from 0 to classes − 1.
      classes: how many classes there are; one may have no example.
      l2: λ > 0. It keeps the minimum finite where the classes can be told apart without error.
      steps: how many updates there may be at most; it ends before, where no entry of the gradient is larger than 1e-6,
        measured for channels of mean 0 and mean square 1.

    Returns:
      ``{"kernel": [dim, classes], "bias": [classes]}``, float32, as a dense layer of Flax holds them: put in the place of
      a student's logits layer, they make it the probed network, to be evaluated like any other.

    Raises:
      ValueError: if shapes do not fit, a label is out of range, the features are not finite, or `l2`, `classes` or `steps`
        is out of range.

    Warns:
      RuntimeWarning: if after `steps` updates an entry of the gradient is still larger than 1e-5.

    Example:
      >>> import numpy as np
      >>> features = np.array([[-2.0, 5.0], [-1.0, 5.0], [1.0, 5.0], [2.0, 5.0]], np.float32)
      >>> probe = linear_probe(features, np.array([0, 0, 1, 1]), 2, l2=0.1)
      >>> (features @ probe["kernel"] + probe["bias"][None]).argmax(axis=1).tolist()
      [0, 0, 1, 1]

    Note:
      It is scikit-learn's ``LogisticRegression(C=1 / (l2 * examples))``. Labels reach the probe alone: where it judges a
      student that was trained without labels, fit it on the training images and measure it on the test images.

    Reference:
      Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016.
      https://arxiv.org/abs/1610.01644
    """
    _checks.rank("features", features, 2, "[examples, dim]")
    _checks.floating("features", features)
    labels = _checks.labels("labels", labels, features.shape[:1])
    _checks.positive("l2", l2)
    for name, value in (("classes", classes), ("steps", steps)):
        _checks.whole(name, value, 1)
    features = jnp.asarray(features, jnp.float32)
    if not features.size or not jnp.isfinite(features).all():
        raise ValueError(f"features must be finite numbers, of one example at least; got shape {features.shape}.")
    least, largest = int(labels.min()), int(labels.max())
    if least < 0 or largest >= classes:
        raise ValueError(f"labels must lie between 0 and {classes - 1}; got {least} to {largest}.")
    layer, slope = _fit(features, labels, classes, l2, steps)
    if slope > _FAR:
        warnings.warn(
            f"The probe is not at its minimum after {steps} steps: an entry of the gradient is {float(slope):.1g}. More "
            "steps or a larger l2 bring it nearer.",
            RuntimeWarning,
            stacklevel=2,
        )
    return layer


@partial(jax.jit, static_argnums=2)
def _fit(features: Array, labels: Array, classes: int, l2: Number, steps: Number) -> tuple[Layer, Array]:
    """The layer, and the largest entry of the last gradient."""
    # Squares of what is far from 1 might not be numbers; a power of two rounds nothing.
    size = jnp.ldexp(1.0, jnp.frexp(jnp.max(jnp.abs(features)))[1] - 1)
    x = features / size
    mean = jnp.mean(x, axis=0)
    x = x - mean[None]
    x = x - jnp.mean(x, axis=0, keepdims=True)  # a mean far from 0 is rounded by more than a small spread
    # Each channel about its mean and in units of its own, in which the valley is nearly round: of its spread, or where
    # that is small of what the penalty holds it by. The minimum is the same layer.
    penalty = jnp.sqrt(l2) / size
    unit = jnp.hypot(jnp.sqrt(jnp.mean(x * x, axis=0)), penalty)
    unit = jnp.where(unit == 0, 1.0, unit)
    x = x / unit[None]
    shares = (penalty / unit)[:, None]

    def loss(layer: Layer) -> Array:
        logits = jnp.einsum("nd,dc->nc", x, layer["kernel"], precision=Precision.HIGHEST) + layer["bias"][None]
        errors = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(errors) + 0.5 * jnp.sum((shares * layer["kernel"]) ** 2)

    optimizer = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(loss)

    def advance(carry: tuple) -> tuple:
        layer, opt_state, _, step = carry
        value, gradient = value_and_grad(layer, state=opt_state)
        updates, opt_state = optimizer.update(gradient, opt_state, layer, value=value, grad=gradient, value_fn=loss)
        return optax.apply_updates(layer, updates), opt_state, optax.tree.norm(gradient, ord=jnp.inf), step + 1

    def unfinished(carry: tuple) -> Array:
        return (carry[2] > _NEAR) & (carry[3] < steps)

    start = {"kernel": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}
    layer, _, slope, _ = jax.lax.while_loop(
        unfinished, advance, (start, optimizer.init(start), jnp.asarray(jnp.inf), 0)
    )
    kernel = layer["kernel"] / unit[:, None]
    bias = layer["bias"] - jnp.einsum("d,dc->c", mean, kernel, precision=Precision.HIGHEST)
    return {"kernel": kernel / size, "bias": bias}, slope
