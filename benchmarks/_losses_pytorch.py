"""PyTorch's side of the comparison of losses: every loss in plain, eager PyTorch, by its name in kdjax.

It needs neither JAX nor kdjax, so it may run in an environment of its own.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import _losses_pytorch_features
import _losses_pytorch_predictions
import _losses_pytorch_relations
import numpy as np
import torch
from _losses_pytorch_relations import AFTER
from _losses_sides import Result, Run, answers, read
from _work import cores
from torch import Tensor

MODULES = (_losses_pytorch_predictions, _losses_pytorch_features, _losses_pytorch_relations)
FORMS = {
    name: form
    for module in MODULES
    for name, form in vars(module).items()
    if getattr(form, "__module__", None) == module.__name__ and not name.startswith("_")
}


def steps(file: Path, learnt: dict[str, tuple[int, ...]]) -> dict[str, Callable[..., Any]]:
    """`learnt` says for each form which arrays the gradient is taken for."""
    torch.set_num_threads(cores())
    cases = read(file, _placed)

    def made(name: str, batch: int) -> tuple[Run, Callable[[], Result]]:
        form, arrays = FORMS[name], cases[name, batch]
        after = AFTER.get(name)
        given = [array.detach() if after is None else array.clone() for array in arrays]
        leaves = [given[place].requires_grad_() for place in learnt[name]]

        def call() -> tuple[Tensor, tuple[Tensor, ...]]:
            value = form(*given)
            gradients = torch.autograd.grad(value, leaves)
            if after is not None:
                after(*given)
            return value.detach(), gradients

        def run(count: int) -> None:
            for _ in range(count):
                call()

        def result() -> Result:
            value, gradients = call()
            return value.item(), [_channels_last(gradient).numpy() for gradient in gradients]

        return run, result

    return answers(made)


def _placed(array: np.ndarray) -> Tensor:
    """Maps as PyTorch has them, channels first; whole numbers as it wants them."""
    tensor = torch.from_numpy(array)
    tensor = tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor
    return tensor if tensor.is_floating_point() else tensor.long()


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1).contiguous() if tensor.ndim == 4 else tensor
