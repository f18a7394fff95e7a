"""Ways to distil, each as a small function: a recipe of one training run becomes ``learn(seed, teachers) -> weights``.

All train the same student from the same weights on the same batches, for as many epochs: what differs is who teaches it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

from experiments._setting import LABELS, Learn, Setting, in_phases, one_run, one_student
from kdjax import Objective, Weights, connectors, init_state, make_train_step, on_feature, on_logits, weighted_sum
from kdjax.data import make_views, mixup
from kdjax.losses import attention_transfer, hint, rkd_distance, soft_target_kl
from kdjax.networks import by_confidence, copy_matching, ensemble, ensemble_weights
from kdjax.training import (
    augmented,
    freeze,
    init_mean_teacher,
    make_mean_teacher_step,
    make_mutual_step,
    train_only,
    weights_of,
)
from kdjax.training.phases import Phase


def alone(setting: Setting) -> Learn:
    learn = one_student(setting, LABELS)
    return lambda seed, teachers: learn(seed, setting.train)


def offline(
    setting: Setting,
    objective: Objective | None = None,
    *,
    features: tuple[str, ...] = (),
    beside: dict[str, Any] | None = None,
) -> Learn:
    """From one frozen teacher, its outputs computed once: logits, and the features that the objective reads."""
    learn = one_student(setting, objective or setting.objective(), beside=beside)
    return lambda seed, teachers: learn(seed, setting.taught(setting.teacher[1], teachers[0], *features))


def unlabelled(setting: Setting) -> Learn:
    return offline(setting, weighted_sum(soft=(1.0, on_logits(soft_target_kl, temperature=setting.temperature))))


def with_relations(setting: Setting) -> Learn:
    objective = setting.objective(relations=(1.0, on_feature(rkd_distance, "embedding")))
    return offline(setting, objective, features=("embedding",))


def with_attention(setting: Setting) -> Learn:
    objective = setting.objective(where=(10.0, on_feature(attention_transfer, "stage2")))
    return offline(setting, objective, features=("stage2",))


def several_teachers(setting: Setting, shares: Any = None) -> Learn:
    """From the mean of three teachers' probabilities."""
    together = ensemble(*[setting.teacher[1]] * 3, shares=shares)
    learn = one_student(setting, setting.objective())
    return lambda seed, teachers: learn(seed, setting.taught(together, ensemble_weights(*teachers[:3])))


def by_each_ones_confidence(setting: Setting) -> Learn:
    return several_teachers(setting, by_confidence)


def through_an_assistant(setting: Setting) -> Learn:
    """The teacher teaches a network of a size between, and that one the student (arXiv 1902.03393)."""
    first = one_run(setting, setting.assistant[1], setting.objective(), epochs=setting.epochs)
    then = one_student(setting, setting.objective())

    def run(seed: int, teachers: list[Weights]) -> Weights:
        arrays = setting.taught(setting.teacher[1], teachers[0])
        middle = first(setting.fresh(setting.assistant, seed, 50), arrays, seed)
        return then(seed, setting.taught(setting.assistant[1], middle))

    return run


def born_again(setting: Setting, generations: int = 2) -> Learn:
    """The student alone teaches a student of its own size, that one the next (arXiv 1805.04770)."""
    first = alone(setting)
    next_one = one_run(setting, setting.student[1], setting.objective(), epochs=setting.epochs)

    def run(seed: int, teachers: list[Weights]) -> Weights:
        weights = first(seed, teachers)
        for generation in range(1, generations + 1):
            arrays = setting.taught(setting.student[1], weights)
            weights = next_one(setting.fresh(setting.student, seed, generation), arrays, seed)
        return weights

    return run


