"""A wide residual network teaches a smaller one, on images of 32 × 32 pixels: what both sides compute, and in which ways."""

from dataclasses import dataclass

import numpy as np

TEACHER, STUDENT = "wrn_40_2", "wrn_16_2"
IMAGE = (32, 32, 3)
CLASSES = 100
LEARNING_RATE = 0.05
MOMENTUM = 0.9
DECAY = 5e-4
TEMPERATURE = 4.0
ALPHA = 0.1
"""The weight of the labels; the soft targets weigh the rest."""
STEP, PRODUCT = "distillation", "matrix product"
CHUNK = 8
"""Steps in one scan."""
FLOAT32, TF32, BFLOAT16 = "float32", "TF32", "bfloat16"


@dataclass(frozen=True)
class Way:
    """How one side computes.

    Attributes:
      side: the module that makes its steps.
      precision: of convolutions and matrix products; parameters and losses are float32 always.
      channels_last: PyTorch's layout of images.
      compiled: PyTorch's mode of compilation; None: eager.
      scanned: whether kdjax makes `CHUNK` steps a call.
    """

    side: str
    precision: str
    channels_last: bool = False
    compiled: str | None = None
    scanned: bool = False

    @property
    def name(self) -> str:
        words = ["kdjax" if self.side == KDJAX else "PyTorch"]
        if self.side == PYTORCH:
            words.append({None: "eager", "default": "compiled"}.get(self.compiled, f"compiled, {self.compiled}"))
        words += ["channels-last"] * self.channels_last + [f"{CHUNK} steps a call"] * self.scanned + [self.precision]
        return ", ".join(words).replace("PyTorch, ", "PyTorch ", 1)


KDJAX, PYTORCH = "_wrn_kdjax", "_wrn_pytorch"
ON_CPU = (
    Way(KDJAX, FLOAT32),
    *(Way(PYTORCH, FLOAT32, layout, mode) for mode in (None, "default") for layout in (False, True)),
)
ON_GPU = tuple(
    way
    for precision in (TF32, BFLOAT16)
    for way in (
        *(Way(KDJAX, precision, scanned=scanned) for scanned in (False, True)),
        *(Way(PYTORCH, precision, layout) for layout in (False, True)),
        *(Way(PYTORCH, precision, True, mode) for mode in ("reduce-overhead", "max-autotune")),
    )
)


def multiplications(params: dict) -> int:
    """Of one image's way through the network: a kernel's number is used once for each position, beyond the border too."""
    pixels = IMAGE[0] * IMAGE[1]
    positions = {"stem": pixels, "stage1": pixels, "stage2": pixels // 4, "stage3": pixels // 16, "logits": 1}
    total = 0
    for name, part in params.items():
        kernels = [layer["kernel"] for layer in (part, *part.values()) if isinstance(layer, dict) and "kernel" in layer]
        total += sum(kernel.size for kernel in kernels) * positions.get(name.split("_")[0], 0)
    return total


def flops_of_a_step(params: dict[str, dict], batch: int) -> float:
    """Convolutions and logits alone: the teacher forwards, the student forwards and twice that backwards.

    The gradient of the first convolution's inputs is nobody's, and is not counted.
    """
    teacher, student = (multiplications(params[name]) for name in (TEACHER, STUDENT))
    unused = params[STUDENT]["stem"]["kernel"].size * IMAGE[0] * IMAGE[1]
    return 2.0 * batch * (teacher + 3 * student - unused)


def square(size: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
