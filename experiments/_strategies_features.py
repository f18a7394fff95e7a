"""More of what a teacher can show than its logits: layers, relations between examples, and all of it without labels.

Each strategy is a small function, as those of `experiments._strategies`, and is merged with them there.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from optax import softmax_cross_entropy_with_integer_labels

from experiments._setting import LABELS, Learn, Network, Setting, in_phases, one_run, one_student
from experiments._strategies import offline
from kdjax import Outputs, Weights, connectors, on_feature, on_logits, on_outputs, weighted_sum
from kdjax.losses import hint, similarity_distribution, similarity_graph, soft_target_kl
from kdjax.networks import ensemble, ensemble_weights, fit_pca, fused, linear_probe, project, with_features
from kdjax.training.phases import Phase

STAGES = ("stage1", "stage2")
QUEUE = 512  # embeddings of past batches
PIECE = 500  # images at a time


def through_adapters(setting: Setting) -> Learn:
    """Hints on both stages, each through a 1 × 1 convolution that brings the student's channels to the teacher's."""
    beside = {f"to_{stage}": connectors.regressor(stage) for stage in STAGES}
    objective = setting.objective(**{name: (0.5, on_feature(hint, name)) for name in beside})
    return offline(setting, objective, features=STAGES, beside=beside)


def shallow_first(setting: Setting) -> Learn:
    """Progressive: the first stage's hint for a quarter of the time, both stages' for another, then all and the logits."""
    beside = {f"to_{stage}": connectors.regressor(stage) for stage in STAGES}
    hints = {name: (0.5, on_feature(hint, name)) for name in beside}
    quarter = setting.epochs * setting.updates // 4
    rest = setting.epochs * setting.updates - 2 * quarter
    return in_phases(
        setting,
        beside,
        STAGES,
        Phase("stage1", quarter, weighted_sum(to_stage1=hints["to_stage1"]), setting.adam(quarter)),
        Phase("stages", quarter, weighted_sum(**hints), setting.adam(quarter)),
        Phase("all", rest, setting.objective(**hints), setting.adam(rest)),
    )


def principal_components(setting: Setting) -> Learn:
    """The student predicts the components of the teacher's channels that keep 90 % of their variance, and not the rest."""
    beside = {"to_components": connectors.regressor("stage2", "components")}
    learn = one_student(
        setting, setting.objective(to_components=(0.5, on_feature(hint, "to_components"))), beside=beside
    )

    def run(seed: int, teachers: list[Weights]) -> Weights:
        images = setting.train["inputs"]
        batches = ({"inputs": images[start : start + PIECE]} for start in range(0, len(images), PIECE))
        pca = fit_pca(setting.teacher[1], teachers[0], batches, "stage2", share=0.9)
        logits, features = setting.taught(setting.teacher[1], teachers[0], "stage2")["teacher"]
        shown = Outputs(logits, {"components": project(pca, features["stage2"])})
        return learn(seed, setting.train | {"teacher": shown})

    return run


def scales_fused(setting: Setting) -> Learn:
    """Both networks' stages as one map, each layer of the same weight; the student's is brought to the teacher's."""

    def showing(network: Network) -> Network:
        init, apply = network
        return init, with_features(apply, scales=fused(*STAGES, normalize=True))

    seen = replace(setting, student=showing(setting.student), teacher=showing(setting.teacher))
    objective = setting.objective(to_scales=(0.5, on_feature(hint, "to_scales")))
    return offline(seen, objective, features=("scales",), beside={"to_scales": connectors.regressor("scales")})


def auxiliary_classifiers(setting: Setting) -> Learn:
    """Each stage has a classifier of its own, taught like the whole student at 0.3 of the weight, and left behind."""
    beside = {f"by_{stage}": connectors.auxiliary(stage, width=16) for stage in STAGES}
    terms: dict[str, Any] = {}
    for name in beside:
        soft = on_feature(soft_target_kl, name, temperature=setting.temperature)
        hard = on_outputs(softmax_cross_entropy_with_integer_labels, f"student.{name}", "batch.labels")
        terms |= {name: (0.3 * (1.0 - setting.alpha), soft), f"{name}_labels": (0.3 * setting.alpha, hard)}
    return offline(setting, setting.objective(**terms), beside=beside)


