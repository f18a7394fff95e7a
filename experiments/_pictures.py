"""Article D's two pictures: digits with their labels, and test digits with what teacher and student say of them."""

from collections.abc import Callable
from pathlib import Path

from experiments._three_runs import Settings

import jax

from kdjax.adapters import from_linen
from kdjax.checkpoints import load_weights, read_description
from kdjax.data import load
from kdjax.models import make_model
from kdjax.report import image_grid, prediction_grid, save_figure

DIGITS = 9


def draw(settings: Settings, out: Path, *, preprocess: Callable[[jax.Array], jax.Array]) -> None:
    """Writes ``digits.png``, the first training digits, and ``predictions.png``, the first test digits, of seed 0."""
    train, test = (load(settings.data, split, data_dir=settings.data_dir) for split in ("train", "test"))
    names = test.class_names
    labels = [names[label] for label in train.labels[:DIGITS]]
    save_figure(image_grid(train.inputs[:DIGITS], labels), out / "digits.png")
    inputs = preprocess(test.inputs[:DIGITS])
    folder = out / "seed-0"
    teacher = settings.teacher or folder / "teacher" / "weights"
    logits = [_logits(path, inputs, len(names)) for path in (teacher, folder / "distilled" / "weights")]
    figure = prediction_grid(test.inputs[:DIGITS], test.labels[:DIGITS], *logits, names)
    save_figure(figure, out / "predictions.png")


def _logits(path: Path, inputs: jax.Array, classes: int) -> jax.Array:
    """A saved network's logits; its description says which model it is."""
    init, apply = from_linen(make_model(read_description(path)["model"], classes=classes))
    weights = load_weights(path, jax.eval_shape(init, jax.random.key(0), inputs))
    return apply(*weights, inputs, train=False)[0].logits
