"""How every network of hinton2015.py is trained: dense layers, the weight constraint, jitter, and one way to fit all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console

from experiments._setting import Arrays
from experiments._stopping import asked
from kdjax import Objective, Outputs, Weights, cross_entropy, on_logits, weighted_sum
from kdjax.data import make_views, random_crop
from kdjax.losses import soft_target_kl
from kdjax.metrics import Measure, accuracy
from kdjax.models import Dropout
from kdjax.networks import from_linen
from kdjax.runs import Recipe
from kdjax.runs.fitting import fit
from kdjax.runs.recipes import Trainer, prepare
from kdjax.training import augmented, jit_init
from kdjax.training.loop import make_epoch
from kdjax.training.sweeps import make_sweep_step, stack, unstack

JITTER = make_views(partial(random_crop, padding=2))  # up to two pixels each way; what comes in is background
LABELS = weighted_sum(labels=(1.0, cross_entropy))


class Dense(nn.Module):
    """Hidden layers of ReLUs, [batch, height, width, channels] to logits [batch, classes]; dropout while training."""

    widths: tuple[int, ...]
    classes: int
    input_dropout: float = 0.0
    dropout: float = 0.0

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> Outputs:
        x = Dropout(self.input_dropout)(inputs.reshape(len(inputs), -1), train=train)
        for number, width in enumerate(self.widths, 1):
            dense = nn.Dense(width, kernel_init=nn.initializers.he_normal(), name=f"hidden{number}")
            x = Dropout(self.dropout)(nn.relu(dense(x)), train=train)
        return Outputs(nn.Dense(self.classes, name="logits")(x), {})


def max_norm(limit: float) -> optax.GradientTransformation:
    """Last in a chain: no hidden unit's incoming weights have an L2 norm above `limit` after the update.

    Example:
      >>> params = {"hidden1": {"kernel": jnp.array([[3.0, 0.5], [4.0, 0.0]])}}
      >>> updates, _ = max_norm(1.0).update(jax.tree.map(jnp.zeros_like, params), optax.EmptyState(), params)
      >>> optax.apply_updates(params, updates)["hidden1"]["kernel"].round(3).tolist()
      [[0.6000000238418579, 0.5], [0.800000011920929, 0.0]]
    """

    def held(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        place = jax.tree_util.keystr(path, simple=True, separator="/")
        if not ("hidden" in place and place.endswith("kernel")):
            return update
        moved = param + update
        norms = jnp.linalg.norm(moved, axis=0, keepdims=True)
        return moved * jnp.minimum(1.0, limit / jnp.maximum(norms, limit)) - param

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(held, updates, params))


def _by_class(student: Outputs, teacher: Outputs | None, batch: Arrays) -> jax.Array:
    del teacher
    labels, classes = batch["labels"], student.logits.shape[-1]
    wrong = jnp.argmax(student.logits, axis=-1) != labels
    return jax.nn.one_hot(labels, classes) * wrong[:, None]


MEASURES = {
    "accuracy": accuracy,
    "cross_entropy": cross_entropy,
    "errors": Measure(_by_class, lambda sums, count: sums),
}


@dataclass(frozen=True, eq=False)
class Bench:
    """What all parts work on: settings, where to write and print, and the pictures as arrays on the device."""

    settings: Any
    folder: Path
    console: Console
    classes: int
    train: Arrays
    rest: Arrays  # the training pictures without the validation pictures
    validation: Arrays
    test: Arrays

    def network(self, width: int, **dropout: float) -> Dense:
        """Two hidden layers."""
        return Dense((width, width), self.classes, **dropout)

    @property
    def teacher(self) -> Dense:
        """The teacher as it teaches, without its dropout."""
        return self.network(self.settings.teacher_width)


def goal(alpha: float, temperature: float) -> Objective:
    """Labels weigh α, soft targets 1 − α. Both are traced: one program serves all."""
    soft = on_logits(soft_target_kl, temperature=temperature)
    return weighted_sum(labels=(float(alpha), cross_entropy), soft=(1.0 - alpha, soft))


@lru_cache(maxsize=64)
def trainer_of(
    network: Dense,
    examples: int,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    *,
    limit: float | None = None,
    taught: bool = False,
    beside: Dense | None = None,
    jittered: bool = False,
    together: int = 1,
) -> Trainer:
    """A network's trainer, compiled once for all seeds.

    Args:
      network: what is trained.
      examples: how many it trains on.
      epochs: passes over them.
      batch_size: examples an update.
      learning_rate: Adam's, at the start; a cosine takes it to 0.
      limit: of `max_norm`; None: no constraint.
      taught: from soft targets too, those in the data or those of `beside`.
      beside: the teacher, where the step runs it, on the very views that the student sees.
      jittered: on pictures moved by up to two pixels.
      together: how many students one program trains side by side.
    """

    def optimizer(updates: int) -> optax.GradientTransformation:
        adam = optax.adam(optax.cosine_decay_schedule(learning_rate, updates))
        return adam if limit is None else optax.chain(adam, max_norm(limit))

    objective, name = goal(0.5, 1.0) if taught else LABELS, f"{' × '.join(map(str, network.widths))}"
    init, apply = from_linen(network)
    recipe = Recipe(
        (jit_init(init), apply), objective, optimizer, epochs, batch_size, name=name, learning_rate=learning_rate
    )
    trainer = prepare(
        recipe, examples, teacher_apply=None if beside is None else from_linen(beside)[1], measures=MEASURES
    )
    step, evaluate = trainer.step, trainer.evaluate
    if together > 1:
        step, evaluate = _together(step), partial(_each, evaluate)
    if jittered:
        step = augmented(step, JITTER)
    return trainer._replace(step=step, epoch=make_epoch(step), evaluate=evaluate)


def _together(step: Any) -> Any:
    """Many students in one program; the metrics, which `fit` watches and prints, are means over them."""
    sweep = make_sweep_step(step)

    def averaged(*given: Any) -> tuple[Any, Any]:
        states, metrics = sweep(*given)
        return states, jax.tree.map(jnp.mean, metrics)

    return averaged


def _each(evaluate: Any, weights: Weights, arrays: Arrays) -> dict[str, Any]:
    """Each student's measures, in lists, and of what is one number the mean."""
    found = [evaluate(one, arrays) for one in unstack(weights)]
    return {name: np.mean([one[name] for one in found]).item() for name in ("accuracy", "cross_entropy")} | {
        "errors": [one["errors"] for one in found]
    }


