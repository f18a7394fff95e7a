"""PyTorch's methods of the pairs: each term as a PyTorch user writes it, from both networks' outputs and learnt parts."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from _losses_pytorch_features import (
    activation_boundary,
    attention_transfer,
    fsp,
    hint,
    neuron_selectivity,
    variational_information,
)
from _losses_pytorch_predictions import decoupled_kd, dist, soft_target_kl, standardized_kd
from _losses_pytorch_relations import correlation_congruence, pkt, rkd_angle, rkd_distance, similarity_preserving
from _pairs_networks import Said, convolution, dense, norm
from _pairs_work import CRD, TEMPERATURE, Recipe, terms_of
from torch import Tensor, nn


class Batch(NamedTuple):
    """Labels [batch], the examples' places in the data, and CRD's negatives, [batch, count], where they are given."""

    labels: Tensor
    indices: Tensor
    negatives: Tensor | None


class Terms(nn.Module):
    """A method's terms, by name; its learnt parts are made from kdjax's."""

    def __init__(
        self, method: str, recipe: Recipe, params: dict[str, Any], state: dict[str, Any], labels: Tensor
    ) -> None:
        super().__init__()
        self.names, self.recipe = list(terms_of(method, recipe)), recipe
        self.parts = nn.ModuleDict()
        for name, own in params.items():
            if name == "crd":
                self.parts[name] = Contrast(own, state[name]["bank"], labels, recipe.negatives)
            elif name == "congruence":
                self.parts[name] = dense(**own["layer1"])
            elif name.startswith("variational"):
                self.parts[name] = Variational(own)
            else:
                self.parts[name] = Regressor(own["layer1"], state[name]["layer1"])

    def forward(self, student: Said, teacher: Said, batch: Batch) -> dict[str, Tensor]:
        return {name: self._term(name, student, teacher, batch) for name in self.names}

    def _term(self, name: str, student: Said, teacher: Said, batch: Batch) -> Tensor:
        (logits, own), (taught, others) = student, teacher
        last, before = self.recipe.stage_names[-1], self.recipe.stage_names[-2]
        kind, _, number = name.partition("_stage")
        stage = f"stage{number}"
        embeddings = own["embedding"], others["embedding"]
        made: dict[str, Callable[[], Tensor]] = {
            "labels": lambda: F.cross_entropy(logits, batch.labels),
            "soft": lambda: soft_target_kl(logits, taught, TEMPERATURE),
            "decoupled": lambda: decoupled_kd(logits, taught, batch.labels),
            "dist": lambda: dist(logits, taught),
            "standardized": lambda: standardized_kd(logits, taught),
            "hint": lambda: hint(*self._met("hint", own["stage2"], others["stage2"])),
            "boundary": lambda: activation_boundary(*self._met("boundary", own[last], others[last])),
            "flow": lambda: _flow(
                *self._met("bottom", own[before], others[before]), *self._met("top", own[last], others[last])
            ),
            "attention": lambda: attention_transfer(*one_size(own[stage], others[stage])),
            "selectivity": lambda: neuron_selectivity(*one_size(own[stage], others[stage])),
            "variational": lambda: self._variational(name, own[stage], others[stage]),
            "similarity": lambda: similarity_preserving(own[last].flatten(1), others[last].flatten(1)),
            "congruence": lambda: correlation_congruence(self.parts["congruence"](embeddings[0]), embeddings[1]),
            "distance": lambda: rkd_distance(*embeddings),
            "angle": lambda: rkd_angle(*embeddings),
            "pkt": lambda: pkt(*embeddings),
            "crd": lambda: self.parts["crd"](*embeddings, batch),
        }  # fmt: skip
        return made[kind]()

    def _met(self, name: str, own: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts[name](own, other), other

    def _variational(self, name: str, own: Tensor, other: Tensor) -> Tensor:
        own, other = one_size(own, other)
        part = self.parts[name]
        return variational_information(part.mean(own), other, part.raw_variance)


def one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """The larger maps averaged down to the smaller."""
    size = [min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True)]
    return F.adaptive_avg_pool2d(student, size), F.adaptive_avg_pool2d(teacher, size)


def _flow(bottom: Tensor, taught_bottom: Tensor, top: Tensor, taught_top: Tensor) -> Tensor:
    return fsp(*one_size(bottom, top), *one_size(taught_bottom, taught_top))


class Regressor(nn.Module):
    """A convolution to the teacher's shape, and normalisation; a student's map that is smaller is stretched before."""

    def __init__(self, params: dict[str, Any], state: dict[str, Any]) -> None:
        super().__init__()
        self.layer = convolution(params["kernel"])
        self.norm = norm(params, state["mean"], state["variance"])

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        wanted = other.shape[2:]
        size = [max(sides) for sides in zip(own.shape[2:], wanted, strict=True)]
        if list(own.shape[2:]) != size:
            own = F.interpolate(own, size, mode="bilinear", align_corners=False)
        stride = [max(a // b, 1) for a, b in zip(own.shape[2:], wanted, strict=True)]
        return self.norm(F.conv2d(own, self.layer.weight, stride=stride))


class Variational(nn.Module):
    """Three convolutions 1 × 1 to the teacher's mean, and a variance for each channel."""

    def __init__(self, params: dict[str, Any]) -> None:
        super().__init__()
        layers = [convolution(**params["mean"][f"layer{number}"]) for number in (1, 2, 3)]
        self.mean = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
        self.raw_variance = nn.Parameter(torch.from_numpy(params["raw_variance"].copy()))


