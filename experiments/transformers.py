"""A vision transformer taught by a CNN through DeiT's distillation token, and a CNN taught by a transformer.

    python experiments/transformers.py --data fashion_mnist --data-dir DIR

The token has a classifier of its own, which learns the teacher's hard choice; in inference the mean of both is taken.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import optax

from experiments._settings import Settings, run, spread, start
from experiments._transformers import VisionTransformer
from experiments._unet import Whole
from kdjax import cross_entropy, on_logits, on_outputs, weighted_sum
from kdjax.data import unit_range
from kdjax.losses import soft_target_kl
from kdjax.metrics import accuracy
from kdjax.networks import from_linen
from kdjax.runs import Recipe


@dataclass(frozen=True)
class Transformers(Settings):
    """A CNN of 24 channels and a transformer of width 48; a transformer of width 96 and a CNN of 2 channels."""

    data: str = "fashion_mnist"
    """digits, mnist, fashion_mnist, tfds:NAME, idx:DIR, npz:FILE, npy:DIR or folder:DIR"""
    seeds: int = 8
    """how often each student is trained, with seeds 0, 1, 2, …; one teacher serves all"""
    print_every: int = 0
    """print a line each so many epochs; 0: only after the last"""
    examples: int = 10000
    """pictures to train on, the first of the data set, or evenly spread where they lie class by class; half as
    many to test on"""
    patch: int = 7
    """pixels along the side of a transformer's patch"""
    teacher_epochs: int = 12
    """passes over the pictures, for the teachers"""
    epochs: int = 6
    """passes over the pictures, for each student"""
    batch_size: int = 64
    """pictures an update"""
    learning_rate: float = 1e-3
    """Adam's, per update, at the start; a cosine takes it to 0 at the end"""
    temperature: float = 2.0
    """T of the soft targets for the CNN, in logits"""
    alpha: float = 0.5
    """weight of the labels; what comes from the teacher weighs 1 − alpha"""


def hard_choice(student, teacher):
    """Cross-entropy with the teacher's first choice; arXiv 2012.12877, equation 3."""
    return optax.softmax_cross_entropy_with_integer_labels(student, jnp.argmax(teacher, axis=-1))


def main(settings: Transformers) -> None:
    parts = zip(settings.load(), (settings.examples, settings.examples // 2), strict=True)
    chosen = [(part, spread(part.labels, count)) for part, count in parts]
    data = [{"inputs": part.inputs[rows], "labels": part.labels[rows]} for part, rows in chosen]
    labels, rest = weighted_sum(labels=(1.0, cross_entropy)), 1.0 - settings.alpha
    token = on_outputs(hard_choice, "student.distilled", "teacher.logits")
    soft = on_logits(soft_target_kl, temperature=settings.temperature)

    def recipe(network, objective, epochs):
        def optimizer(updates):
            return optax.adam(optax.warmup_cosine_decay_schedule(0.0, settings.learning_rate, updates // 10, updates))

        return Recipe(
            from_linen(network),
            objective,
            optimizer,
            epochs,
            settings.batch_size,
            name=type(network).__name__,
            learning_rate=settings.learning_rate,
        )

    def transformer(width):
        return VisionTransformer(10, width, layers=3, heads=4, patch=settings.patch)

    # Alone, the token is a second class token: without a target its head would only disturb the mean of the two.
    second = on_outputs(optax.softmax_cross_entropy_with_integer_labels, "student.distilled", "batch.labels")
    twice = weighted_sum(labels=(settings.alpha, cross_entropy), token=(rest, second))
    pairs = {
        "transformer-from-cnn": (Whole(10, 24), transformer(48), labels, twice, {"token": (rest, token)}),
        "cnn-from-transformer": (transformer(96), Whole(10, 2), twice, labels, {"soft": (rest, soft)}),
    }
    for name, (teacher, student, its, own, terms) in pairs.items():
        both = weighted_sum(labels=(settings.alpha, cross_entropy), **terms)
        run(
            "transformers",
            settings,
            data,
            part=name,
            preprocess=unit_range,
            measures={"accuracy": accuracy, "cross_entropy": cross_entropy},
            one_teacher=True,
            teacher=recipe(teacher, its, settings.teacher_epochs),
            alone=recipe(student, own, settings.epochs),
            distilled=recipe(student, both, settings.epochs),
        )


if __name__ == "__main__":
    start(main, Transformers, __doc__)
