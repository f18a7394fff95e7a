"""How connectors stand beside a student: made with it, run after it, left behind by it."""

import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PRNGKeyArray

from kdjax import _checks
from kdjax._apply import run
from kdjax._types import Apply, Batch, Outputs, TrainState, Tree, Weights
from kdjax.connectors._connector import Connector, Seen, read_places
from kdjax.connectors.bricks import join


def init_beside(
    connectors: Mapping[str, Connector],
    rng: PRNGKeyArray,
    student_apply: Apply,
    student: Weights,
    teacher_apply: Apply | None,
    teacher: Weights | Outputs,
    inputs: Any,
) -> Weights:
    """Makes the connectors' weights and puts them beside the student's.

    Shapes are inferred by `jax.eval_shape`: neither network is run.

    Args:
      connectors: by the name under which terms read what they add.
      rng: a key. Each connector draws from it and its own name: another one beside it changes nothing.
      student_apply: the student.
      student: its weights.
      teacher_apply: the teacher; None where `teacher` is `Outputs`.
      teacher: its weights; or the cached `Outputs` of a batch.
      inputs: a batch of any size, as arrays or as `jax.ShapeDtypeStruct`.

    Returns:
      Weights whose params and model_state are ``{"student": …, "connectors": {name: …}}``, for `kdjax.init_state`.

    Raises:
      ValueError: a name is a feature already, a connector asks for a feature that is not there, or shapes do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import optax
      >>> from kdjax import connectors, init_state, losses, make_train_step, on_feature, weighted_sum
      >>> def network(params, model_state, inputs, *, train, rng=None):
      ...     embedding = inputs @ params
      ...     return Outputs(embedding[:, :3], {"embedding": embedding}), model_state
      >>> student, teacher = Weights(jnp.ones((4, 5)), {}), Weights(jnp.ones((4, 8)), {})
      >>> inputs = jax.random.normal(jax.random.key(0), (6, 4))
      >>> beside = {"hint": connectors.regressor("embedding")}
      >>> weights = connectors.init_beside(beside, jax.random.key(1), network, student, network, teacher, inputs)
      >>> weights.params["connectors"]["hint"]["layer1"]["kernel"].shape
      (5, 8)
      >>> optimizer = optax.sgd(0.01)
      >>> step = make_train_step(network, network, optimizer, connectors=beside)
      >>> state = init_state(weights, optimizer, jax.random.key(2))
      >>> objective = weighted_sum(hint=(1.0, on_feature(losses.hint, "hint")))
      >>> state, metrics = step(state, teacher, objective, {"inputs": inputs})
      >>> connectors.student_of(state).params.shape
      (4, 5)
    """
    student_shapes = _shapes(student_apply, student, inputs)
    if teacher_apply is not None:
        teacher_shapes = _shapes(teacher_apply, teacher, inputs)
    elif isinstance(teacher, Outputs):
        teacher_shapes = jax.eval_shape(lambda outputs: outputs, teacher)
    else:
        raise ValueError(f"teacher must be cached Outputs where teacher_apply is None; got {type(teacher).__name__}.")
    for name in connectors:
        for who, outputs in (("student", student_shapes), ("teacher", teacher_shapes)):
            _refuse_taken(who, outputs.features, name, name)
    made = {}
    for name, connector in connectors.items():
        read_places(connector.reads, student_shapes, teacher_shapes)
        made[name] = connector.init(_own_key(rng, name), student_shapes, teacher_shapes)
    return join({"student": student, "connectors": join(made)})


def connect(
    connectors: Mapping[str, Connector],
    params: Tree,
    model_state: Tree,
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    *,
    train: bool,
    rng: PRNGKeyArray | None = None,
) -> tuple[Outputs, Outputs | None, Tree]:
    """Runs connectors on both networks' outputs and adds what they give to the features. The train step calls this.

    Args:
      connectors: by name. Each sees the networks' own outputs, not the other connectors'.
      params: the connectors' params by name.
      model_state: the connectors' model_state by name.
      student: the student's outputs for the whole batch.
      teacher: the teacher's; None where no connector reads it.
      batch: the whole batch.
      train: whether statistics are of the batch, and memories move on.
      rng: the step's key. Each connector draws from it and its own name.

    Returns:
      Both outputs with features ``name`` or ``name_suffix`` added, and the new model_state.

    Raises:
      ValueError: a name is a feature already, or as a connector says.
    """
    features = {"student": dict(student.features), "teacher": {} if teacher is None else dict(teacher.features)}
    states = {}
    for name, connector in connectors.items():
        for part, tree in (("params", params), ("model_state", model_state)):
            if name not in tree:
                raise ValueError(
                    f"{part} must hold the connector {name!r}; it has {sorted(tree)}. Make it with init_beside."
                )
        own_key = None if rng is None else _own_key(rng, name)
        seen = Seen(student, teacher, batch, train, own_key)
        *added, states[name] = connector.apply(params[name], model_state[name], seen)
        for who, more in zip(features, added, strict=True):
            for suffix, value in more.items():
                full = f"{name}_{suffix}" if suffix else name
                _refuse_taken(who, features[who], full, name)
                features[who][full] = value
    return (
        Outputs(student.logits, features["student"]),
        None if teacher is None else Outputs(teacher.logits, features["teacher"]),
        states,
    )


