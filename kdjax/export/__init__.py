"""A student handed over, alone: as StableHLO, ONNX or safetensors, each read back and compared before it is written.

Orbax weights, for kdjax itself, are `kdjax.checkpoints.save_weights`'.
"""

from kdjax.export._onnx import read_onnx as read_onnx
from kdjax.export._onnx import to_int8 as to_int8
from kdjax.export._onnx import to_onnx as to_onnx
from kdjax.export._safetensors import from_safetensors as from_safetensors
from kdjax.export._safetensors import to_safetensors as to_safetensors
from kdjax.export._stablehlo import open_stablehlo as open_stablehlo
from kdjax.export._stablehlo import to_stablehlo as to_stablehlo

__all__ = [
    "from_safetensors",
    "open_stablehlo",
    "read_onnx",
    "to_int8",
    "to_onnx",
    "to_safetensors",
    "to_stablehlo",
]
