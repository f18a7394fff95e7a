"""Of what a measurement was made: versions, hardware, and the code of the losses. No names, no paths."""

import ast
import hashlib
import os
import platform
import re
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
    """Changes with the code of the losses, and not with their docstrings, comments, layout or checks of arguments."""
    files = sorted(Path(losses.__file__).parent.glob("*.py"))
    text = "\n".join(_bare(ast.parse(file.read_text())) for file in files)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def fingerprint_of(loss: str) -> str:
    """The same of one loss alone: its function, and all of kdjax.losses that it calls, by way of others too."""
    folder = Path(losses.__file__).parent
    trees = {file.stem: ast.parse(file.read_text()) for file in folder.glob("*.py")}
    found: dict[tuple[str, str], str] = {}
    pending = [("__init__", loss)]
    while pending:
        place = pending.pop()
        if place in found:
            continue
        module, name = place
        statements = [node for node in trees[module].body if name in _names_made(node)]
        imported = [_source(node, name) for node in statements if isinstance(node, ast.ImportFrom)]
        if imported:
            pending += [place for place in imported if place is not None and place[0] in trees and place[1]]
            continue
        found[place] = " ".join(map(_bare, statements))
        for node in (inner for statement in statements for inner in ast.walk(statement)):
            if isinstance(node, ast.Name):
                pending.append((module, node.id))
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in trees:
                pending.append((node.value.id, node.attr))
    text = "\n".join(f"{'.'.join(place)} {bare}" for place, bare in sorted(found.items()) if bare)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _names_made(statement: ast.stmt) -> set[str]:
    """The names that a module's statement makes."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return {statement.name}
    if isinstance(statement, ast.ImportFrom):
        return {alias.asname or alias.name for alias in statement.names}
    if isinstance(statement, (ast.Assign, ast.AnnAssign)):
        return {
            node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
    return set()


def _source(statement: ast.ImportFrom, name: str) -> tuple[str, str] | None:
    """The module of kdjax.losses that a name is imported from, and its name there; of a whole module, no name."""
    (original,) = (alias.name for alias in statement.names if (alias.asname or alias.name) == name)
    if statement.module == "kdjax.losses":
        return original, ""
    if (statement.module or "").startswith("kdjax.losses."):
        return str(statement.module).rpartition(".")[2], original
    return None


def _bare(node: object) -> str:
    if isinstance(node, list):
        return "[" + " ".join(map(_bare, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    # Fields that are empty differ between versions of Python. A statement that is only a string is a docstring.
    fields = {name: value for name, value in ast.iter_fields(node) if value is not None and value != []}
    if isinstance(fields.get("body"), list):
        fields["body"] = [one for one in fields["body"] if not (_is_docstring(one) or _only_checks(one))]
    return f"({type(node).__name__} {' '.join(f'{name}={_bare(value)}' for name, value in fields.items())})"


def _only_checks(statement: ast.stmt) -> bool:
    """Whether all that a statement can do is to refuse an argument: no value of a valid call comes from it."""
    if isinstance(statement, ast.Raise):
        return True
    if isinstance(statement, ast.Expr):
        return bool(re.match(r"_checks\.\w+\(", ast.unparse(statement)))
    inner = getattr(statement, "body", None)
    return isinstance(statement, ast.If | ast.For) and not statement.orelse and all(map(_only_checks, inner or [None]))


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