def student_of(trained: TrainState | Weights, *names: str) -> Weights:
    """The student without its connectors, or with those that are named.

    Args:
      trained: a training state, of which these are the weights to evaluate, as of `kdjax.training.weights_of`; or weights as
        `init_beside` makes them.
      *names: connectors to keep, for `through`; then the weights are again as `init_beside` makes them.

    Raises:
      ValueError: there are no connectors to leave behind, or none of that name.

    Example:
      >>> beside = Weights({"student": {"w": 1}, "connectors": {"hint": {"v": 2}, "vid": {}}},
      ...                  {"student": {}, "connectors": {"hint": {}, "vid": {}}})
      >>> student_of(beside)
      Weights(params={'w': 1}, model_state={})
      >>> student_of(beside, "hint").params
      {'student': {'w': 1}, 'connectors': {'hint': {'v': 2}}}
    """
    _be_beside(trained)
    own = evaluated(trained)
    alone = Weights(own.params["student"], own.model_state["student"])
    kept = {name: connector_of(trained, name) for name in names}
    return join({"student": alone, "connectors": join(kept)}) if names else alone


def connector_of(trained: TrainState | Weights, name: str) -> Weights:
    """One connector's weights, such as a trained paraphraser's.

    Args:
      trained: as in `student_of`.
      name: the connector's.

    Raises:
      ValueError: there is none of that name.
    """
    _be_beside(trained)
    _checks.one_of("name", name, sorted(trained.params["connectors"]))
    trained = evaluated(trained)
    return Weights(trained.params["connectors"][name], trained.model_state["connectors"][name])


def evaluated(trained: TrainState | Weights) -> Weights:
    """The weights to evaluate, where an optimizer trains at others, as one that is schedule-free, or sam in two steps."""
    if isinstance(trained, Weights):
        return trained
    return Weights(_evaluated_at(trained.opt_state, trained.params), trained.model_state)


def _evaluated_at(opt_state: Any, params: Tree) -> Tree:
    for part in jax.tree.leaves(opt_state, is_leaf=lambda part: _kept_by(part) is not None):
        if _kept_by(part) is not None:
            params = _evaluated_by(part, params)
            if isinstance(part, optax.contrib.SAMState):  # the optimizer inside may be schedule-free
                params = _evaluated_at(part.opt_state, params)
    return params


def _kept_by(part: Any) -> Tree:
    """The params that a part of an optimizer's state holds beside those that are trained, or None."""
    if isinstance(part, optax.contrib.ScheduleFreeState):
        return part.z
    return part.cache if isinstance(part, optax.contrib.SAMState) else None


def _evaluated_by(part: Any, params: Tree) -> Tree:
    def of(kept: Any, own: Any) -> Any:
        if _is_masked(kept):  # another part of the optimizer, or none, moves it
            return own
        if isinstance(part, optax.contrib.ScheduleFreeState):
            average = optax.contrib.schedule_free_eval_params(part._replace(z=kept), own)
            return jnp.where(own == kept, own, average.astype(own.dtype))  # not rounded where nothing was trained yet
        synchronised = part.steps_since_sync == 0
        return jnp.where(synchronised.reshape(synchronised.shape + (1,) * (own.ndim - synchronised.ndim)), own, kept)

    return jax.tree.map(of, _kept_by(part), params, is_leaf=_is_masked)


def _is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def through(student_apply: Apply, connectors: Mapping[str, Connector], name: str) -> Apply:
    """The student seen through a connector that has logits of its own, as one network: to evaluate and to export.

    Args:
      student_apply: the student.
      connectors: the mapping that it was trained with.
      name: which of them gives the logits: a `projector` or a `shared_classifier`.

    Returns:
      An `Apply` of `student_of(state, name)`, or of any weights that hold student and connector. No teacher is run.

    Raises:
      ValueError: there is no such connector; later, if it has no logits or cannot do without the teacher.

    Example:
      See `projector`.
    """
    _checks.one_of("name", name, sorted(connectors))
    connector = connectors[name]

    def apply(
        params: Tree, model_state: Tree, inputs: Tree, *, train: bool, rng: PRNGKeyArray | None = None
    ) -> tuple[Outputs, Tree]:
        outputs, own = run(student_apply, params["student"], model_state["student"], inputs, train=train, rng=rng)
        seen, _, states = connect(
            {name: connector}, params["connectors"], model_state["connectors"], outputs, None, {}, train=train, rng=rng
        )
        if f"{name}_logits" not in seen.features:
            raise ValueError(f"The connector {name!r} has no logits; it adds {sorted(seen.features)}.")
        new_state = {"student": own, "connectors": {**model_state["connectors"], **states}}
        return Outputs(seen.features[f"{name}_logits"], seen.features), new_state

    return apply


def _own_key(rng: PRNGKeyArray, name: str) -> PRNGKeyArray:
    # By name, not by place: stable, and far from the small numbers by which a student folds its examples in.
    return jax.random.fold_in(rng, zlib.crc32(name.encode()))


def _shapes(apply: Apply, weights: Any, inputs: Any) -> Outputs:
    return jax.eval_shape(partial(run, apply, train=False), weights.params, weights.model_state, inputs)[0]


def _refuse_taken(who: str, features: Mapping[str, Any], full: str, name: str) -> None:
    if full in features or full == "logits":
        raise ValueError(
            f"The connector {name!r} would add {full!r} to the {who}'s features, and {full!r} is there already; "
            "choose another name."
        )


def _be_beside(trained: TrainState | Weights) -> None:
    if not (isinstance(trained.params, Mapping) and {*trained.params} == {"student", "connectors"}):
        raise ValueError(
            "The params must be a student's and connectors', {'student': …, 'connectors': …}, as init_beside makes them; "
            f"got {sorted(trained.params) if isinstance(trained.params, Mapping) else type(trained.params).__name__}."
        )
