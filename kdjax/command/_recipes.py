"""From settings to what `kdjax.runs.compare` takes: data, networks with their starts, objectives, optimizers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from kdjax import _checks
from kdjax._types import Weights
from kdjax.checkpoints import load_weights
from kdjax.command._networks import is_residual, layers_in_order, network
from kdjax.command._settings import STARTS, Compare, option, whole_source
from kdjax.data import Dataset, load
from kdjax.losses import logit_mse, soft_target_kl
from kdjax.networks import copy_matching, ensemble, ensemble_weights, transfer_lines
from kdjax.objectives import Objective, cross_entropy, on_logits, weighted_sum
from kdjax.objectives.schedules import Schedule, cosine, linear
from kdjax.runs import Recipe
from kdjax.runs._data import class_names_of, usual_preprocess
from kdjax.runs.recipes import check_description

TEMPERATURE = "4"  # Hinton et al. 2015 use 2 to 20; 4 is what most later work does
Data = tuple[Dataset, Dataset]


def loaded(settings: Compare) -> Data:
    """The data's two splits."""
    more = {name: value for name in ("size", "channels") if (value := getattr(settings, name)) is not None}
    train, test = (
        load(whole_source(settings.data), split, data_dir=settings.data_dir, **more) for split in ("train", "test")
    )
    return train, test


def preprocess_of(data: Data) -> Callable[[Any], Any]:
    """Bytes into [0, 1]; floats as they are."""
    return usual_preprocess(data)


def given_weights(settings: Compare, data: Data) -> Weights | None:
    """The weights of the saved teacher, or of several as one ensemble."""
    found = [saved(path, name, data) for path, name in zip(settings.given_teacher, settings.teachers, strict=False)]
    if len(found) > 1:
        return ensemble_weights(*found)
    return found[0] if found else None


def check_descriptions(settings: Compare, data: Data) -> None:
    """Refuses teachers that say they were trained otherwise, and a start on inputs of another range."""
    inputs = {"preprocess": preprocess_of(data).__name__}
    own = inputs | {"data": data[0].name, "class_names": class_names_of(data)}
    for path, name in zip(settings.given_teacher, settings.teachers, strict=False):
        check_description("--given-teacher", path, own | {"model": name})
    if settings.start not in STARTS:
        check_description("--start", Path(settings.start), inputs)


def saved(path: Path, name: str, data: Data) -> Weights:
    """Saved weights of the network called `name`."""
    return load_weights(path, shapes(network(name, len(data[0].class_names))[0], data))


def shapes(init: Callable[..., Weights], data: Data) -> Weights:
    """Of a network's weights; nothing is computed."""
    inputs = jax.eval_shape(preprocess_of(data), data[0].inputs[:1])
    found: Weights = jax.eval_shape(init, jax.random.key(0), inputs)
    return found


def recipes(settings: Compare, data: Data, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """The three of `compare`, by name."""
    classes = len(data[0].class_names)
    labels = weighted_sum(labels=(1.0, cross_entropy))
    members = [network(name, classes) for name in settings.teachers]
    teacher = members[0] if len(members) == 1 else together(members)
    student = started(settings, network(settings.student, classes), data, say)
    updates = settings.epochs * (len(data[0].labels) // settings.batch_size)

    def recipe(
        pair: tuple[Any, Any], objective: Objective, epochs: int, *names: str, peer: Recipe | None = None
    ) -> Recipe:
        def optimizer(updates: int) -> optax.GradientTransformation:
            return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, updates))

        rate = settings.learning_rate
        kind = "residual" if any(map(is_residual, names)) else None
        return Recipe(
            pair, objective, optimizer, epochs, settings.batch_size, name="+".join(names), learning_rate=rate, peer=peer,
            compile_for=kind,
        )  # fmt: skip

    epochs, objective = settings.epochs, objective_of(settings, max(updates, 1))
    peer = recipe(teacher, objective, epochs, *settings.teachers) if settings.online else None
    return {
        "teacher": recipe(teacher, labels, settings.teacher_epochs or epochs, *settings.teachers),
        "alone": recipe(student, labels, epochs, settings.student),
        "distilled": recipe(student, objective, epochs, settings.student, peer=peer),
    }


def together(members: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Several networks as one, whose prediction is the mean of theirs."""

    def init(rng: Any, inputs: Any) -> Weights:
        return ensemble_weights(*(own(jax.random.fold_in(rng, i), inputs) for i, (own, _) in enumerate(members)))

    return init, ensemble(*(apply for _, apply in members))


def objective_of(settings: Compare, updates: int) -> Objective:
    """Labels by alpha, the teacher by 1 − alpha."""
    soft = on_logits(logit_mse)
    if settings.loss == "kl":
        numbers = numbers_of("temperature", settings.temperature or TEMPERATURE)
        for number in numbers[0]:
            _checks.positive("--temperature", number)
        soft = on_logits(soft_target_kl, temperature=scheduled(*numbers, updates))
    weights, form = numbers_of("alpha", settings.alpha)
    for number in weights:
        _checks.between("--alpha", number, 0.0, 1.0)
    rest = [1.0 - number for number in weights]
    return weighted_sum(
        labels=(scheduled(weights, form, updates), cross_entropy), soft=(scheduled(rest, form, updates), soft)
    )


def numbers_of(name: str, text: str) -> tuple[list[float], str]:
    """``"4"``, ``"8:2"`` or ``"8:2:cosine"`` as one or two numbers and the form of the way between them."""
    words = text.split(":")
    form = words.pop() if len(words) == 3 else "linear"
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or form not in ("linear", "cosine"):
        raise ValueError(
            f"{option(name)} must be NUMBER, START:END, START:END:linear or START:END:cosine; got {text!r}."
        )
    return numbers, form


def scheduled(numbers: list[float], form: str, updates: int) -> float | Schedule:
    """One number as it is; two as a schedule over all updates."""
    if len(numbers) == 1:
        return numbers[0]
    between = cosine if form == "cosine" else linear
    return between(*numbers, steps=updates)


def started(settings: Compare, pair: tuple[Any, Any], data: Data, say: Callable[[str], None]) -> tuple[Any, Any]:
    """The student as (init, apply), where init gives what `--start` names."""
    init, apply = pair
    if settings.start == "scratch":
        return pair
    if settings.start not in STARTS:
        own = saved(Path(settings.start), settings.student, data)
        say(f"The student starts from {settings.start}.")
        # Anew for each seed: a step may take the arrays of its state for its own.
        return lambda rng, inputs: jax.tree.map(jnp.copy, own), apply
    (name,) = settings.teachers
    source = saved(settings.given_teacher[0], name, data)
    order = layers_in_order(name, settings.student)
    select: dict[str, Any] = {"channels": "largest", "order": order} if order else {}

    def from_teacher(rng: Any, inputs: Any) -> Weights:
        weights, _ = copy_matching(source, init(rng, inputs), **select)
        return jax.tree.map(jnp.copy, weights)

    inputs = preprocess_of(data)(jnp.asarray(data[0].inputs[:1]))
    _, report = copy_matching(source, init(jax.random.key(0), inputs), **select)
    say("The student starts from what fits of the teacher:")
    for line in transfer_lines([one for one in report if one.what != "unused"]):
        say(f"  {line}")
    return from_teacher, apply
