"""A connector that learns the temperature against the student."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, PRNGKeyArray

from kdjax import _checks
from kdjax._types import Number, Outputs, Tree, Weights
from kdjax.connectors._connector import Added, Connector, Seen, read_places


def learnt_temperature(
    strength: Number | Callable[[Array], Any],
    *,
    initial: Number = 4.0,
    low: Number = 1.0,
    high: Number = 21.0,
    width: int | None = None,
) -> Connector:
    r"""A temperature, one for all or each example's own, learnt to make the task harder while the student learns it.

    $$\tau = \tau_{\text{low}} + (\tau_{\text{high}} - \tau_{\text{low}}) \, \sigma(\theta), \qquad
    \frac{\partial L}{\partial \theta} \;\leftarrow\; -\lambda \, \frac{\partial L}{\partial \theta}$$

    Adds ``name`` to the student's features: a single number, or with `width` one for each example or position, for which θ
    is what two dense layers make of both networks' predictions. A term reads it in the place of its own temperature:
    ``on_outputs(soft_target_kl, "student.logits", "teacher.logits", temperature="student.NAME")``.

    The optimizer that lowers the loss by the student's parameters raises it by θ, since θ gets its gradient reversed. λ
    grows from 0, so that the task begins easy: the curriculum.

    Args:
      strength: λ ≥ 0, a number or a function of the steps since the connector was made, such as
        ``schedules.cosine(0.0, 1.0, steps=10 * updates_per_epoch)``. At 0 the temperature stays.
      initial: τ at the start, between `low` and `high`.
      low: the least τ, above 0.
      high: the largest.
      width: of the layer between predictions and θ, for a temperature of each example; None: one for all.

    Returns:
      A `Connector`. Its params: ``raw``, θ, or with `width` also ``hidden`` and ``out``, the layers' weights, which begin
      with τ = `initial` for all; its model_state: ``step``, how many steps it has seen.

    Raises:
      ValueError: λ is less than 0 at the start, `low` or `high` is not a finite number above 0, `initial` does not lie
        between them, or `width` is not a whole number above 0.

    Example:
      >>> from kdjax import schedules
      >>> harder = learnt_temperature(schedules.cosine(0.0, 1.0, steps=10), initial=4.0)
      >>> nothing = Outputs(jnp.zeros((2, 3)), {})
      >>> seen = Seen(nothing, None, {}, True, None)
      >>> params, model_state = harder.init(jax.random.key(0), nothing, nothing)
      >>> def temperature(params, step):
      ...     return harder.apply(params, {"step": step}, seen)[0][""]
      >>> float(temperature(params, 0).round(4))
      4.0
      >>> [round(float(jax.grad(temperature)(params, step)["raw"]), 4) for step in (0, 5, 10)]  # reversed
      [-0.0, -1.275, -2.55]

    Note:
      The paper's default is λ by half a cosine wave from 0 to 1 over 10 epochs. Common code starts at θ = 1 between 1 and
      21, which is ``initial=15.62``.

      θ is trained by the student's own optimizer. The paper's is SGD; Adam divides by the gradient's size and so by λ
      too, and weight decay pulls τ to the middle of its range: give θ another with ``optax.partition``.

      The reversal ends at the layers: what they read of the student sends no gradient to it.

    Reference:
      Li et al., Curriculum Temperature for Knowledge Distillation, 2023, section 3.2, the global and the instance-wise
      version. https://arxiv.org/abs/2211.16231
    """
    _checks.between("strength", strength(jnp.zeros((), jnp.int32)) if callable(strength) else strength, 0.0, math.inf)
    _checks.positive("low", low)
    _checks.positive("high", high)
    if not low < initial < high:
        raise ValueError(f"initial must lie between low and high, {low!r} and {high!r}; got {initial!r}.")

    if width is not None:
        _checks.whole("width", width, 1)
    reads = () if width is None else ("student.logits", "teacher.logits")

    def init(rng: PRNGKeyArray, of_student: Outputs, of_teacher: Outputs) -> Weights:
        share = (initial - low) / (high - low)
        params = {"raw": jnp.asarray(jnp.log(share / (1.0 - share)), jnp.float32)}
        if width is not None:
            both = sum(logits.shape[-1] for logits in read_places(reads, of_student, of_teacher))
            params["hidden"] = jax.nn.initializers.he_normal()(rng, (both, width), jnp.float32)
            params["out"] = jnp.zeros(width, jnp.float32)
        return Weights(params, {"step": jnp.zeros((), jnp.int32)})

    def theta(params: Tree, seen: Seen) -> Array:
        if width is None:
            raw: Array = params["raw"]
            return raw
        said = lax.stop_gradient(read_places(reads, seen.student, seen.teacher))
        shares = jnp.concatenate([jax.nn.softmax(logits.astype(jnp.float32), axis=-1) for logits in said], axis=-1)
        return params["raw"] + jax.nn.relu(shares @ params["hidden"]) @ params["out"]

    def apply(params: Tree, model_state: Tree, seen: Seen) -> Added:
        step = model_state["step"]
        raw = _reversed(theta(params, seen), strength(step) if callable(strength) else strength)
        temperature = low + (high - low) * jax.nn.sigmoid(raw)
        return {"": temperature}, {}, {"step": step + 1} if seen.train else model_state

    return Connector(init, apply, reads)


def _reversed(value: Array, strength: Number) -> Array:
    """The same value, in every bit, whose gradient is −strength times what arrives."""
    still = lax.stop_gradient(value)
    return still - strength * (value - still)
