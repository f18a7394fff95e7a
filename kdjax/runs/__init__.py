"""What a run is: its records and its report."""

from kdjax._files import append_json_line as append_json_line
from kdjax._files import as_json as as_json
from kdjax._files import write_bytes as write_bytes
from kdjax._files import write_json as write_json

__all__ = [
    "append_json_line",
    "as_json",
    "write_bytes",
    "write_json",
]