def mean_teacher(setting: Setting) -> Learn:
    """The running average of the student teaches it; the average is what leaves."""
    optimizer = setting.optimizer(setting.epochs)
    step = make_mean_teacher_step(make_train_step(setting.student[1], setting.student[1], optimizer), 0.99)
    learn = setting.loop(step, setting.objective(), setting.epochs)

    def run(seed: int, teachers: list[Weights]) -> Weights:
        state = init_state(setting.fresh(setting.student, seed, 0), optimizer, jax.random.key(seed))
        return weights_of(learn(init_mean_teacher(state), setting.train, seed))

    return run


def mutual(setting: Setting, peer: str = "student") -> Learn:
    """Two networks learn from each other; the first leaves. The peer is a second student, or a fresh teacher."""
    networks, optimizer = (setting.student, getattr(setting, peer)), setting.optimizer(setting.epochs)
    step = make_mutual_step([apply for _, apply in networks], [optimizer] * 2)
    learn = setting.loop(step, (setting.objective(),) * 2, setting.epochs)

    def run(seed: int, teachers: list[Weights]) -> Weights:
        states = tuple(
            init_state(setting.fresh(network, seed, number), optimizer, jax.random.key(seed + 1000 * number))
            for number, network in enumerate(networks)
        )
        return weights_of(learn(states, setting.train, seed)[0])

    return run


def with_the_teacher(setting: Setting) -> Learn:
    return mutual(setting, "teacher")


def from_a_part(setting: Setting) -> Learn:
    """The student starts with the teacher's largest channels instead of random ones."""
    learn = one_run(setting, setting.student[1], setting.objective(), epochs=setting.epochs)

    def run(seed: int, teachers: list[Weights]) -> Weights:
        fresh = setting.fresh(setting.student, seed, 0)
        weights, _ = copy_matching(
            teachers[0], fresh, only=("stage1", "stage2"), channels="largest", order=("stage1", "stage2")
        )
        return learn(weights, setting.taught(setting.teacher[1], teachers[0]), seed)

    return run


def two_stages(setting: Setting) -> Learn:
    """Features first, by a hint through a regressor, for half of the time; then the logits layer alone, then all."""
    beside = {"hint": connectors.regressor("stage2")}
    quarter = setting.epochs * setting.updates // 4
    rest = setting.epochs * setting.updates - 3 * quarter
    features = weighted_sum(hint=(1.0, on_feature(hint, "hint")))
    return in_phases(
        setting,
        beside,
        ("stage2",),
        Phase("features", 2 * quarter, features, freeze(setting.adam(2 * quarter), "logits", "hidden")),
        Phase("head", quarter, setting.objective(), train_only(setting.adam(quarter), "logits", "hidden")),
        Phase("all", rest, setting.objective(), setting.adam(rest)),
    )


def same_views(setting: Setting) -> Learn:
    """Function matching: mixed images, the same for both networks, and no labels (arXiv 2106.05237)."""
    objective = weighted_sum(soft=(1.0, on_logits(soft_target_kl, temperature=setting.temperature)))
    views = partial(augmented, augment=make_views(mix=mixup))
    learn = one_run(
        setting,
        setting.student[1],
        objective,
        epochs=setting.epochs,
        teacher_apply=setting.teacher[1],
        wrapped=views,
    )
    return lambda seed, teachers: learn(setting.fresh(setting.student, seed, 0), setting.train, seed, teachers[0])


PLAIN: dict[str, Callable[[Setting], Learn]] = {
    "alone": alone,
    "offline: one frozen teacher": offline,
    "offline, no labels": unlabelled,
    "offline, and distances": with_relations,
    "offline, and attention": with_attention,
    "three teachers, mean": several_teachers,
    "three teachers, by confidence": by_each_ones_confidence,
    "through an assistant": through_an_assistant,
    "online: two students": mutual,
    "online: with the teacher": with_the_teacher,
    "self: born again, twice": born_again,
    "self: mean teacher": mean_teacher,
    "from a part of the teacher": from_a_part,
    "two stages, then all": two_stages,
    "same mixed views, no labels": same_views,
}
