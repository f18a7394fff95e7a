"""A network computed in another floating-point type, its weights and outputs as they are."""

from typing import Any

import jax
import jax.numpy as jnp

from kdjax._apply import run
from kdjax._types import Apply, Outputs, Rng, Tree


def computed_in(apply: Apply, dtype: Any) -> Apply:
    """The same network with parameters and inputs cast to `dtype` on the way in, and what it returns to float32.

    The optimiser goes on seeing the parameters as they are, in float32: half precision for the products, full precision
    for the sums of many small updates.

    Args:
      apply: any `Apply`.
      dtype: such as ``jnp.bfloat16``.

    Returns:
      An `Apply` of the same weights. The model_state comes back in its own types.

    Raises:
      ValueError: if `dtype` is no floating-point type.

    Example:
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {"type": jnp.zeros(len(inputs), inputs.dtype)}), model_state
      >>> outputs, _ = computed_in(network, jnp.bfloat16)(jnp.ones((2, 3)), {}, jnp.ones((4, 2)), train=False)
      >>> outputs.logits.dtype, float(outputs.logits[0, 0])
      (dtype('float32'), 2.0)

    Reference:
      Micikevicius et al., Mixed Precision Training, 2018, section 3.1 (a float32 master copy of the weights).
      https://arxiv.org/abs/1710.03740
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"dtype must be a floating-point type; got {dtype!r}.")

    def cast(params: Tree, model_state: Tree, inputs: Any, *, train: bool, rng: Rng = None) -> tuple[Outputs, Tree]:
        outputs, new_state = run(apply, _cast(params, dtype), model_state, _cast(inputs, dtype), train=train, rng=rng)
        return _cast(outputs, jnp.float32), jax.tree.map(_as, new_state, model_state)

    return cast


def _cast(tree: Tree, dtype: Any) -> Tree:
    """Floating-point leaves in `dtype`; the others, such as token numbers, as they are."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf, tree
    )


def _as(new: Any, old: Any) -> Any:
    return new.astype(old.dtype)