def of_two_architectures(setting: Setting) -> Learn:
    """Two teachers, the second of the assistant's architecture: both teach by their logits, each by another stage."""
    train_other = one_run(setting, setting.assistant[1], LABELS, epochs=setting.teacher_epochs)
    together = ensemble(setting.teacher[1], setting.assistant[1])
    shown = ("0/stage1", "1/stage2")
    beside = {f"to_{stage}": connectors.regressor(stage, name) for stage, name in zip(STAGES, shown, strict=True)}
    learn = one_student(
        setting, setting.objective(**{name: (0.5, on_feature(hint, name)) for name in beside}), beside=beside
    )

    def run(seed: int, teachers: list[Weights]) -> Weights:
        other = train_other(setting.fresh(setting.assistant, seed, 60), setting.train, seed)
        return learn(seed, setting.taught(together, ensemble_weights(teachers[0], other), *shown))

    return run


def hardest_negatives(setting: Setting) -> Learn:
    """Embeddings of a class together, away from the ten nearest of other classes; all cosines as the teacher's."""
    graph = on_feature(similarity_graph, "embedding", hardest=10)
    return offline(setting, setting.objective(graph=(0.1, graph)), features=("embedding",))


def nearest_neighbours(setting: Setting) -> Learn:
    """The same with all negatives, and the cosines to each example's 20 nearest by the teacher alone."""
    graph = on_feature(similarity_graph, "embedding", neighbours=20)
    return offline(setting, setting.objective(graph=(0.1, graph)), features=("embedding",))


def memory_of_batches(setting: Setting) -> Learn:
    """Similarities not within the batch, but to what the teacher made of the images before it."""
    beside, similar = similarities()
    return offline(setting, setting.objective(similar=(0.3, similar)), features=("embedding",), beside=beside)


def similarities() -> tuple[dict[str, Any], Any]:
    """The connectors and the term of similarity distributions over a queue."""
    beside = {"to_embedding": connectors.regressor("embedding"), "past": connectors.queue("embedding", size=QUEUE)}
    places = ("student.to_embedding", "teacher.to_embedding", "teacher.past_queue")
    return beside, on_outputs(similarity_distribution, *places, temperatures=(0.2, 0.1))


def self_supervised(setting: Setting, **more: Any) -> Learn:
    """The student sees no label: it learns whom the teacher finds similar (arXiv 2101.04731).

    What it knows of the classes is then read off by a linear probe in the place of its logits layer, which is fitted to
    the training images and their labels after the student is done.
    """
    beside, similar = similarities()
    learn = offline(setting, weighted_sum(similar=(1.0, similar), **more), features=("embedding",), beside=beside)
    apply, train = setting.student[1], setting.train

    def run(seed: int, teachers: list[Weights]) -> Weights:
        weights = learn(seed, teachers)
        outputs = setting.taught(apply, weights, "embedding")["teacher"]
        probe = linear_probe(outputs.features["embedding"], train["labels"], outputs.logits.shape[1])
        return weights._replace(params={**weights.params, "logits": probe})

    return run


def self_supervised_with_soft_targets(setting: Setting) -> Learn:
    """The same with the teacher's soft targets, which know labels that the student does not."""
    return self_supervised(setting, soft=(1.0, on_logits(soft_target_kl, temperature=setting.temperature)))


FEATURES: dict[str, Callable[[Setting], Learn]] = {
    "hints through 1×1 adapters": through_adapters,
    "progressive: shallow first": shallow_first,
    "PCA of the teacher's channels": principal_components,
    "several scales fused": scales_fused,
    "auxiliary classifiers": auxiliary_classifiers,
    "two teachers, different features": of_two_architectures,
    "hardest negatives": hardest_negatives,
    "nearest-20 graph": nearest_neighbours,
    "memory of past batches": memory_of_batches,
    "self-supervised, then a probe": self_supervised,
    "self-supervised, soft, then a probe": self_supervised_with_soft_targets,
}
