"""With which options of XLA's compiler a network's programs are fastest, on the jaxlib at hand: the one table of them.

No option is set for a whole process. `jit_step`, `make_epoch`, `make_evaluation` and `kdjax.caching.cache_teacher` take
options for their own program, and `kdjax.runs.compare` those that a `Recipe` asks for.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxlib.version import __version__ as jaxlib_version

from kdjax import _checks
from kdjax._types import Weights

Options = Mapping[str, Any] | None

WITHOUT_YNN = {"xla_cpu_experimental_ynn_fusion_type": ""}
ONEDNN = {"xla_cpu_experimental_onednn_custom_call": True}
# From which jaxlib on, newest first. YNNPACK runs convolutions of 32 channels or more on one core, Eigen on all; oneDNN is
# faster still, where it is there.
TABLE: dict[str, tuple[tuple[tuple[int, ...], dict[str, Any]], ...]] = {
    "residual": (((0, 11, 2), WITHOUT_YNN | ONEDNN), ((0, 10, 2), WITHOUT_YNN)),
}
BEFORE = (0, 13)  # the first jaxlib of which nothing has been measured
RUN_ONCE = {"xla_backend_optimization_level": 1}  # compiled in a quarter of the time


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


def jit_init(init: Callable[..., Weights]) -> Callable[..., Weights]:
    """Compiles a network's start into one program, which takes a fraction of the time of compiling its operations singly.

    Args:
      init: ``init(rng, inputs) -> Weights``, such as that of `kdjax.networks.from_linen`. It must be pure, as for
        ``jax.jit``: it is traced once, and what it draws by another generator than `rng` is then drawn for all seeds.

    Returns:
      The same function, whose numbers may differ by rounding. On a CPU its program is optimized little, since it runs once.
      Called within another program it is part of that one.

    Raises:
      ValueError: if `init` is no function.

    Example:
      >>> def init(rng, inputs):
      ...     return Weights(jax.random.normal(rng, (inputs.shape[-1], 3)), {})
      >>> jit_init(init)(jax.random.key(0), jnp.ones((1, 4))).params.shape
      (4, 3)
    """
    _checks.function("init", init, "init(rng, inputs)")
    programs: list[Callable[..., Weights]] = []  # made at the first call, when it is known where it runs

    @functools.wraps(init)
    def call(*given: Any, **named: Any) -> Weights:
        # What is made while a program is traced is traced; so may an argument be.
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((jnp.zeros(()), given, named))):
            return init(*given, **named)
        if not programs:
            programs.append(jax.jit(init, **with_options(RUN_ONCE if jax.default_backend() == "cpu" else None)))
        return programs[0](*given, **named)

    return call
