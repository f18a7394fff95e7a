"""With which options of XLA's compiler a network's programs are fastest, on the jaxlib at hand: the one table of them.

No option is set for a whole process. `jit_step`, `make_epoch`, `make_evaluation` and `kdjax.caching.cache_teacher` take
options for their own program, and `kdjax.runs.compare` those that a `Recipe` asks for.
"""

from collections.abc import Mapping
from typing import Any

import jax
from jaxlib.version import __version__ as jaxlib_version

from kdjax import _checks

Options = Mapping[str, Any] | None

WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}
# From which jaxlib on, newest first. YNNPACK runs convolutions of 32 channels or more on one core, Eigen on all; oneDNN is
# faster still, where it is there.
TABLE: dict[str, tuple[tuple[tuple[int, ...], dict[str, Any]], ...]] = {
    "residual": (((0, 11, 2), WITHOUT_YNN | ONEDNN), ((0, 10, 2), WITHOUT_YNN)),
}
BEFORE = (0, 13)  # the first jaxlib of which nothing has been measured


def compiler_options(network: str | None) -> dict[str, Any]:
    """The options with which such a network's programs are fastest on this jaxlib and these devices.

    Args:
      network: ``"residual"``, for networks whose time goes to convolutions of 32 channels or more; of
        `kdjax.models.WideResNet` alone it has been measured. None: any other, small convolutional networks among them,
        which the compiler as it comes serves best.

    Returns:
      Options of `jax.jit`, by name; none on a GPU or TPU, and none on a jaxlib that has not been measured. They change
      results by rounding: a run that is gone on with keeps those that it began with.

    Raises:
      ValueError: if `network` is none of these.

    Example:
      >>> compiler_options(None)
      {}
    """
    if network is None:
        return {}
    _checks.one_of("network", network, (*TABLE,))
    here = tuple(int(part) for part in jaxlib_version.split(".")[:3] if part.isdigit())
    if jax.default_backend() != "cpu" or here >= BEFORE:
        return {}
    return dict(next((options for since, options in TABLE[network] if here >= since), {}))


def is_known(options: Mapping[str, Any]) -> bool:
    """Whether the table has these options, with these values, for this jaxlib and these devices."""
    return any(options.items() <= compiler_options(network).items() for network in TABLE)


def with_options(options: Options) -> dict[str, Any]:
    """The argument of `jax.jit`, or none where there are no options."""
    if options is None:
        return {}
    _checks.instance("compiler_options", options, Mapping, "XLA's options by name")
    return {"compiler_options": dict(options)} if options else {}
