"""Of what a measurement was made: versions, hardware, and the code of the losses. No names, no paths."""

import ast
import hashlib
import os
import platform
from importlib.metadata import version
from pathlib import Path

from kdjax import losses

PACKAGES = ("jax", "jaxlib", "numpy", "hypothesis")


def described() -> dict[str, str]:
    return {
        "software": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in PACKAGES)]
        ),
        "hardware": f"{os.cpu_count()} cores of {_processor()}, {platform.system()}",
        "code": fingerprint(),
    }


def fingerprint() -> str:
    """Changes with the code of the losses, and not with their docstrings, comments or layout."""
    files = sorted(Path(losses.__file__).parent.glob("*.py"))
    text = "\n".join(_bare(ast.parse(file.read_text())) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _bare(node: object) -> str:
    if isinstance(node, list):
        return "[" + " ".join(map(_bare, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Fields that are empty differ between versions of Python. A statement that is only a string is a docstring.
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(fields.get("body"), list):
        fields["body"] = [statement for statement in fields["body"] if not _is_docstring(statement)]
    return f"({type(node).__name__} {' '.join(f'{name}={_bare(value)}' for name, value in fields.items())})"


def _is_docstring(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _processor() -> str:
    # The standard library leaves the name empty on Linux.
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
