"""What Markdown must be told about the docstrings: where examples stand, and which names have a page."""

import importlib
import inspect
import re
from typing import Any

import griffe

ROOMS = ("kdjax.losses", "kdjax.connectors", "kdjax")  # a name in two rooms belongs to the first
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n\1\S.*)*", re.MULTILINE)
RETURNS = re.compile(r"^( *Returns:\n +)(?=\S)", re.MULTILINE)
NAME = re.compile(r"(?<![`\[])`([A-Za-z_]+)`(?!`)")


def _pages() -> dict[str, str]:
    found: dict[str, str] = {}
    for room in ROOMS:
        module = importlib.import_module(room)
        names = (name for name in module.__all__ if not inspect.ismodule(getattr(module, name)))  # modules have no page
        found |= {name: f"{room}.{name}" for name in names} | found
    return found


class Docstrings(griffe.Extension):
    """Fences doctests as code, gives what is returned its type, and links `name` to the page of what it names."""

    def __init__(self) -> None:
        self.pages = _pages()

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe with everything that it has read."""
        if obj.docstring is None:
            return
        text = EXAMPLE.sub(lambda found: f"{found[1]}```pycon\n{found[0]}\n{found[1]}```", obj.docstring.value)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # Else what stands before a colon in the first line would be taken for the type.
            text = RETURNS.sub(lambda found: f"{found[1]}{obj.returns}: ", text)
        own = {obj.name, *(parameter.name for parameter in getattr(obj, "parameters", ()))}
        obj.docstring.value = NAME.sub(lambda found: self._link(found, own), text)

    def _link(self, found: re.Match[str], own: set[str]) -> str:
        name = found[1]
        return f"[`{name}`][{self.pages[name]}]" if name in self.pages and name not in own else found[0]
