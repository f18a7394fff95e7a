"""Clipping of gradients that hangs on a schedule, such as the temperature's: large gradients while the targets are soft."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from kdjax import _checks
from kdjax._types import Number


def clip_while(
    max_norm: Number, value: Number | Callable[[jax.Array], Any], *, above: Number
) -> optax.GradientTransformationExtraArgs:
    """Scales gradients down to a global norm of `max_norm` at those steps at which a schedule is larger than `above`.

    Steps are counted from 0 by updates, as the objective's schedules count them: given the same schedule, both see the same
    value. In a chain it stands before what uses the gradients, and inside of `kdjax.freezing`, where frozen parts have no
    share in the norm.

    Args:
      max_norm: the largest norm of all gradients together, above 0.
      value: a function of the step, such as the term's own temperature schedule; a number decides for the whole run.
      above: the bound that `value` must exceed.

    Returns:
      An optax transformation. Its state holds the number of the step and nothing else.

    Raises:
      ValueError: `max_norm` is not a finite number above 0, or `above` or a number `value` is not finite.

    Example:
      >>> import jax.numpy as jnp
      >>> from kdjax import schedules
      >>> temperature = schedules.linear(4.0, 2.0, steps=2)  # 4, 3, 2
      >>> clipping = clip_while(1.0, temperature, above=2.5)
      >>> state = clipping.init(jnp.zeros(2))
      >>> for _ in range(3):
      ...     clipped, state = clipping.update(jnp.array([3.0, 4.0]), state)
      ...     print([round(float(part), 3) for part in clipped])
      [0.6, 0.8]
      [0.6, 0.8]
      [3.0, 4.0]
    """
    _checks.positive("max_norm", max_norm)
    _checks.finite("above", above)
    if not callable(value):
        _checks.finite("value", value)

    def holds(step: jax.Array) -> Any:
        return (value(step) if callable(value) else value) > above

    transform: optax.GradientTransformationExtraArgs = optax.conditionally_transform(
        optax.clip_by_global_norm(max_norm), holds
    )
    return transform
