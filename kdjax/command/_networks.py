"""The networks that the command knows by name."""

from typing import Any

from kdjax import _checks

# The class in kdjax.models, and its settings but for the classes.
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "cnn_tiny": ("CNN", {"widths": (4, 8), "hidden": 16}),
    "cnn_small": ("CNN", {"widths": (8, 16), "hidden": 32}),
    "cnn": ("CNN", {"widths": (16, 32), "hidden": 64}),
    "cnn_large": ("CNN", {"widths": (32, 64), "hidden": 128, "batch_norm": True, "dropout": 0.3}),
    "wrn_10_1": ("WideResNet", {"depth": 10, "width": 1}),
    "wrn_16_1": ("WideResNet", {"depth": 16, "width": 1}),
    "wrn_16_2": ("WideResNet", {"depth": 16, "width": 2}),
    "wrn_28_2": ("WideResNet", {"depth": 28, "width": 2}),
    "wrn_28_10": ("WideResNet", {"depth": 28, "width": 10}),
    "wrn_40_1": ("WideResNet", {"depth": 40, "width": 1}),
    "wrn_40_2": ("WideResNet", {"depth": 40, "width": 2}),
}


def check_name(argument: str, name: str) -> None:
    """A ValueError that lists the names, where this is none."""
    _checks.one_of(argument, name, list(NETWORKS))


def network(name: str, classes: int) -> tuple[Any, Any]:
    """As a pair (init, apply)."""
    from kdjax import models
    from kdjax.networks import from_linen

    kind, settings = NETWORKS[name]
    return from_linen(getattr(models, kind)(**settings, classes=classes))


def layers_in_order(teacher: str, student: str) -> tuple[str, ...]:
    """The student's layers from the inputs to the logits, where both are chains of which channels can be selected."""
    (kind, settings), (its_kind, _) = NETWORKS[student], NETWORKS[teacher]
    if (kind, its_kind) != ("CNN", "CNN"):
        return ()
    stages = [f"stage{number}" for number in range(1, len(settings["widths"]) + 1)]
    return (*stages, "hidden", "logits")
