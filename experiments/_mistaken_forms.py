"""The wrong forms that common_mistakes.py trains, each beside its right one: losses, and how its student is trained."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments._setting import LABELS
from kdjax import Objective, Outputs, cross_entropy, on_feature, on_logits, weighted_sum
from kdjax.losses import attention_transfer, kernel_alignment, pkt, similarity_graph, soft_target_kl

# `optax.losses.kl_divergence` wants the student's log-probabilities, then the teacher's probabilities.


def log_probabilities_as_targets(student, teacher, *, temperature):
    log_student, log_teacher = (jax.nn.log_softmax(logits / temperature) for logits in (student, teacher))
    return temperature**2 * optax.losses.kl_divergence(log_student, log_teacher)


def probabilities_as_logarithms(student, teacher, *, temperature):
    of_student, of_teacher = (jax.nn.softmax(logits / temperature) for logits in (student, teacher))
    return temperature**2 * optax.losses.kl_divergence(of_student, of_teacher)


def logits_as_probabilities(student, teacher, *, temperature):
    """What ``keras.distillation.LogitsDistillation()`` is in Keras 3.15.1, whose KL divergence clips what it is given."""
    of_student, of_teacher = (jnp.clip(logits / temperature, 1e-7, 1.0) for logits in (student, teacher))
    return jnp.sum(of_teacher * jnp.log(of_teacher / of_student), axis=-1)


def exchanged(student, teacher, *, temperature):
    log_teacher, of_student = jax.nn.log_softmax(teacher / temperature), jax.nn.softmax(student / temperature)
    return temperature**2 * optax.losses.kl_divergence(log_teacher, of_student)


def without_square(student, teacher, *, temperature):
    log_student, of_teacher = jax.nn.log_softmax(student / temperature), jax.nn.softmax(teacher / temperature)
    return optax.losses.kl_divergence(log_student, of_teacher)


def softmax_twice(student: Outputs, teacher: Outputs | None, batch):
    return cross_entropy(Outputs(jax.nn.softmax(student.logits), {}), teacher, batch)


def teachers_choice(student: Outputs, teacher: Outputs, batch):
    return cross_entropy(student, teacher, {"labels": jnp.argmax(teacher.logits, axis=1)})


def detached_attention(student, teacher, *, power=2.0):
    return attention_transfer(jax.lax.stop_gradient(student), teacher, power=power)


def alignment_called_pkt(student, teacher):
    return kernel_alignment(student, teacher, centred=False)


def masked_graph(student, teacher, labels, *, epsilon=0.0):
    del teacher
    positives = (labels[:, None] == labels[None, :]).astype(jnp.float32) * (1.0 - jnp.eye(len(labels)))
    return -jnp.mean(jnp.log(jax.nn.sigmoid(student @ student.T) * positives + epsilon), axis=1)


class Arm(NamedTuple):
    """How one student is trained: on what, in which order, by the seed's good teacher or its weak one, and how updated."""

    objective: Objective
    order: str = "shuffled"
    teacher: str = "teacher"
    optimizer: str = "Adam"


def labelled(loss: Callable[..., Any], **keywords: Any) -> Objective:
    """Labels 0.3 and soft targets 0.7, as in digits.py."""
    return weighted_sum(labels=(0.3, cross_entropy), soft=(0.7, on_logits(loss, **keywords)))


def with_labels(weight: float, feature: str, loss: Callable[..., Any], **keywords: Any) -> Objective:
    return weighted_sum(labels=(1.0, cross_entropy), feature=(weight, on_feature(loss, feature, **keywords)))


def arms(temperature: float) -> dict[str, Arm]:
    t = {"temperature": temperature}
    soft_only = {loss: weighted_sum(soft=(1.0, on_logits(loss, **t))) for loss in (
        soft_target_kl, without_square, probabilities_as_logarithms, logits_as_probabilities, exchanged)}  # fmt: skip
    soft = (0.7, on_logits(soft_target_kl, **t))
    choice = weighted_sum(labels=(0.3, teachers_choice), soft=soft)
    return {
        "labels": Arm(LABELS),
        "labels, softmax twice": Arm(weighted_sum(labels=(1.0, softmax_twice))),
        "soft and labels": Arm(labelled(soft_target_kl, **t)),
        "soft and labels, log-probabilities as targets": Arm(labelled(log_probabilities_as_targets, **t)),
        "soft and labels, probabilities as logarithms": Arm(labelled(probabilities_as_logarithms, **t)),
        "soft and labels, logits as probabilities": Arm(labelled(logits_as_probabilities, **t)),
        "soft and labels, softmax twice": Arm(weighted_sum(labels=(0.3, softmax_twice), soft=soft)),
        "soft and teacher's choice": Arm(choice),
        "soft and labels, exchanged": Arm(labelled(exchanged, **t)),
        "soft and labels, no T²": Arm(labelled(without_square, **t)),
        "weak soft and labels": Arm(labelled(soft_target_kl, **t), teacher="weak teacher"),
        "weak soft and teacher's choice": Arm(choice, teacher="weak teacher"),
        "soft": Arm(soft_only[soft_target_kl]),
        "soft, probabilities as logarithms": Arm(soft_only[probabilities_as_logarithms]),
        "soft, logits as probabilities": Arm(soft_only[logits_as_probabilities]),
        "soft, exchanged": Arm(soft_only[exchanged]),
        "soft, no T²": Arm(soft_only[without_square]),
        "soft, SGD": Arm(soft_only[soft_target_kl], optimizer="SGD"),
        "soft, no T², SGD": Arm(soft_only[without_square], optimizer="SGD"),
        "soft, fixed batches": Arm(soft_only[soft_target_kl], "fixed"),
        "soft, batches sorted by class": Arm(soft_only[soft_target_kl], "sorted"),
        "attention": Arm(with_labels(10.0, "stage2", attention_transfer)),
        "attention, student detached": Arm(with_labels(10.0, "stage2", detached_attention)),
        "PKT": Arm(with_labels(300.0, "embedding", pkt)),
        "kernel alignment called PKT": Arm(with_labels(1.0, "embedding", alignment_called_pkt)),
        "graph": Arm(with_labels(0.3, "embedding", similarity_graph)),
        "graph, log of a masked zero": Arm(with_labels(0.3, "embedding", masked_graph)),
        "graph, mended by 1e-8": Arm(with_labels(0.3, "embedding", masked_graph, epsilon=1e-8)),
    }


# (wrong, right), in the order of docs/common-mistakes.md
TRIALS = (
    ("soft and labels, log-probabilities as targets", "soft and labels"),
    ("soft and labels, probabilities as logarithms", "soft and labels"),
    ("soft, probabilities as logarithms", "soft"),
    ("soft and labels, logits as probabilities", "soft and labels"),
    ("soft, logits as probabilities", "soft"),
    ("soft and labels, no T²", "soft and labels"),
    ("soft, no T²", "soft"),
    ("soft, no T², SGD", "soft, SGD"),
    ("soft and labels, exchanged", "soft and labels"),
    ("soft, exchanged", "soft"),
    ("labels, softmax twice", "labels"),
    ("soft and labels, softmax twice", "soft and labels"),
    ("soft and teacher's choice", "soft and labels"),
    ("weak soft and teacher's choice", "weak soft and labels"),
    ("attention, student detached", "attention"),
    ("attention, student detached", "labels"),
    ("kernel alignment called PKT", "PKT"),
    ("graph, log of a masked zero", "graph"),
    ("graph, mended by 1e-8", "graph"),
    ("soft, fixed batches", "soft"),
    ("soft, batches sorted by class", "soft"),
)
