"""The losses on predictions as a PyTorch user writes them: a batch's mean, from logits [batch, classes]."""

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_kl(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    log_student, of_teacher = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return temperature**2 * F.kl_div(log_student, of_teacher, reduction="batchmean")


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return F.kl_div(F.log_softmax(teacher, 1), F.log_softmax(student, 1), reduction="batchmean", log_target=True)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    log_student, log_teacher = F.log_softmax(student, 1), F.log_softmax(teacher, 1)
    log_mixture = (beta * log_teacher.exp() + (1 - beta) * log_student.exp()).log()
    of_student, of_teacher = (
        F.kl_div(log_mixture, log_share, reduction="batchmean", log_target=True)
        for log_share in (log_student, log_teacher)
    )
    return beta * of_teacher + (1 - beta) * of_student


def soft_target_bce(student: Tensor, teacher: Tensor) -> Tensor:
    of_teacher = torch.sigmoid(teacher)
    cross_entropy, entropy = (
        F.binary_cross_entropy_with_logits(logits, of_teacher, reduction="sum") for logits in (student, teacher)
    )
    return (cross_entropy - entropy) / len(student)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student, teacher)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * F.l1_loss(F.softmax(student, 1), F.softmax(teacher, 1), reduction="sum") / len(student)


def skewed_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> Tensor:
    of_student, of_teacher = F.softmax(student, 1), F.softmax(teacher, 1)
    mixture = alpha * of_teacher + (1 - alpha) * of_student
    return F.kl_div(mixture.log(), of_teacher, reduction="batchmean")


def reverse_skewed_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> Tensor:
    log_student, of_teacher = F.log_softmax(student, 1), F.softmax(teacher, 1)
    mixture = alpha * log_student.exp() + (1 - alpha) * of_teacher
    return F.kl_div(mixture.log(), log_student, reduction="batchmean", log_target=True)


def sorted_probabilities(student: Tensor, teacher: Tensor) -> Tensor:
    of_student, of_teacher = (F.softmax(logits, 1).sort(1, descending=True).values for logits in (student, teacher))
    of_student = F.pad(of_student, (0, teacher.shape[1] - student.shape[1]))
    return F.l1_loss(of_student, of_teacher, reduction="sum") / len(student)


def linear_cross_entropy(hidden: Tensor, head: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ head, labels)


