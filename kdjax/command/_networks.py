"""The networks that the command knows by name, and those of one's own, by module and function."""

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
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
    **{f"resnet{depth}": ("ResNet", {"depth": depth}) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": ("ResNet", {"depth": depth, "widths": (32, 64, 128, 256)}) for depth in (8, 32)},
    **{f"vgg{depth}": ("VGG", {"depth": depth}) for depth in (8, 11, 13, 16, 19)},
    "mobilenet_v2_half": ("MobileNetV2", {"width": 0.5}),
    "shufflenet_v1": ("ShuffleNetV1", {}),
    "shufflenet_v2": ("ShuffleNetV2", {}),
    "vit_tiny": ("ViT", {}),
}


def check_name(argument: str, name: str) -> None:
    """A ValueError that lists the names, where this is none and does not have the form ``module:function``."""
    if ":" not in name:
        return _checks.one_of(argument, name, [*NETWORKS, "MODULE:FUNCTION"])
    module, _, function = name.partition(":")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise ValueError(f"{argument} must be MODULE:FUNCTION, such as my_package.networks:small; got {name!r}.")
    return None


def network(name: str, classes: int) -> tuple[Any, Any]:
    """As a pair (init, apply). Of ``module:function`` the module is imported: its code runs."""
    from kdjax import models
    from kdjax.networks import from_linen
    from kdjax.training import jit_init

    if ":" in name:
        return _pair(name, imported(name), classes)
    kind, settings = NETWORKS[name]
    init, apply = from_linen(getattr(models, kind)(**settings, classes=classes))
    return jit_init(init), apply


def is_residual(name: str) -> bool:
    """Whether the compiler is to be set for residual networks; of one's own nothing is known."""
    return NETWORKS.get(name, ("", {}))[0] == "WideResNet"


def _pair(name: str, function: Any, classes: int) -> tuple[Any, Any]:
    """What the function makes of the number of classes, by the adapter if it is a Linen module."""
    from kdjax.networks import from_linen

    try:
        inspect.signature(function).bind(classes=classes)
    except TypeError as error:
        raise ValueError(f"{name} must take the number of classes, as classes={classes}: {error}.") from error
    with _as_its_own(name):
        made = function(classes=classes)
    if isinstance(made, tuple) and len(made) == 2 and all(map(callable, made)):
        init, apply = made
        return init, apply
    try:
        return from_linen(made)
    except ValueError as error:
        raise ValueError(f"{name} must return a network, or a pair of functions (init, apply): {error}") from error


def imported(name: str) -> Any:
    """The function of ``module:function``, of a module in the present folder or of an installed package.

    Raises:
      ValueError: if there is no such module or function, with those of like names.
    """
    module, _, function = name.partition(":")
    if (here := os.getcwd()) not in sys.path:  # where the command is a script, Python looks beside that only
        sys.path.insert(0, here)
    try:
        with _as_its_own(name):
            found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not f"{module}.".startswith(f"{missing}."):
            raise  # the module is there, and lacks another one
        around, _, last = missing.rpartition(".")
        others = (one.name for one in pkgutil.iter_modules(_places(around)))
        where = f"in {around}" if around else f"in {here} nor among the installed packages"
        raise ValueError(f"{name}: there is no module {last} {where}{_near(last, others)}") from error
    value = getattr(found, function, None)
    if value is None:
        others = (one for one, its in vars(found).items() if callable(its) and not one.startswith("_"))
        raise ValueError(f"{name}: {module} has no function {function}{_near(function, others)}")
    if not callable(value):
        raise ValueError(f"{name} must be a function; got {value!r:.99}.")
    return value


@contextmanager
def _as_its_own(name: str) -> Iterator[None]:
    """What somebody's code fails with, in a sentence; ``--debug`` shows where."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(f"{name} failed by itself: {error!r:.200}.") from error


def _places(package: str) -> Iterable[str] | None:
    """Where a package's modules lie; None: where all do."""
    return getattr(sys.modules[package], "__path__", []) if package else None


def _near(name: str, others: Iterable[str]) -> str:
    found = difflib.get_close_matches(name, list(others))
    return f"; did you mean {' or '.join(found)}?" if found else "."


def layers_in_order(teacher: str, student: str) -> tuple[str, ...]:
    """The student's layers from the inputs to the logits, where both are chains of which channels can be selected."""
    if not {teacher, student} <= NETWORKS.keys():
        return ()
    (kind, settings), (its_kind, _) = NETWORKS[student], NETWORKS[teacher]
    if (kind, its_kind) != ("CNN", "CNN"):
        return ()
    stages = [f"stage{number}" for number in range(1, len(settings["widths"]) + 1)]
    return (*stages, "hidden", "logits")
