"""kdjax's side of the pairs: the recipe by `make_train_step` and `make_epoch`, each method by the losses and connectors."""

import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from _pairs_work import BORDER, CNNS, CRD, TEMPERATURE, Data, Recipe, epochs, normal, read, terms_of

from experiments._networks import make_model
from kdjax import (
    Objective,
    Weights,
    connectors,
    cross_entropy,
    init_state,
    losses,
    make_train_step,
    on_feature,
    on_logits,
    on_outputs,
    weighted_sum,
)
from kdjax.batches import epoch_indices
from kdjax.connectors import Connector
from kdjax.models import CNN
from kdjax.networks import from_linen
from kdjax.objectives import computed
from kdjax.training import jit_init, make_epoch, make_evaluation, weights_of

LABELS = weighted_sum(labels=(1.0, cross_entropy))
Network = tuple[Callable[..., Weights], Any]


@cache
def network(name: str, classes: int, dtype: Any = jnp.float32) -> Network:
    """Its functions, made once, so that the first is compiled once."""
    if name in CNNS:
        widths, hidden = CNNS[name]
        init, apply = from_linen(CNN(widths, hidden, classes, batch_norm=True, dtype=dtype))
    else:
        init, apply = from_linen(make_model(name, classes=classes, dtype=dtype))
    return jit_init(init), apply


def objective_of(method: str, recipe: Recipe, data: Data) -> tuple[Objective, dict[str, Connector]]:
    """What the student minimises, and the learnt parts beside it."""
    terms, beside = {}, {}
    for name, weight in terms_of(method, recipe).items():
        term, own = _term(name, recipe, data)
        terms[name] = (weight, term)
        beside |= own
    return weighted_sum(**terms), beside


def _term(name: str, recipe: Recipe, data: Data) -> tuple[Any, dict[str, Connector]]:
    """A term, and its connectors."""
    kind, _, number = name.partition("_stage")
    stage, last = f"stage{number}", recipe.stage_names[-1]
    regressor = partial(connectors.regressor, normalize=True)
    match kind:
        case "labels":
            return cross_entropy, {}
        case "soft":
            return on_logits(losses.soft_target_kl, temperature=TEMPERATURE), {}
        case "decoupled":
            return on_logits(losses.decoupled_kd), {}
        case "dist":
            return on_logits(losses.dist), {}
        case "standardized":
            return on_logits(losses.standardized_kd), {}
        case "hint":
            return on_feature(losses.hint, "hint"), {"hint": regressor("stage2")}
        case "boundary":
            return on_feature(losses.activation_boundary, "boundary"), {"boundary": regressor(last)}
        case "congruence":
            return on_feature(losses.correlation_congruence, "congruence"), {
                "congruence": connectors.regressor("embedding")
            }
        case "flow":
            places = (f"{who}.{place}" for who in ("student", "teacher") for place in ("bottom", "top"))
            beside = {"bottom": regressor(recipe.stage_names[-2]), "top": regressor(last)}
            return on_outputs(losses.fsp, *places), beside
        case "attention":
            return on_feature(losses.attention_transfer, stage), {}
        case "selectivity":
            return on_feature(losses.neuron_selectivity, stage), {}
        case "variational":
            places = f"student.{name}", f"teacher.{name}"
            term = on_outputs(losses.variational_information, *places, raw_variance=f"student.{name}_raw_variance")
            return term, {name: connectors.variational(stage)}
        case "similarity":
            return on_feature(losses.similarity_preserving, last), {}
        case "distance" | "angle" | "pkt":
            loss = {"distance": losses.rkd_distance, "angle": losses.rkd_angle, "pkt": losses.pkt}[kind]
            return on_feature(loss, "embedding"), {}
        case "crd":
            sizes = {"size": len(data.labels), "negatives": recipe.negatives}
            return computed("crd"), {"crd": connectors.contrast("embedding", labels=data.labels, **sizes, **CRD)}
    raise ValueError(f"method must have terms that kdjax's side knows; got {name!r}.")


def viewed(step: Any, data: Data, dtype: Any) -> Any:
    """The step on pictures that are cut out and mirrored as the batch says, and normalised."""
    height, width = data.images.shape[1:3]
    mean, deviation = (numbers.astype(dtype)[None, None, None] for numbers in (data.mean, data.deviation))

    def cut(image: jax.Array, corner: jax.Array, mirrored: jax.Array) -> jax.Array:
        image = jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (height, width, image.shape[-1]))
        return jnp.where(mirrored > 0, image[:, ::-1], image)

    def on_views(state: Any, teacher: Any, objective: Any, batch: dict[str, Any]) -> Any:
        images = jax.vmap(cut)(batch["inputs"], batch["corner"], batch["mirrored"])
        images = (images.astype(dtype) / 255 - mean) / deviation
        return step(state, teacher, objective, {**batch, "inputs": images})

    return on_views


def initial(method: str | None, seed: int, recipe: Recipe, data: Data, teacher: tuple | None) -> tuple:
    """Of the student (method None: the teacher) with its connectors: the weights that both sides start from, in float32."""
    classes = classes_of(data)
    image = jnp.zeros((1, *data.images.shape[1:]), jnp.float32)
    init, apply = network(recipe.student if method else recipe.teacher, classes)
    student = init(jax.random.key(seed), image)
    beside = objective_of(method, recipe, data)[1] if method else {}
    if beside:
        taught, key = network(recipe.teacher, classes)[1], jax.random.fold_in(jax.random.key(seed), 1)
        student = connectors.init_beside(beside, key, apply, student, taught, Weights(*teacher), image)
    return plain(student)


