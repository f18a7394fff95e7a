"""How one network is trained, as a value, and what can be known of it before anything is: shapes, and a digest."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kdjax import _checks, _trees, training
from kdjax._apply import run
from kdjax._types import Apply, Weights
from kdjax.checkpoints import load_weights, read_description
from kdjax.connectors import Connector, init_beside
from kdjax.metrics import agreeing
from kdjax.objectives import Objective, schedules
from kdjax.runs._peers import begun_beside, check_peer, make_step_beside
from kdjax.training import init_state, make_epoch, make_evaluation, make_train_step, skip_non_finite
from kdjax.training.compiler import TABLE, Options
from kdjax.training.divergence import at_rate, check_rate_is_free

Init = Callable[..., Weights]
Diverged = Literal["stop", "skip", "lower_rate"]


@dataclass(frozen=True)
class Recipe:
    """How one network is trained.

    Attributes:
      network: a pair (init, apply), as of `kdjax.networks.from_linen`: ``init(rng, inputs) -> Weights``, and an `Apply`.
        `init` gets another key for each seed. `kdjax.training.jit_init` makes it faster where it is pure.
      objective: what is minimised, from `weighted_sum`.
      optimizer: a function from the number of steps to an optax transformation, so that a schedule can end with them; one
        inside `kdjax.training.accumulate` counts updates, of several steps each.
      epochs, batch_size: passes over the training data, and examples a step.
      connectors: learnt parts between this network and its teacher, by name; they stay behind when it leaves.
      name: for people and records.
      learning_rate: the one that the optimizer is built with, to be named if training diverges; None: not known.
      peer: how a second network is trained at the same time, from the start: each is then the other's teacher, as in
        `kdjax.training.make_mutual_step`. It sees the same batches for as many epochs, and stays behind.
      compile_for: which networks the compiler is set for, of `kdjax.training.compiler_options`.
    """

    network: tuple[Init, Apply]
    objective: Objective
    optimizer: Callable[[int], optax.GradientTransformation]
    epochs: int
    batch_size: int
    connectors: Mapping[str, Connector] | None = None
    name: str = ""
    learning_rate: float | None = None
    peer: "Recipe | None" = None
    compile_for: str | None = None

    def __post_init__(self) -> None:
        pair = self.network
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(map(callable, pair))):
            raise ValueError(
                "network must be a pair of functions (init, apply), with init(rng, inputs) -> Weights; what from_nnx and "
                f"from_equinox return, (weights, apply), has one start for all seeds; got {_kind(pair)}."
            )
        if not isinstance(self.objective, Objective):
            raise ValueError(f"objective must be one of weighted_sum; got {_kind(self.objective)}.")
        if isinstance(self.optimizer, tuple) or not callable(self.optimizer):
            raise ValueError(
                "optimizer must be a function from the number of updates to an optax transformation, such as "
                f"lambda updates: optax.adam(1e-3); got {_kind(self.optimizer)}."
            )
        _checks.whole("epochs", self.epochs, 1)
        _checks.whole("batch_size", self.batch_size, 1)
        if self.learning_rate is not None:
            _checks.positive("learning_rate", self.learning_rate)
        if self.compile_for is not None:
            _checks.one_of("compile_for", self.compile_for, (*TABLE,))
        if self.peer is not None:
            check_peer(self, self.peer)

    @property
    def learners(self) -> tuple["Recipe", ...]:
        """Those that learn in one step: this network, and its peer if it has one."""
        return (self,) if self.peer is None else (self, self.peer)


class Trainer(NamedTuple):
    """A recipe and its compiled functions, made once and used for every seed."""

    recipe: Recipe
    begin: Callable[[Weights, Any, Any], Any]  # weights, key and inputs to the state before the first update
    init: Init
    apply: Apply
    step: Callable[..., Any]
    epoch: Callable[..., Any]
    evaluate: Callable[..., dict[str, Any]]
    epoch_at: Callable[[float], Callable[..., Any]]  # of the learning rate times a number
    diverged: Diverged
    options: Mapping[str, Any]  # of the compiler

    def logits_shape(self, inputs: Any) -> tuple[int, ...]:
        """Of all its logits for these inputs; nothing is computed."""

        def logits(inputs: Any) -> Any:
            return run(self.apply, *self.init(jax.random.key(0), first_of(inputs)), inputs, train=False)[0].logits

        return tuple(jax.eval_shape(logits, inputs).shape)


def prepare(
    recipe: Recipe,
    examples: int,
    *,
    teacher_apply: Apply | None = None,
    mesh: Mesh | None = None,
    measures: Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    diverged: Diverged = "stop",
    compiler_options: Options = None,
) -> Trainer:
    """Compiles nothing yet; what it returns compiles at its first call, and only then. No options: the recipe's."""
    if recipe.batch_size > examples:
        raise ValueError(f"batch_size must be at most the {examples} examples; got {recipe.batch_size}.")
    options = compiler_options
    if options is None:
        options = training.compiler_options(next((one.compile_for for one in recipe.learners if one.compile_for), None))
    init, apply = recipe.network
    updates = recipe.epochs * (examples // recipe.batch_size)
    optimizers = [one.optimizer(updates) for one in recipe.learners]

    def begin(weights: Weights, rng: Any, inputs: Any) -> Any:
        state = init_state(weights, optimizers[0], rng)
        if diverged == "lower_rate":
            check_rate_is_free(state.opt_state)
        return (
            state if recipe.peer is None else (state, begun_beside(recipe.peer.network[0], optimizers[1], rng, inputs))
        )

    def step_of(optimizers: list[Any]) -> Any:
        if recipe.peer is None:
            (own,) = optimizers
            step = make_train_step(apply, teacher_apply, own, connectors=recipe.connectors, ignore_label=ignore_label)
        else:
            step = make_step_beside([apply, recipe.peer.network[1]], optimizers, ignore_label)
        return skip_non_finite(step) if diverged == "skip" else step

    def epoch_of(step: Any) -> Callable[..., Any]:
        epoch: Callable[..., Any] = make_epoch(step, mesh=mesh, compiler_options=options)
        return epoch

    def epoch_at(rate: float) -> Callable[..., Any]:
        return epoch_of(step_of([at_rate(one, rate) for one in optimizers]))

    step = step_of(optimizers)
    alone, beside = (
        make_evaluation(apply, measures=own, ignore_label=ignore_label, mesh=mesh, compiler_options=options)
        for own in (measures, None if measures is None else {"agreement": agreeing, **measures})
    )

    def evaluate(weights: Weights, arrays: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = (beside if "teacher" in arrays else alone)(weights, arrays)
        return {name: value.tolist() if np.ndim(value) else value for name, value in found.items()}

    return Trainer(recipe, begin, init, apply, step, epoch_of(step), evaluate, epoch_at, diverged, options)


def digest_of_training(
    name: str, trainers: Mapping[str, Trainer], arrays: Mapping[str, Any], classes: int | None
) -> str:
    """Of the traced start and update, so that what cannot be trained is found before anything is.

    Two that differ train otherwise, in network, optimizer, schedules or losses. The objective's numbers are not in it:
    they are arguments of the update.

    Args:
      name: whose.
      trainers: of `prepare`; where `name` is ``"distilled"``, its teacher is ``"teacher"``.
      arrays: the training data by name.
      classes: of the data; None where they name none.

    Raises:
      ValueError: if the network has fewer logits than there are classes, or as the network, the step and the connectors
        say.
    """
    try:
        return _digest(trainers[name], arrays, classes, trainers["teacher"] if name == "distilled" else None)
    except ValueError as error:
        raise ValueError(f"{name} cannot be trained on these data: {error}") from error


def _digest(trainer: Trainer, arrays: Mapping[str, Any], classes: int | None, teacher: Trainer | None) -> str:
    recipe = trainer.recipe
    batch = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct((recipe.batch_size, *array.shape[1:]), array.dtype), dict(arrays)
    )
    batch["indices"] = jax.ShapeDtypeStruct((recipe.batch_size,), np.int32)

    def start(key: Any, inputs: Any) -> tuple[Any, Any, Any]:
        first = first_of(inputs)
        weights = trainer.init(key, first)
        outputs, _ = run(trainer.apply, *weights, inputs, train=False)
        its: Any = None if teacher is None else teacher.init(key, first)
        if recipe.connectors is not None and teacher is not None:
            weights = init_beside(recipe.connectors, key, trainer.apply, weights, teacher.apply, its, first)
        return trainer.begin(weights, key, first), its, outputs.logits

    given = (jax.random.key(0), batch["inputs"])
    state, its, logits = jax.eval_shape(start, *given)
    if classes is not None and logits.shape[-1] < classes:
        raise ValueError(
            f"network must return a logit for each of the {classes} classes of the data; got {logits.shape}."
        )
    begun = _trees.digest_of_program(start, *given)
    its = its if recipe.peer is None else None
    return begun + _trees.digest_of_program(trainer.step, state, its, objectives_of(recipe), batch)


def given_teacher(given: Path | Weights, trainer: Trainer, about: Mapping[str, Any], inputs: Any) -> Weights:
    """A teacher's weights, of this network; saved ones trained on these data, as far as their description goes."""
    like = parameters(trainer, first_of(inputs))
    if isinstance(given, Weights):
        weights, path = given, "given_teacher"
        signatures = {name: _trees.signature(leaf) for name, leaf in _trees.by_path(weights).items()}
        if lines := _trees.differences(signatures, like):
            raise ValueError(f"given_teacher must be of the teacher's network: {_trees.listed(lines, separator='; ')}.")
    else:
        check_description("teacher", given, about)
        weights, path = load_weights(given, like), str(given)
    for name, leaf in jax.tree.leaves_with_path(weights):
        # A mask of the model_state may be infinite from the first.
        if not (jnp.isfinite(leaf) | (jnp.isinf(leaf) & (name[0].name == "model_state"))).all():
            raise ValueError(
                f"teacher must hold finite numbers; {path} has NaN or infinity in {jax.tree_util.keystr(name)}."
            )
    return weights


def check_description(name: str, path: Path, about: Mapping[str, Any]) -> None:
    """Refuses saved weights that say of themselves something else; what they do not say, older ones, passes."""
    saved = read_description(path)
    for key, value in about.items():
        if saved.get(key, value) != value:
            raise ValueError(
                f"{name} must have been trained with {key} {value!r:.199}; {path} says {saved[key]!r:.199}."
            )


def first_of(inputs: Any) -> Any:
    """The first example, as a batch of one."""
    return jax.tree.map(lambda array: array[:1], inputs)


def parameters(trainer: Trainer, inputs: Any) -> Weights:
    """The shapes of the network's weights."""
    shapes: Weights = jax.eval_shape(trainer.init, jax.random.key(0), inputs)
    return shapes


def described(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe a resumption can compare: names and numbers, as text."""
    objective = {
        name: f"{recipe.objective.weights[name]!r} × {term!r}" for name, term in recipe.objective.terms.items()
    }
    connectors = sorted(recipe.connectors or {})
    peer = {} if recipe.peer is None else {"peer": described(recipe.peer)}
    return peer | {
        "network": recipe.name,
        "objective": {name: _wherever(text) for name, text in objective.items()},
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "connectors": connectors,
    }


def objectives_of(recipe: Recipe) -> Any:
    """What the recipe's step takes: its objective; with a peer one for each."""
    return recipe.objective if recipe.peer is None else tuple(one.objective for one in recipe.learners)


def numbers_at(recipe: Recipe, step: int) -> dict[str, float]:
    """Each term's hyper-parameters that are one number, such as T, as they are in the update of that step."""
    found = {}
    for name, term in recipe.objective.terms.items():
        for what, given in getattr(getattr(term, "term", term), "numbers", {}).items():
            value = schedules.at(given, step)
            if np.ndim(value) == 0:
                found[f"{name} {what}"] = float(value)
    return found


def _kind(value: Any) -> str:
    return repr(value) if isinstance(value, int | float | str | None) else type(value).__name__


def _wherever(text: str) -> str:
    """The same in every process and in every Python: where a function is in memory, and the module of a Partial, are not."""
    return re.sub(r" at 0x[0-9a-f]+", "", text).replace("jax.tree_util.Partial(", "Partial(")
