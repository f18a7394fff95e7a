"""What the networks for small images share: convolutions with PyTorch's borders, normalised; the logits; what is checked."""
# mypy: disable-error-code="misc, untyped-decorator"
# (Flax's types are not read: a Module is Any to mypy.)

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from kdjax import _checks
from kdjax._types import Outputs
from kdjax.models._convolution import Convolved, Images, convolve, convolve_in_groups
from kdjax.models._normalization import Activated

HE = nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")
HALF_HE = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
BEFORE = "_before_relu"
"""What the name of a stage's output ends with where the ReLU that follows is not taken yet."""


def convolution(
    width: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False, dtype: Any, name: str
) -> Any:
    """A Linen convolution, of odd `size`, that reads size // 2 pixels beyond each border with any stride, as PyTorch's do.

    ``"SAME"`` would read none beyond the upper and left ones with stride 2.
    """
    return nn.Conv(
        width,
        (size, size),
        (stride, stride),
        [(size // 2, size // 2)] * 2,
        feature_group_count=groups,
        use_bias=bias,
        kernel_init=HE,
        dtype=dtype,
        conv_general_dilated=_convolved,
        name=name,
    )


def _convolved(inputs: Array, kernel: Array, strides: Any, padding: Any, **rest: Any) -> Array:
    """In the form that is fast on a CPU, where there is one; its ``"SAME"`` is the padding of `convolution`."""
    del padding
    groups = rest["feature_group_count"]
    if groups > 1:
        return convolve_in_groups(inputs, kernel, strides[0], groups)
    return convolve(inputs, kernel, "SAME", stride=strides[0], in_blocks=True)


def normalised(x: Images, name: str, *, train: bool, axis_name: str | None, dtype: Any) -> Convolved:
    """Over the batch, with PyTorch's epsilon and momentum. The new submodule, `name`, belongs to whoever calls."""
    norm = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-5, axis_name=axis_name, dtype=dtype, name=name
    )
    return norm(x)


def activated(x: Images, name: str, *, train: bool, axis_name: str | None, dtype: Any) -> Convolved:
    """`normalised`, and a ReLU."""
    norm = Activated(not train, axis_name=axis_name, momentum=0.9, epsilon=1e-5, dtype=dtype, name=name)
    return norm(x)


def unit(
    x: Images,
    name: str,
    width: int,
    size: int,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    train: bool,
    axis_name: str | None,
    dtype: Any,
) -> Convolved:
    """A convolution, `name`, and its normalisation, `name`_norm: submodules of whoever calls."""
    x = convolution(width, size, stride=stride, groups=groups, bias=bias, dtype=dtype, name=name)(x)
    return normalised(x, f"{name}_norm", train=train, axis_name=axis_name, dtype=dtype)


def shuffled(x: Images, groups: int) -> Convolved:
    """Channels in turn from each of `groups` runs of them: channel c of run g comes to c · groups + g."""
    *shape, channels = x.shape
    return jnp.swapaxes(x.reshape(*shape, groups, channels // groups), -1, -2).reshape(x.shape)


def outputs(x: Float[Array, "batch dim"], features: dict[str, Array], classes: int, dtype: Any) -> Outputs:
    """The logits of an embedding, which joins the features; the new submodule belongs to whoever calls."""
    logits = nn.Dense(classes, dtype=dtype, kernel_init=HALF_HE, name="logits")(x)
    return Outputs(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), features | {"embedding": x})


def in_order(stages: dict[str, Array]) -> dict[str, Array]:
    """Features by name from sums before a ReLU: these first, so that a network's last features are its outputs."""
    return {f"{name}{BEFORE}": x for name, x in stages.items()} | {name: nn.relu(x) for name, x in stages.items()}


def computing_type(network: nn.Module) -> Any:
    """The network's own `dtype`, or where that is None the type of its parameters, whatever the inputs are."""
    if network.dtype is not None:
        return network.dtype
    params = jax.tree.leaves(network.variables.get("params", {}))  # none yet, while they are made
    return jnp.result_type(*params) if params else jnp.float32


def check_images(inputs: Any, least: int = 1) -> None:
    _checks.rank("inputs", inputs, 4, "[batch, height, width, channels]")
    _checks.floating("inputs", inputs)
    if min(inputs.shape[1:3]) < least:
        raise ValueError(f"inputs must be at least {least} pixels high and wide; got shape {tuple(inputs.shape)}.")
