"""Which packages are optional, which extra of kdjax brings each, and what is said where one is missing."""

from typing import NamedTuple


class Package(NamedTuple):
    """An optional package: its module, the name to install it by, the extra that brings it, and what for."""

    module: str
    distribution: str
    extra: str
    purpose: str


CORE = ("jax", "jaxlib", "jaxtyping", "numpy", "optax")
OPTIONAL = (
    Package("flax", "flax", "models", "networks by name"),
    Package("orbax", "orbax-checkpoint", "checkpoints", "saved weights and runs"),
    Package("tyro", "tyro", "runs", "the command line"),
    Package("rich", "rich", "runs", "tables and progress"),
    Package("matplotlib", "matplotlib", "runs", "figures of reports"),
    Package("tensorboardX", "tensorboardX", "runs", "TensorBoard"),
    Package("sklearn", "scikit-learn", "data", "digits"),
    Package("PIL", "pillow", "data", "folder:DIR"),
    Package("tensorflow_datasets", "tensorflow-datasets", "data", "mnist, tfds:NAME"),
    Package("grain", "grain", "data", "streams"),
    Package("flatbuffers", "flatbuffers", "export", "StableHLO"),
    Package("safetensors", "safetensors", "export", "safetensors"),
    Package("jax2onnx", "jax2onnx", "onnx", "ONNX"),
    Package("onnxruntime", "onnxruntime", "onnx", "ONNX"),
)


def missing(error: BaseException) -> str | None:
    """What to install where an import has failed, in a sentence; None where no module was missing."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            module = cause.name.partition(".")[0]
            for package in OPTIONAL:
                if package.module == module:
                    return (
                        f"{package.distribution} is not installed ({package.purpose}). Install it by {install(package)}"
                    )
            return f"the module {cause.name} is not installed, and no extra of kdjax brings it."
        cause = cause.__cause__ or cause.__context__
    return None


def install(package: Package) -> str:
    """The command that installs the package's extra."""
    return f'pip install "kdjax[{package.extra}]"'
