"""Choosing a tree's leaves by their paths, such as ``stage1/norm/scale``."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def within(pattern: str, path: str) -> re.Match[str] | None:
    """Where a regular expression matches whole names of a path: one, or several in a row.

    ``stage1`` stands in ``stage1/kernel`` and in ``batch_stats/stage1/norm/mean``, and not in ``stage10/kernel``;
    ``^stage1`` only where the path begins with it.
    """
    return re.search(rf"(?:^|(?<=/))(?:{pattern})(?=/|$)", path)


def chosen(argument: str, patterns: Sequence[str], paths: Iterable[str]) -> set[str]:
    """The paths in which any of the patterns stands; each pattern must stand in one at least."""
    known = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        check(argument, pattern)
        own = {path for path in known if within(pattern, path)}
        if not own:
            raise ValueError(
                f"{argument} must name parts of the tree; {pattern!r} stands in no path.{_hint(pattern, known)}"
            )
        found |= own
    return found


def check(argument: str, pattern: str) -> None:
    """Refuses what is no regular expression, as early as it is known."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument} must be regular expressions; {pattern!r} is none: {error}.") from error


def _hint(pattern: str, paths: Sequence[str]) -> str:
    runs: dict[str, None] = {}
    for path in paths:
        names = path.split("/")
        for start in range(len(names)):
            runs |= dict.fromkeys("/".join(names[start:end]) for end in range(start + 1, len(names) + 1))
    near = get_close_matches(pattern, runs, n=3)
    tops = list(dict.fromkeys(path.split("/")[0] for path in paths))
    if near:
        return f" Did you mean {' or '.join(map(repr, near))}?"
    return f" The tree's own parts are {', '.join(tops) or 'none: it has no leaves'}."
