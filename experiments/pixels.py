"""A U-Net teaches a smaller one to tell which digit each pixel belongs to: real scans, laid over each other on a canvas.

    python experiments/pixels.py

Three ways, each beside the labels: soft targets at every pixel, each class's map as a distribution over pixels (CWD), both.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import optax

from experiments._canvases import canvases
from experiments._settings import Settings, run, start
from experiments._unet import UNet
from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax.losses import soft_target_kl
from kdjax.metrics import accuracy, mean_iou
from kdjax.networks import from_linen
from kdjax.runs import Recipe


@dataclass(frozen=True)
class Pixels(Settings):
    """A U-Net of 16 channels and one of 8."""

    data: str = "digits"
    """digits, or any source of one-channel pictures of 10 classes"""
    seeds: int = 8
    """how often each student is trained, with seeds 0, 1, 2, …; one teacher serves all"""
    print_every: int = 0
    """print a line each so many epochs; 0: only after the last"""
    examples: int = 2000
    """canvases to train on; a quarter as many to test on"""
    digits: int = 2
    """digits a canvas, at most"""
    teacher_epochs: int = 15
    """passes over the canvases, for the teacher"""
    epochs: int = 6
    """passes over the canvases, for each student"""
    batch_size: int = 16
    """canvases an update"""
    learning_rate: float = 5e-3
    """Adam's, per update, at the start; a cosine takes it to 0 at the end"""
    temperature: float = 1.0
    """T of the soft targets, in logits"""
    alpha: float = 0.5
    """weight of the labels; what comes from the teacher weighs 1 − alpha"""


def channel_wise(student, teacher, *, temperature=4.0):
    """Each class's map as a distribution over pixels; arXiv 2011.13256, equation 4."""
    student, teacher = (jnp.moveaxis(z.reshape(len(z), -1, z.shape[-1]), 1, 2) for z in (student, teacher))
    return soft_target_kl(student, teacher, temperature=temperature).mean(axis=1)


def main(settings: Pixels) -> None:
    made = [
        canvases(part, settings.examples // (1 + 3 * test), 32, settings.digits, seed=test)
        for test, part in enumerate(settings.load())
    ]
    data = [{"inputs": one["inputs"], "labels": one["classes"]} for one in made]
    labels, rest = weighted_sum(labels=(1.0, cross_entropy)), 1.0 - settings.alpha
    soft = on_logits(soft_target_kl, temperature=settings.temperature)
    ways = {
        "soft": {"soft": (rest, soft)},
        "channel-wise": {"maps": (rest, on_logits(channel_wise))},
        "both": {"soft": (rest / 2, soft), "maps": (rest / 2, on_logits(channel_wise))},
    }

    def recipe(width, objective, epochs):
        def optimizer(updates):
            return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, updates))

        return Recipe(
            from_linen(UNet(11, width)),
            objective,
            optimizer,
            epochs,
            settings.batch_size,
            name=f"U-Net {width}",
            learning_rate=settings.learning_rate,
        )

    teacher, alone = recipe(16, labels, settings.teacher_epochs), recipe(8, labels, settings.epochs)
    for name, terms in ways.items():
        both = weighted_sum(labels=(settings.alpha, cross_entropy), **terms)
        recipes = {"teacher": teacher, "alone": alone, "distilled": recipe(8, both, settings.epochs)}
        measures = {"mean IoU": mean_iou(), "accuracy": accuracy}
        folder = run("pixels", settings, data, part=name, measures=measures, one_teacher=True, **recipes)
        settings = replace(settings, teacher=settings.teacher or folder / "seed-0" / "teacher" / "weights")


if __name__ == "__main__":
    start(main, Pixels, __doc__)
