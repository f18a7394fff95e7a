"""Article D's pictures: digits with their labels, test digits with what both networks say of them, learning curves."""

import json
from collections.abc import Callable
from pathlib import Path

import jax

from experiments._settings import Settings, network
from kdjax.checkpoints import load_weights
from kdjax.data import Dataset
from kdjax.runs.compare import PHASES
from kdjax.runs.pictures import image_grid, learning_curves, prediction_grid, save_figure

DIGITS = 9


def draw(settings: Settings, data: list[Dataset], out: Path, *, preprocess: Callable[[jax.Array], jax.Array]) -> None:
    """Writes ``digits.png`` (training digits), ``predictions.png`` (test digits, by seed 0) and ``curves.png``."""
    train, test = data
    names = test.class_names
    labels = [names[label] for label in train.labels[:DIGITS]]
    save_figure(image_grid(train.inputs[:DIGITS], labels), out / "digits.png")
    inputs = preprocess(test.inputs[:DIGITS])
    folder = out / "seed-0"
    teacher = settings.teacher or folder / "teacher" / "weights"
    networks = ((settings.teacher_model, teacher), (settings.student_model, folder / "distilled" / "weights"))
    logits = [_logits(model, path, inputs, data) for model, path in networks]
    figure = prediction_grid(test.inputs[:DIGITS], test.labels[:DIGITS], *logits, names)
    save_figure(figure, out / "predictions.png")
    files = {phase: sorted(out.glob(f"seed-*/{phase}/metrics.jsonl")) for phase in PHASES}
    records = {
        phase: [json.loads(line) for path in paths for line in path.read_text().splitlines()]
        for phase, paths in files.items()
        if paths
    }
    save_figure(learning_curves(records), out / "curves.png")


def _logits(model: str, path: Path, inputs: jax.Array, data: list[Dataset]) -> jax.Array:
    init, apply = network(model, data)
    weights = load_weights(path, jax.eval_shape(init, jax.random.key(0), inputs))
    return apply(*weights, inputs, train=False)[0].logits