class Contrast(nn.Module):
    """Contrastive representation distillation, Tian et al. 2020, section 3.1: embeddings, bank, normalisers and loss."""

    def __init__(self, params: dict[str, Any], bank: tuple, labels: Tensor, count: int) -> None:
        super().__init__()
        self.student, self.teacher = dense(**params["student"]), dense(**params["teacher"])
        self.register_buffer("of_student", torch.from_numpy(bank[0].copy()))
        self.register_buffer("of_teacher", torch.from_numpy(bank[1].copy()))
        self.labels, self.count, self.batches, self.totals = labels, count, 0, [0.0, 0.0]

    def forward(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        student, teacher = F.normalize(self.student(student)), F.normalize(self.teacher(teacher))
        negatives = self._drawn(batch) if batch.negatives is None else batch.negatives
        places = torch.cat([batch.indices[:, None], negatives], 1)
        pairs = (student, self.of_teacher), (teacher, self.of_student)
        estimates, value = [], torch.zeros((), device=student.device)
        for (anchors, memory), total in zip(pairs, self.totals, strict=True):
            scores = (anchors @ memory.T).gather(1, places) / CRD["temperature"]
            estimates.append(float(scores[:, 1:].detach().double().exp().mean()) * len(memory))
            normaliser = total / min(self.batches, CRD["warmup"]) if self.batches else estimates[-1]
            odds = scores - math.log(normaliser * negatives.shape[1] / len(memory))
            value = value + F.softplus(-odds[:, 0]).mean() + F.softplus(odds[:, 1:]).sum(1).mean()
        if self.batches < CRD["warmup"]:
            self.totals = [total + estimate for total, estimate in zip(self.totals, estimates, strict=True)]
        self.batches += 1
        self._move(student.detach(), teacher.detach(), batch.indices)
        return value

    @torch.no_grad()
    def _move(self, student: Tensor, teacher: Tensor, indices: Tensor) -> None:
        kept = CRD["momentum"]
        for name, embeddings in (("of_student", student), ("of_teacher", teacher)):
            memory = getattr(self, name).clone()  # the gradient still needs the old one
            memory[indices] = F.normalize(kept * memory[indices] + (1 - kept) * embeddings)
            setattr(self, name, memory)

    def _drawn(self, batch: Batch) -> Tensor:
        """Of other classes, drawn again where they are not."""
        drawn = torch.randint(len(self.labels), (len(batch.labels), self.count), device=self.labels.device)
        while (same := self.labels[drawn] == batch.labels[:, None]).any():
            drawn[same] = torch.randint(len(self.labels), (int(same.sum()),), device=self.labels.device)
        return drawn