def order_of(data: Data, recipe: Recipe, steps: int, seed: int) -> np.ndarray:
    """Which examples make which batch, [steps, batch]."""
    count = len(data.labels)
    passes = range(-(-steps // (count // recipe.batch)))
    return np.concatenate([epoch_indices(count, recipe.batch, seed=seed, epoch=number) for number in passes])[:steps]


def chunk_of(steps: int) -> int:
    """How many steps are one call: up to 64, of which all calls of an epoch have as many, so that one program serves them.

    On a CPU, where XLA's convolutions are slow inside a loop, one.
    """
    if jax.default_backend() == "cpu":
        return 1
    return max(count for count in range(1, 65) if steps % count == 0)


def classes_of(data: Data) -> int:
    return int(data.labels.max()) + 1


class Side:
    """Trains networks by a recipe. What is compiled for a method serves all its seeds."""

    def __init__(self, recipe: Recipe, data: Data, compared: int, dtype: Any) -> None:
        self.recipe, self.data, self.compared, self.dtype = recipe, data, compared, dtype
        self.chunk = chunk_of(len(data.labels) // recipe.batch)
        self.method = cache(self._method)
        pictures = normal(data.images, data).astype(dtype)
        if recipe.views:
            pictures = np.pad(data.images, ((0, 0), (BORDER, BORDER), (BORDER, BORDER), (0, 0)))
        self.arrays = jax.device_put({"inputs": pictures, "labels": data.labels})
        tested = normal(data.test_images, data).astype(dtype)
        self.test = jax.device_put({"inputs": tested, "labels": data.test_labels})

    def train(
        self, method: str | None, seed: int, order: np.ndarray, student: tuple, teacher: tuple | None
    ) -> dict[str, Any]:
        """The loss and each term in the first steps, and the accuracy at the end; method None trains the teacher alone."""
        objective, optimizer, slow, fast, evaluate = self.method(method)
        state = init_state(self._placed(student), optimizer, jax.random.key(seed))
        taught = None if teacher is None else self._placed(teacher)
        curves: list[dict[str, jax.Array]] = []
        one_by_one = -(-self.compared // self.chunk) * self.chunk if method else 0
        seconds, done = [], 0
        for rows, seen in epochs(order, self.data, self.recipe, seed):
            started = time.perf_counter()
            arrays = self.arrays | jax.device_put(seen)
            first = max(0, min(len(rows), one_by_one - done))
            if first:
                state, _ = slow(
                    state, taught, objective, arrays, rows[:first], watch=lambda _, metrics: curves.append(metrics)
                )
            if first < len(rows):
                state, _ = fast(state, taught, objective, arrays, rows[first:])
            done += len(rows)
            seconds.append(time.perf_counter() - started)  # a pass ends when the device has
        weights = weights_of(state)
        names = ("loss", *objective.terms)
        found = {name: [float(metrics[name]) for metrics in curves[: self.compared]] for name in names}
        accuracy = evaluate(weights, self.test)["accuracy"]
        return {"curves": found, "accuracy": accuracy, "epochs_s": seconds, "weights": plain(weights)}

    def drawn(self, method: str, seed: int, order: np.ndarray) -> np.ndarray | None:
        """CRD's negatives, [steps, batch, count], as its connector draws them: from each step's key and its own name."""
        if method != "CRD" or not self.recipe.drawn_alike:
            return None
        labels, rng = jnp.asarray(self.data.labels), jax.random.key(seed)
        draw = partial(losses.draw_negatives, count=self.recipe.negatives, bank_size=len(labels), labels=labels)

        @jax.jit
        def of_step(step: jax.Array, indices: jax.Array) -> jax.Array:
            return draw(jax.random.fold_in(jax.random.fold_in(rng, step), zlib.crc32(b"crd")), indices)

        return np.stack([of_step(np.int32(step), rows.astype(np.int32)) for step, rows in enumerate(order)])

    def _method(self, method: str | None) -> tuple[Any, ...]:
        recipe = self.recipe if method else replace(self.recipe, steps=self.recipe.teacher_steps)
        classes = classes_of(self.data)
        apply = network(recipe.student if method else recipe.teacher, classes, self.dtype)[1]
        taught = network(recipe.teacher, classes, self.dtype)[1] if method else None
        objective, beside = objective_of(method, recipe, self.data) if method else (LABELS, {})
        rate = optax.piecewise_constant_schedule(recipe.learning_rate, dict.fromkeys(recipe.dropped_at(), 0.1))
        optimizer = optax.chain(optax.add_decayed_weights(recipe.decay), optax.sgd(rate, momentum=recipe.momentum))
        step = make_train_step(apply, taught, optimizer, connectors=beside or None)
        step = viewed(step, self.data, self.dtype) if recipe.views else step
        epochs_of = (make_epoch(step, steps_per_call=count) for count in (1, self.chunk))
        return objective, optimizer, *epochs_of, make_evaluation(apply)

    def _placed(self, weights: tuple) -> Weights:
        def placed(array: np.ndarray) -> np.ndarray:
            return array.astype(self.dtype) if np.issubdtype(array.dtype, np.floating) else array

        return jax.device_put(Weights(*jax.tree.map(placed, weights)))


def steps(file: Path, recipe: Recipe, compared: int, precision: str) -> dict[str, Callable[..., Any]]:
    """`train` and `drawn` of a `Side`."""
    jax.config.update("jax_enable_x64", precision == "float64")
    jax.config.update("jax_default_matmul_precision", "tensorfloat32" if precision == "TF32" else "float32")
    side = Side(recipe, read(file), compared, jnp.dtype("float64" if precision == "float64" else "float32"))
    return {"train": side.train, "drawn": side.drawn}


def plain(weights: Weights) -> tuple:
    """As NumPy's arrays."""
    return tuple(jax.tree.map(np.asarray, weights))
