"""Parts of a network that stay as they are: no update, no momentum, no weight decay, no moving statistics.

Parts are named by regular expressions over paths such as ``stage1/norm/scale``. A pattern must match whole names, one or
several in a row, anywhere in a path: ``"stage1"`` is all of stage 1 and nothing of ``stage10``; ``"stage[12]"`` two
stages; ``"bias"`` every bias; ``"^student"`` what begins with it. The same word names a part's parameters and statistics.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from kdjax import _leaves, _paths
from kdjax._types import AnyArray, Apply, Outputs, Tree


def freeze(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer for all parameters but those that are named, which keep their bits.

    A frozen parameter is unknown to `optimizer`: it has no update, no momentum, no weight decay and no part in a clipped
    global norm, and the optimizer's state holds no array of its shape. Under jit, what its gradient alone needs is not
    computed.

    Args:
      optimizer: any optax transformation.
      *patterns: the frozen parts, as the module says.

    Returns:
      An optax transformation of the whole tree of parameters.

    Raises:
      ValueError: if there is no pattern, or one is no regular expression; in ``init`` and ``update``, if one matches
        nothing, with the near misses.

    Example:
      >>> params = {"stage1": {"kernel": jnp.ones(3)}, "head": {"kernel": jnp.ones(2), "bias": jnp.ones(1)}}
      >>> optimizer = freeze(optax.adamw(0.1, weight_decay=0.5), "stage1", "bias")
      >>> state = optimizer.init(params)
      >>> [leaf.shape for leaf in jax.tree.leaves(state)]  # the step's number and head/kernel's two moments
      [(), (2,), (2,)]
      >>> updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
      >>> moved = optax.apply_updates(params, updates)
      >>> [bool((moved[name]["kernel"] != 1).all()) for name in ("stage1", "head")], moved["head"]["bias"].tolist()
      ([False, True], [1.0])
    """
    return _partition(optimizer, patterns, of_named="frozen", of_others="trained")


def train_only(optimizer: optax.GradientTransformation, *patterns: str) -> optax.GradientTransformationExtraArgs:
    """The optimizer for the parameters that are named alone; all others keep their bits, as under `freeze`.

    Args:
      optimizer: any optax transformation.
      *patterns: the trained parts, as the module says.

    Returns:
      An optax transformation of the whole tree of parameters.

    Raises:
      ValueError: as `freeze`.

    Example:
      >>> params = {"stage1": jnp.ones(3), "logits": jnp.ones(2)}
      >>> optimizer = train_only(optax.sgd(0.5), "logits")
      >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
      >>> jax.tree.map(lambda leaf: leaf.tolist(), optax.apply_updates(params, updates))
      {'logits': [0.5, 0.5], 'stage1': [1.0, 1.0, 1.0]}
    """
    return _partition(optimizer, patterns, of_named="trained", of_others="frozen")


def hold_state(apply: Apply, *patterns: str) -> Apply:
    """The same network, whose model_state stays where it is named: BatchNorm's statistics of frozen parts.

    Args:
      apply: a network.
      *patterns: parts of the model_state, as the module says.

    Returns:
      An `Apply` with the same outputs.

    Raises:
      ValueError: if there is no pattern, or one is no regular expression; when called, if one matches nothing, with the
        near misses.

    Example:
      >>> def counting(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(inputs @ params, {}), {name: seen + 1 for name, seen in model_state.items()}
      >>> _, after = hold_state(counting, "stage1")(jnp.eye(2), {"stage1": 3, "stage2": 3}, jnp.eye(2), train=True)
      >>> int(after["stage1"]), int(after["stage2"])
      (3, 4)

    Note:
      While training, BatchNorm still normalises by the batch and not by the statistics that are held. A part that is to
      act as it does in inference is run with ``train=False``.
    """
    _check(patterns)

    def held(
        params: Tree, model_state: Tree, inputs: AnyArray, *, train: bool, rng: PRNGKeyArray | None = None
    ) -> tuple[Outputs, Tree]:
        outputs, new = apply(params, model_state, inputs, train=train, rng=rng)
        named = _paths.chosen("patterns", patterns, _leaves.by_path(model_state))
        old_leaves, new_leaves = _leaves.by_path(model_state), _leaves.by_path(new)
        if old_leaves.keys() != new_leaves.keys():
            raise ValueError(
                "model_state must keep its tree, for parts of it to stay; the network made "
                f"{_leaves.listed(list(new_leaves))} of {_leaves.listed(list(old_leaves))}."
            )
        kept = [old_leaves[name] if name in named else leaf for name, leaf in new_leaves.items()]
        return outputs, jax.tree.unflatten(jax.tree.structure(new), kept)

    return held


def _partition(
    optimizer: optax.GradientTransformation, patterns: Sequence[str], *, of_named: str, of_others: str
) -> optax.GradientTransformationExtraArgs:
    _check(patterns)

    def labels(params: Tree) -> Tree:
        paths = list(_leaves.by_path(params))
        named = _paths.chosen("patterns", patterns, paths)
        each = [of_named if path in named else of_others for path in paths]
        return jax.tree.unflatten(jax.tree.structure(params), each)

    nothing = optax.stateless(lambda updates, params: jax.tree.map(_no_change, updates))
    partitioned: optax.GradientTransformationExtraArgs = optax.partition(
        {"trained": optimizer, "frozen": nothing}, labels
    )
    return partitioned


def _no_change(update: jax.Array) -> jax.Array:
    # x + (−0) is x for every x; −0 + 0 is +0, another number in bits.
    return jnp.full_like(update, -0.0)


def _check(patterns: Sequence[str]) -> None:
    if not patterns:
        raise ValueError("patterns must name at least one part, such as 'stage1'; got none.")
    for pattern in patterns:
        _paths.check("patterns", pattern)
