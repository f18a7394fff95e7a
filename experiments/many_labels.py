"""Which digits are on the canvas? Several at once: a CNN teaches a smaller one by soft targets for each label.

python experiments/many_labels.py
"""

from dataclasses import dataclass

import optax

from experiments._canvases import canvases
from experiments._settings import Settings, run, start
from experiments._unet import Whole
from kdjax import on_logits, weighted_sum
from kdjax.losses import soft_target_bce
from kdjax.metrics import label_accuracy
from kdjax.networks import from_linen
from kdjax.objectives import binary_cross_entropy
from kdjax.runs import Recipe


@dataclass(frozen=True)
class ManyLabels(Settings):
    """A CNN of 16 channels and one of 6."""

    data: str = "digits"
    """digits, or any source of one-channel pictures of 10 classes"""
    seeds: int = 8
    """how often each student is trained, with seeds 0, 1, 2, …; one teacher serves all"""
    print_every: int = 0
    """print a line each so many epochs; 0: only after the last"""
    examples: int = 30000
    """canvases to train on; a quarter as many to test on"""
    digits: int = 2
    """digits a canvas, at most"""
    teacher_epochs: int = 6
    """passes over the canvases, for the teacher"""
    epochs: int = 3
    """passes over the canvases, for each student"""
    batch_size: int = 32
    """canvases an update"""
    learning_rate: float = 3e-3
    """Adam's, per update, at the start; a cosine takes it to 0 at the end"""
    temperature: float = 1.0
    """T of the soft targets, in logits"""
    alpha: float = 0.5
    """weight of the labels; the soft targets weigh 1 − alpha"""


def main(settings: ManyLabels) -> None:
    made = [
        canvases(part, settings.examples // (1 + 3 * test), 32, settings.digits, seed=test)
        for test, part in enumerate(settings.load())
    ]
    data = [{"inputs": one["inputs"], "labels": one["present"]} for one in made]
    soft = on_logits(soft_target_bce, temperature=settings.temperature)
    labels = weighted_sum(labels=(1.0, binary_cross_entropy))
    both = weighted_sum(labels=(settings.alpha, binary_cross_entropy), soft=(1.0 - settings.alpha, soft))

    def recipe(width, objective, epochs):
        def optimizer(updates):
            return optax.adam(optax.cosine_decay_schedule(settings.learning_rate, updates))

        return Recipe(
            from_linen(Whole(10, width)),
            objective,
            optimizer,
            epochs,
            settings.batch_size,
            name=f"CNN {width}",
            learning_rate=settings.learning_rate,
        )

    run(
        "many-labels",
        settings,
        data,
        measures={"label accuracy": label_accuracy(), "sum of binary cross-entropies": binary_cross_entropy},
        one_teacher=True,
        teacher=recipe(16, labels, settings.teacher_epochs),
        alone=recipe(6, labels, settings.epochs),
        distilled=recipe(6, both, settings.epochs),
    )


if __name__ == "__main__":
    start(main, ManyLabels, __doc__)