def linear_soft_target_kl(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    return soft_target_kl(hidden @ head, teacher_hidden @ teacher_head, temperature=1.0)


def linear_reverse_kl(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    return reverse_kl(hidden @ head, teacher_hidden @ teacher_head)


def linear_jensen_shannon(hidden: Tensor, head: Tensor, teacher_hidden: Tensor, teacher_head: Tensor) -> Tensor:
    return jensen_shannon(hidden @ head, teacher_hidden @ teacher_head)


def target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    of_student, of_teacher = (
        F.softmax(logits / temperature, 1).gather(1, labels[:, None]) for logits in (student, teacher)
    )
    of_student, of_teacher = (torch.cat([share, 1 - share], 1) for share in (of_student, of_teacher))
    return temperature**2 * F.kl_div(of_student.log(), of_teacher, reduction="batchmean")


def _without(logits: Tensor, labels: Tensor) -> Tensor:
    """The labelled class taken out by a penalty, as is common."""
    return logits.scatter(1, labels[:, None], -1000.0)


def non_target_class_kd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 4.0) -> Tensor:
    return soft_target_kl(_without(student, labels), _without(teacher, labels), temperature)


def decoupled_kd(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0) -> Tensor:
    return alpha * target_class_kd(student, teacher, labels) + beta * non_target_class_kd(student, teacher, labels)


def normalized_kd(student: Tensor, teacher: Tensor, labels: Tensor, gamma: float = 1.5) -> Tensor:
    of_label = F.softmax(teacher, 1).gather(1, labels[:, None]) * F.log_softmax(student, 1).gather(1, labels[:, None])
    of_others = F.cross_entropy(_without(student, labels), F.softmax(_without(teacher, labels), 1))
    return gamma * of_others - of_label.mean()


def weighted_soft_labels(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    of_student, of_teacher = (F.cross_entropy(logits, labels, reduction="none") for logits in (student, teacher))
    log_student, shares = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    divergence = F.kl_div(log_student, shares, reduction="none").sum(1)
    return temperature**2 * ((1 - torch.exp(-of_student / of_teacher)) * divergence).mean()


def virtual_teacher(student: Tensor, labels: Tensor, correct: float = 0.99, temperature: float = 20.0) -> Tensor:
    teacher = torch.full_like(student, (1 - correct) / (student.shape[1] - 1)).scatter_(1, labels[:, None], correct)
    return soft_target_kl(student, teacher.log(), temperature)


def uskd_target(student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    squares = F.softmax(teacher, 1).gather(1, labels[:, None])[:, 0] ** 2
    return ((1 + squares - squares.mean()) * F.cross_entropy(student, labels, reduction="none")).mean()


def uskd_non_target(student: Tensor, teacher: Tensor, weak: Tensor, labels: Tensor) -> Tensor:
    student, teacher, weak = (_without(logits, labels) for logits in (student, teacher, weak))
    order = (F.softmax(teacher, 1) + F.softmax(weak, 1)).argsort(1, descending=True)
    law = 1 / torch.arange(1, student.shape[1] + 1)
    law[-1] = 0.0  # the labelled class
    shares = torch.empty_like(student).scatter_(1, order, (law / law.sum()).expand_as(order))
    return -(shares * F.log_softmax(student, 1)).sum(1).mean()


def multi_level_instance(student: Tensor, teacher: Tensor) -> Tensor:
    temperatures = (2.0, 3.0, 4.0, 5.0, 6.0)
    return sum(soft_target_kl(student, teacher, temperature) for temperature in temperatures) / len(temperatures)


def multi_level_batch(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    of_student, of_teacher = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return F.mse_loss(of_student @ of_student.T, of_teacher @ of_teacher.T, reduction="sum") / len(student)


def multi_level_class(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    of_student, of_teacher = F.softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return F.mse_loss(of_student.T @ of_student, of_teacher.T @ of_teacher, reduction="sum") / student.shape[1]


def _one_minus_correlation(first: Tensor, second: Tensor, dim: int) -> Tensor:
    first, second = (shares - shares.mean(dim, keepdim=True) for shares in (first, second))
    return 1 - F.cosine_similarity(first, second, dim).mean()


def dist(student: Tensor, teacher: Tensor) -> Tensor:
    of_student, of_teacher = F.softmax(student, 1), F.softmax(teacher, 1)
    return _one_minus_correlation(of_student, of_teacher, 1) + _one_minus_correlation(of_student, of_teacher, 0)


def _standardized(logits: Tensor) -> Tensor:
    return (logits - logits.mean(1, keepdim=True)) / (logits.std(1, keepdim=True) + 1e-7)


def standardized_kd(student: Tensor, teacher: Tensor) -> Tensor:
    return soft_target_kl(_standardized(student), _standardized(teacher), temperature=2.0)


def top_k_kl(student: Tensor, values: Tensor, indices: Tensor, temperature: float = 4.0) -> Tensor:
    level = torch.tensor(float(student.shape[1] - values.shape[1])).log()
    softened = []
    for stored in (F.log_softmax(student, 1).gather(1, indices), values):
        rest = torch.log1p(-stored.exp().sum(1, keepdim=True))
        softened.append(torch.cat([stored / temperature, (rest - level) / temperature + level], 1))
    return soft_target_kl(*softened, temperature=1.0) * temperature**2


def sampled_kl(student: Tensor, values: Tensor, indices: Tensor) -> Tensor:
    return (values - F.log_softmax(student, 1).gather(1, indices)).mean()
