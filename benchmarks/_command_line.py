"""A command line from a dataclass by argparse alone: a machine with a GPU that is lent for minutes may have nothing more."""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")


def command_line(settings: type[Settings], description: str | None, words: Sequence[str] | None = None) -> Settings:
    """The settings that the command line says, by `settings`' fields; the text after a field is its help.

    A field is a str, int, float, Path or bool, a ``Literal`` of texts, a tuple of any number of these, or one of them or
    None; and has a default. What `settings` itself refuses by a ValueError ends as argparse's own errors do.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    hints, told = get_type_hints(settings), _told(settings)
    for field in fields(settings):  # type: ignore[arg-type]
        if field.default is MISSING:
            raise ValueError(f"{field.name} of {settings.__name__} must have a default.")
        default = "" if field.default in (None, (), False, True) else f"; default {_shown(field.default)}"
        text = f"{told.get(field.name, '')}{default}".replace("%", "%%")
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, default=field.default, help=text, **_reading(hints[field.name]))
    given = parser.parse_args(words)
    try:
        return settings(
            **{name: tuple(value) if isinstance(value, list) else value for name, value in vars(given).items()}
        )
    except ValueError as error:
        parser.error(str(error))


def _reading(hint: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (one for one in get_args(hint) if one is not NoneType)
        return _reading(hint)
    if get_origin(hint) is tuple:
        return {"nargs": "+"} | _reading(get_args(hint)[0])
    return {"choices": get_args(hint)} if get_origin(hint) is Literal else {"type": hint}


def _told(settings: type) -> dict[str, str]:
    """The text that stands after each field, of the class and of those that it comes from."""
    found: dict[str, str] = {}
    for one in reversed(settings.__mro__[:-1]):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        name = None
        for part in tree.body:  # type: ignore[attr-defined]
            if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
                name = part.target.id
            elif name and isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant):
                found[name] = " ".join(str(part.value.value).split())
    return found


def _shown(default: Any) -> str:
    return " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