def fitted(
    bench: Bench,
    trainer: Trainer,
    seed: int,
    name: str,
    arrays: Arrays,
    told: Arrays,
    *,
    objectives: Sequence[Objective] = (),
    teacher: Weights | None = None,
) -> tuple[Weights, dict[str, Any]]:
    """Trains in the folder of that seed and name, or goes on there; what it returns is of the last epoch.

    Args:
      bench: the settings and the data.
      trainer: of `trainer_of`.
      seed: of the start, the order and the noise. All students of a seed and a width start from the same weights.
      name: of the folder.
      arrays: what it trains on.
      told: the arrays that are measured after each epoch.
      objectives: one for each student; none: labels alone.
      teacher: where its soft targets are not in the data.

    Returns:
      The weights, stacked where there are several students; and ``"errors"``, a list of each class's, or one for each
      student, beside ``"seconds"``.
    """
    many = len(objectives) > 1
    if objectives:
        objective = stack(objectives) if many else objectives[0]
        trainer = trainer._replace(recipe=replace(trainer.recipe, objective=objective))
    key = jax.random.fold_in(jax.random.key(seed), int(name.endswith("teacher")))
    weights, history = fit(
        trainer,
        trainer.init(key, arrays["inputs"][:1]),
        arrays,
        told,
        seed=seed,
        folder=bench.folder / f"seed-{seed}" / name,
        console=bench.console,
        label=f"seed {seed}  {name}",
        teacher=teacher,
        place=(lambda state: stack([state] * len(objectives))) if many else lambda state: state,
        print_every=bench.settings.print_every,
        stop=asked.get(),
    )
    return weights, {"errors": history[-1]["test"]["errors"], "seconds": sum(one["seconds"] for one in history)}
