"""The losses on a batch's relations as a PyTorch user writes them: a batch's mean, from embeddings [batch, dim]."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _relative_distances(points: Tensor) -> Tensor:
    """Of each pair once; no example is at distance 0 from another."""
    distances = F.pdist(points)
    return distances / distances.mean()


def rkd_distance(student: Tensor, teacher: Tensor) -> Tensor:
    of_pairs = F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher), reduction="sum")
    return 2 * of_pairs / len(student) ** 2


def _corners(points: Tensor) -> Tensor:
    edges = F.normalize(points[None] - points[:, None], dim=2)
    return torch.bmm(edges, edges.mT)


def rkd_angle(student: Tensor, teacher: Tensor) -> Tensor:
    return F.smooth_l1_loss(_corners(student), _corners(teacher))


def _cosines(points: Tensor) -> Tensor:
    points = F.normalize(points)
    return points @ points.T


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    of_student, of_teacher = ((_cosines(points) + 1) / 2 for points in (student, teacher))
    of_student, of_teacher = (shares / shares.sum(1, keepdim=True) for shares in (of_student, of_teacher))
    return (of_teacher * torch.log((of_teacher + eps) / (of_student + eps))).mean()


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(F.normalize(student @ student.T), F.normalize(teacher @ teacher.T))


def correlation_congruence(student: Tensor, teacher: Tensor) -> Tensor:
    error = (student - teacher).abs()
    return (error[:-1] * error[1:]).sum() / (len(error) - 1)


def kernel_congruence(student: Tensor, teacher: Tensor, gamma: float = 0.4) -> Tensor:
    return F.mse_loss(*(torch.exp(2 * gamma * (_cosines(points) - 1)) for points in (student, teacher)))


def kernel_alignment(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = student - student.mean(0), teacher - teacher.mean(0)
    return 1 - F.cosine_similarity((student @ student.T).flatten(), (teacher @ teacher.T).flatten(), 0)


def similarity_graph(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    of_student, of_teacher = _cosines(student), _cosines(teacher)
    itself = torch.eye(len(labels), dtype=torch.bool)
    positives = (labels[:, None] == labels[None]) & ~itself
    log_shares = F.log_softmax((of_student / temperature).masked_fill(itself, -torch.inf), 1)
    contrast = -log_shares.masked_fill(~positives, 0.0).sum(1) / positives.sum(1).clamp(min=1)
    return contrast.mean() + F.mse_loss(of_student, of_teacher, reduction="sum") / (len(labels) * (len(labels) - 1))


def info_nce(student: Tensor, teacher: Tensor, temperature: float = 0.07) -> Tensor:
    scores = F.normalize(student) @ F.normalize(teacher).T / temperature
    partners = torch.arange(len(scores))
    return (F.cross_entropy(scores, partners) + F.cross_entropy(scores.T, partners)) / 2


def similarity_distribution(student: Tensor, teacher: Tensor, queue: Tensor) -> Tensor:
    student, teacher, queue = F.normalize(student), F.normalize(teacher), F.normalize(queue)

    def scores(anchors: Tensor, temperature: float) -> Tensor:
        own = (anchors * teacher).sum(1, keepdim=True)
        return torch.cat([own, anchors @ queue.T], 1) / temperature

    return F.cross_entropy(scores(student, 0.2), F.softmax(scores(teacher, 0.01), 1))


def _gathered(anchors: Tensor, memory: Tensor, places: Tensor) -> Tensor:
    entries = memory.index_select(0, places.flatten()).view(*places.shape, -1)
    return torch.bmm(entries, anchors[:, :, None]).squeeze(2)


def _from_all(anchors: Tensor, memory: Tensor, places: Tensor) -> Tensor:
    return (anchors @ memory.T).gather(1, places)


def _crd(
    products: Callable[[Tensor, Tensor, Tensor], Tensor],
    student: Tensor,
    teacher: Tensor,
    indices: Tensor,
    bank: tuple[Tensor, ...],
    negatives: Tensor,
    temperature: float = 0.07,
) -> Tensor:
    """Every batch is the bank's first, as it is for kdjax here: the normalisers are its own."""
    of_student, of_teacher, *_ = bank
    student, teacher = F.normalize(student), F.normalize(teacher)
    count, size = negatives.shape[1], len(of_student)
    places = torch.cat([indices[:, None], negatives], 1)
    value = torch.zeros(())
    for anchors, memory in ((student, of_teacher), (teacher, of_student)):
        scores = products(anchors, memory, places) / temperature
        others = scores[:, 1:].detach()
        log_normaliser = torch.logsumexp(others.flatten(), 0) + math.log(size / others.numel())
        odds = scores - log_normaliser - math.log(count / size)
        value = value + F.softplus(-odds[:, 0]).mean() + F.softplus(odds[:, 1:]).sum(1).mean()
    return value


def crd(student: Tensor, teacher: Tensor, indices: Tensor, *bank_and_negatives: Tensor) -> Tensor:
    """As in most code: the drawn entries are gathered, then multiplied."""
    *bank, negatives = bank_and_negatives
    return _crd(_gathered, student, teacher, indices, tuple(bank), negatives)


def crd_from_all(student: Tensor, teacher: Tensor, indices: Tensor, *bank_and_negatives: Tensor) -> Tensor:
    """A product with the whole bank, of which the drawn ones are picked."""
    *bank, negatives = bank_and_negatives
    return _crd(_from_all, student, teacher, indices, tuple(bank), negatives)


@torch.no_grad()
def _move_bank(
    student: Tensor, teacher: Tensor, indices: Tensor, of_student: Tensor, of_teacher: Tensor, *_: Tensor
) -> None:
    """Where it lies, as PyTorch code does. No example is twice in the batch."""
    for memory, embeddings in ((of_student, student), (of_teacher, teacher)):
        memory[indices] = F.normalize(0.5 * memory[indices] + 0.5 * F.normalize(embeddings))


AFTER = {"crd": _move_bank, "crd_from_all": _move_bank}
"""What these do besides, once the gradient is taken; it writes into what they are given."""
