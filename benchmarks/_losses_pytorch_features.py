"""The losses on features as a PyTorch user writes them: a batch's mean, from maps [batch, channels, height, width]."""

import torch
import torch.nn.functional as F
from torch import Tensor


def hint(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher)


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student.flatten(1), teacher.flatten(1)).mean()


def _attention(maps: Tensor) -> Tensor:
    return F.normalize(maps.pow(2).mean(1).flatten(1))


def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(_attention(student), _attention(teacher))


def factor_transfer(student: Tensor, teacher: Tensor) -> Tensor:
    return F.l1_loss(_attention(student), _attention(teacher))


def neuron_selectivity(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = F.normalize(student.flatten(2), dim=2), F.normalize(teacher.flatten(2), dim=2)

    def likeness(first: Tensor, second: Tensor) -> Tensor:
        return (first @ second.mT).pow(2).mean()

    return likeness(teacher, teacher) + likeness(student, student) - 2 * likeness(student, teacher)


def activation_boundary(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    side = torch.where(teacher > 0, 1.0, -1.0)
    return F.relu(margin - side * student).pow(2).sum() / len(student)


def overhaul(student: Tensor, teacher: Tensor, margin: Tensor) -> Tensor:
    target = torch.max(teacher, margin[:, None, None])
    counts = (student > target) | (target > 0)
    return (F.mse_loss(student, target, reduction="none") * counts).sum() / len(student)


def variational_information(mean: Tensor, teacher: Tensor, raw_variance: Tensor, eps: float = 1e-5) -> Tensor:
    variance = (F.softplus(raw_variance) + eps)[:, None, None]
    return (0.5 * ((mean - teacher) ** 2 / variance + variance.log())).mean()


def hierarchical_context(student: Tensor, teacher: Tensor) -> Tensor:
    total, weight, weights = F.mse_loss(student, teacher), 1.0, 1.0
    for level in (4, 2, 1):
        weight /= 2
        pooled = (F.adaptive_avg_pool2d(maps, level) for maps in (student, teacher))
        total, weights = total + weight * F.mse_loss(*pooled), weights + weight
    return total / weights


def channel_wise(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    log_student = F.log_softmax(student.flatten(2) / temperature, 2)
    of_teacher = F.softmax(teacher.flatten(2) / temperature, 2)
    channels = student.shape[0] * student.shape[1]
    return temperature**2 * F.kl_div(log_student, of_teacher, reduction="sum") / channels


def _channel_correlations(maps: Tensor) -> Tensor:
    maps = maps.flatten(2)
    return F.normalize(maps @ maps.mT, dim=2)


def inter_channel_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    correlations = _channel_correlations(student), _channel_correlations(teacher)
    return F.mse_loss(*correlations, reduction="sum") / (student.shape[0] * student.shape[1])


def _class_maps(maps: Tensor) -> Tensor:
    return F.normalize(F.adaptive_avg_pool2d(maps, 2).flatten(2), dim=2)


def class_attention(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(_class_maps(student), _class_maps(teacher))


def _flow(bottom: Tensor, top: Tensor) -> Tensor:
    bottom, top = bottom.flatten(2), top.flatten(2)
    return bottom @ top.mT / bottom.shape[2]


def fsp(student_bottom: Tensor, student_top: Tensor, teacher_bottom: Tensor, teacher_top: Tensor) -> Tensor:
    return F.mse_loss(_flow(student_bottom, student_top), _flow(teacher_bottom, teacher_top))


def _bends(steps: Tensor) -> Tensor:
    return F.cosine_similarity(steps[:, 1:-1] - steps[:, :-2], steps[:, 2:] - steps[:, :-2], dim=2)


def sequence_angles(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(_bends(student), _bends(teacher))
