"""PIPELINE DOC"""

from dataclasses import dataclass

from experiments._loop import Recipe
from experiments._three_runs import Settings, run

import optax
import tyro

from kdjax import cross_entropy, on_logits, weighted_sum
from kdjax.data import symmetric_range
from kdjax.losses import soft_target_kl


@dataclass(frozen=True)
class Pipeline(Settings):
    """The teacher, the student alone and the student with the teacher, all with the same optimiser and batches."""

    teacher_model: str = "pipeline_teacher"
    """a name from kdjax.models"""
    student_model: str = "pipeline_student"
    """a name from kdjax.models"""
    epochs: int = 5
    """passes over the training data, for each network"""
    batch_size: int = 128
    """examples an update"""
    learning_rate: float = 1e-2
    """Adam's, per update"""
    temperature: float = 4.0
    """T of the soft targets, in logits"""
    alpha: float = 0.5
    """weight of the labels; the soft targets weigh 1 − alpha"""


def main(settings: Pipeline) -> None:
    labels_only = weighted_sum(labels=(1.0, cross_entropy))
    with_teacher = weighted_sum(
        labels=(settings.alpha, cross_entropy),
        soft=(1.0 - settings.alpha, on_logits(soft_target_kl, temperature=settings.temperature)),
    )

    def recipe(model, objective):
        optimizer = optax.adam(settings.learning_rate)
        return Recipe(model, objective, lambda updates: optimizer, settings.epochs, settings.batch_size)

    run(
        "pipeline",
        settings,
        preprocess=symmetric_range,
        teacher=recipe(settings.teacher_model, labels_only),
        alone=recipe(settings.student_model, labels_only),
        distilled=recipe(settings.student_model, with_teacher),
    )


if __name__ == "__main__":
    main(tyro.cli(Pipeline, description=__doc__))
