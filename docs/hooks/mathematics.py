"""Turns LaTeX into MathML while the site is built: browsers draw it by themselves, and no script is fetched."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(div|span) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
# A function's name, and whether an argument without brackets follows: only log p wants a space there.
NAME = re.compile(r"(<msub>)?<m[io][^>]*>([A-Za-z]{2,})</m[io]>(<m(?:i|row|sub|subsup|frac|over|mover|sup)>)?")


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page's HTML."""
    return FORMULA.sub(_mathml, content)


def _mathml(found: re.Match[str]) -> str:
    block = found[1] == "div"
    mathml = convert(html.unescape(found[2]).strip(), display="block" if block else "inline")
    mathml = NAME.sub(_name, mathml)
    return f'<div class="formula">{mathml}</div>' if block else mathml


def _name(found: re.Match[str]) -> str:
    index, name, argument = found[1] or "", found[2], found[3] or ""
    space = "0.17em" if argument and not index else "0"
    return f'{index}<mo form="prefix" lspace="0.17em" rspace="{space}">{name}</mo>{argument}'
