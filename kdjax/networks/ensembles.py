"""Several networks as one: an ensemble of teachers is one more `Apply`, and its weights one more `Weights`."""

import math
import numbers
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Outputs, Tree, Weights

ShareOut = Callable[[Float[Array, "members batch classes"]], Float[Array, "members batch"]]


def ensemble(
    *applies: Apply, mean: str = "probabilities", shares: Sequence[float | int] | ShareOut | None = None
) -> Apply:
    """Several networks as one: their mean prediction, each one's own logits, and all their features.

    With ``mean="probabilities"`` the logits are log(Σᵢ wᵢ softmax(zᵢ)), by log-sum-exp; with ``mean="logits"``, they
    are Σᵢ wᵢ zᵢ, whose softmax is the renormalised geometric mean of the probabilities. The shares wᵢ have sum 1.

    Args:
      *applies: the members; any frameworks, the same classes in the same order.
      mean: what is averaged, ``"probabilities"`` or ``"logits"``.
      shares: wᵢ: one positive number a member, of any sum; or a function of the members' logits that gives each member's
        share in each example, such as `by_confidence`; None: all the same.

    Returns:
      An `Apply` whose params and model_state are tuples with one entry a member (`ensemble_weights` makes them). Logits
      are at least float32. Feature ``name`` of member i is ``"i/name"``, and its logits are the feature ``"i/logits"``.
      Member i draws from ``fold_in(rng, i)``.

    Raises:
      ValueError: if there are no members, `mean` is unknown, or `shares` are not one positive number a member; later, if
        entries are missing or logits differ in shape.

    Example:
      >>> def fixed(params, model_state, inputs, *, train, rng=None):
      ...     return Outputs(jnp.log(params), {}), model_state
      >>> weights = ensemble_weights(Weights(jnp.array([[0.9, 0.1]]), {}), Weights(jnp.array([[0.5, 0.5]]), {}))
      >>> outputs, _ = ensemble(fixed, fixed)(*weights, jnp.ones((1, 4)), train=False)
      >>> [round(float(p), 3) for p in jnp.exp(outputs.logits[0])]
      [0.7, 0.3]
      >>> outputs, _ = ensemble(fixed, fixed, shares=[3, 1])(*weights, jnp.ones((1, 4)), train=False)
      >>> [round(float(p), 3) for p in jnp.exp(outputs.logits[0])]
      [0.8, 0.2]

    Note:
      A loss's temperature T divides the ensemble's logits afterwards: softmax(log p̄ / T) with p̄ the mean at T = 1. That
      is not the mean of the members' softened softmaxes; with ``mean="logits"`` the order does not matter. For a term
      with each teacher of its own, match ``"teacher.0/logits"``, ``"teacher.1/logits"``, … by `on_outputs`.

    Reference:
      Hinton, Vinyals & Dean 2015, section 1 (both means as soft targets), https://arxiv.org/abs/1503.02531
    """
    if not applies:
        raise ValueError("ensemble needs at least one Apply; got none.")
    _checks.one_of("mean", mean, ("probabilities", "logits"))
    share_out = shares if callable(shares) else fixed_shares(shares, len(applies))

    def apply(
        params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: PRNGKeyArray | None = None
    ) -> tuple[Outputs, Tree]:
        for name, entries in {"params": params, "model_state": model_state}.items():
            got = len(entries) if isinstance(entries, tuple) else type(entries).__name__
            if got != len(applies):
                raise ValueError(f"{name} must be a tuple with one entry a member, {len(applies)}; got {got}.")
        said, states = [], []
        for i, (member, own_params, own_state) in enumerate(zip(applies, params, model_state, strict=True)):
            own_rng = None if rng is None else jax.random.fold_in(rng, i)
            outputs, new_state = run(member, own_params, own_state, inputs, train=train, rng=own_rng)
            said.append(outputs)
            states.append(new_state)
        return pooled(said, mean=mean, share_out=share_out), tuple(states)

    return apply


def pooled(said: Sequence[Outputs], *, mean: str, share_out: ShareOut) -> Outputs:
    """What an `ensemble` makes of its members' outputs."""
    logits = [one.logits.astype(jnp.promote_types(one.logits.dtype, jnp.float32)) for one in said]
    for i, own in enumerate(logits):
        _checks.same_shape("logits of member 0", logits[0], f"logits of member {i}", own)
    stacked = jnp.stack(logits)
    share = share_out(stacked)[..., None]
    if mean == "logits":
        together = jnp.sum(share * stacked, axis=0)
    else:
        together = jax.nn.logsumexp(jax.nn.log_softmax(stacked), axis=0, b=share)
    features = {f"{i}/{name}": feature for i, one in enumerate(said) for name, feature in one.features.items()}
    return Outputs(together, features | {f"{i}/logits": own for i, own in enumerate(logits)})


def by_confidence(logits: Float[Array, " members *batch classes"]) -> Float[Array, " members *batch"]:
    """In each example, the surer a member is, the larger its share.

    wᵢ = exp(−H(pᵢ)) / Σⱼ exp(−H(pⱼ)), with H the entropy of a member's prediction, in nats.

    Args:
      logits: the members', [members, ..., classes].

    Returns:
      Shares, [members, ...], of sum 1 over the members. exp(−H) is one over the number of classes that a member in
      effect wavers between: one that is sure outweighs one that guesses among C classes C times.

    Example:
      >>> sure, guess = [10.0, 0.0, -10.0], [0.0, 0.0, 0.0]
      >>> by_confidence(jnp.array([[sure], [guess]]))[:, 0].round(2).tolist()
      [0.75, 0.25]

    Note:
      It asks for no labels, so that a cached or unlabelled set will do. A confident error gets a large share too; weights
      by the cross-entropy with the labels (below) see those, and need labels where the teacher is run.

    Reference:
      For weights by confidence of several teachers, there from labels: Zhang, Chen and Wang, 2022,
      https://arxiv.org/abs/2201.00007
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    probabilities = jnp.exp(log_probabilities)
    # A class that is excluded, of probability 0, adds nothing: p log p goes to 0.
    parts = jnp.where(probabilities > 0, probabilities * log_probabilities, 0.0)
    return jax.nn.softmax(jnp.sum(parts, axis=-1), axis=0)


def ensemble_weights(*weights: Weights) -> Weights:
    """The members' weights as the one `Weights` of their `ensemble`, in the same order."""
    return Weights(tuple(member.params for member in weights), tuple(member.model_state for member in weights))


def fixed_shares(shares: Sequence[float | int] | None, members: int) -> ShareOut:
    """The same shares in every example, of sum 1; None: all alike."""
    values = [1.0] * members if shares is None else list(shares)
    good = all(isinstance(value, numbers.Real) and value > 0 and math.isfinite(value) for value in values)
    if len(values) != members or not good:
        raise ValueError(f"shares must be {members} finite numbers greater than 0, one a member; got {shares!r}.")
    total = sum(values)

    def same_everywhere(logits: Array) -> Array:
        own = jnp.array([value / total for value in values], logits.dtype)
        return jnp.broadcast_to(own.reshape(-1, *[1] * (logits.ndim - 2)), logits.shape[:-1])

    return same_everywhere
