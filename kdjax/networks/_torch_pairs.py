"""Which layer of a state dict is which of a module: by the names that are given, by shapes, by names, by order.

Where two layers have one shape, something else must tell them apart, and it is said what did. What nothing tells apart is
an error, never a guess.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from kdjax.networks._names import automatic, common, natural, role_of, words
from kdjax.networks._torch_layers import Key, Source, Target, described, listed


class Pair(NamedTuple):
    """A source's layer, a target's, and what decided, where it was not the shape alone."""

    source: Source
    target: Target
    how: str


_ASKED = "names must say which is which, as {torch name: Linen path}"


def pairs(sources: Sequence[Source], targets: Sequence[Target], names: Mapping[str, str], ordered: bool) -> list[Pair]:
    """Every source with one target.

    Args:
      sources: in the order of registration.
      targets: in the order of the calls.
      names: parts of the source's names, and the target's paths of the same parts.
      ordered: whether the source's order is that of registration; if not, it is that of an alphabet.

    Raises:
      ValueError: if one is left over on either side, or more than one way is possible.
    """
    inverse = {path: name for name, path in names.items()}
    if len(inverse) < len(names):
        raise ValueError(f"names must give each path once; got {dict(names)}.")
    mine = [_region(source.name, names, ".") for source in sources]
    theirs = [_region(target.path, inverse, "/") for target in targets]
    for argument, given, found, known in (
        ("keys", names, mine, [source.name for source in sources]),
        ("values", inverse, theirs, [target.path for target in targets]),
    ):
        for name in given:
            if name not in found:
                near = get_close_matches(name, known, n=3) or known[:5]
                raise ValueError(
                    f"names must have {argument} that stand for layers; {name!r} does not: {listed(near)} do."
                )
    paired = []
    for name, path in [*names.items(), ("", "")]:
        own = [source for source, region in zip(sources, mine, strict=True) if region == name]
        other = [target for target, region in zip(targets, theirs, strict=True) if region == path]
        paired += _Region(own, other, name, path, ordered).pairs()
    return paired


def _region(name: str, parts: Mapping[str, str], separator: str) -> str:
    """The longest of the parts in which a name lies; "" where none."""
    inside = [part for part in parts if name == part or name.startswith(part + separator)]
    return max(inside, key=len, default="")


class _Region:
    """Sources and targets that may only be paired with each other."""

    def __init__(
        self, sources: Sequence[Source], targets: Sequence[Target], name: str, path: str, ordered: bool
    ) -> None:
        self.targets, self.ordered = targets, ordered
        self.sources = sources
        self.prefixes = (name, path)
        self.wrapper = common([source.name for source in sources])
        self.where = {id(one): place for many in (sources, targets) for place, one in enumerate(many)}
        self.found: dict[int, Pair] = {}  # by the source's place

    def pairs(self) -> list[Pair]:
        classes = self.classes()
        matrices = [key for key in classes if not _is_vector(key)]
        vectors = [key for key in classes if _is_vector(key) and key[0] != "parameter"]
        self.alike = self.ordered and self.sequence(classes, 0) == self.sequence(classes, 1)
        for key in matrices:
            self.solve(key, *classes[key])
        self.check_neighbours(matrices, classes)
        for key in [*vectors, *(key for key in classes if key[0] == "parameter")]:
            self.solve(key, *classes[key])
        return [self.found[place] for place in sorted(self.found)]

    def classes(self) -> dict[Key, tuple[list[Source], list[Target]]]:
        """Sources and targets by what both are; an error for what is on one side alone, or may be two things."""
        wanted: dict[Key, list[Target]] = {}
        for target in self.targets:
            wanted.setdefault(target.key, []).append(target)
        offered: dict[Key, list[Source]] = {}
        several: dict[tuple[Key, ...], list[Source]] = {}
        for source in self.sources:
            possible = tuple(key for key in source.keys if key in wanted)
            if len(possible) > 1:
                several.setdefault(possible, []).append(source)
            else:
                offered.setdefault(possible[0] if possible else ("none", (), frozenset([source.name])), []).append(
                    source
                )
        for possible, own in several.items():
            free = [key for key in possible for _ in range(len(wanted[key]) - len(offered.get(key, [])))]
            tied = all((one.entries["weight"].array == own[0].entries["weight"].array).all() for one in own)
            if len(set(free)) > 1 and not (tied and len(free) == len(own)):
                one = own[0]
                raise ValueError(
                    f"{_ASKED}: {listed([each.name for each in own])}, of shape {one.entries['weight'].array.shape}, may be "
                    f"{' or '.join(f'the {key[0]} {target.path}' for key in possible for target in wanted[key])}."
                )
            # Too many of them go to the first kind, where the error will list them.
            for source, key in zip(own, [*free, *possible[:1] * len(own)], strict=False):
                offered.setdefault(key, []).append(source)
        uneven = [key for key in {**wanted, **offered} if len(wanted.get(key, ())) != len(offered.get(key, ()))]
        if uneven:
            self.refuse(uneven, offered, wanted)
        return {key: (sorted(own, key=lambda one: self.where[id(one)]), wanted[key]) for key, own in offered.items()}

    def refuse(
        self, uneven: Sequence[Key], offered: Mapping[Key, list[Source]], wanted: Mapping[Key, list[Target]]
    ) -> None:
        here = [(source, key) for key in uneven for source in offered.get(key, ())]
        there = [target for key in uneven for target in wanted.get(key, ())]
        mine = {source.name: described(source.name, _shape(source)) for source, _ in here}
        theirs = [
            f"{target.path} {target.key[1]}, {target.key[0]} of {'+'.join(sorted(target.key[2]))}" for target in there
        ]
        near = []
        for source, _ in here:
            scored = [(_nearness(source, target), target.path) for target in there]
            best = max(scored, default=(0, ""))
            near += [f"{source.name} to {best[1]}"] if best[0] > 0 else []
        within = f" within {self.prefixes[0]!r} and {self.prefixes[1]!r}" if self.prefixes[0] else ""
        raise ValueError(
            f"source and module must have the same layers{within}; these do not go together: in the source "
            f"{listed(list(mine.values()))}; in the module {listed(theirs)}. Nearest: {listed(near)}. Name what is not "
            "wanted in skip, as of weights that two layers share and the module has once; what has to keep its own numbers "
            "in keep; and what is another layer's in names."
        )

    def sequence(self, classes: Mapping[Key, Any], side: int) -> list[Key]:
        """The layers' kinds and shapes in order, bare parameters left out: their order is not known."""
        places = [
            (self.where[id(one)], key) for key, both in classes.items() if key[0] != "parameter" for one in both[side]
        ]
        return [key for _, key in sorted(places, key=lambda pair: pair[0])]

    def solve(self, key: Key, mine: list[Source], theirs: list[Target], how: str = "") -> None:
        """Pairs of one kind and shape, and of one role in an attention where `how` says so."""
        if len(mine) == 1:
            return self.add(mine, theirs, how)
        count = f"among {len(mine)} of this shape"
        if key[0] == "linear":
            for role in ("query", "key", "value", "out"):
                own = [one for one in mine if role_of(one.name, ".") == role]
                other = [one for one in theirs if role_of(one.path, "/") == role]
                if own and len(own) == len(other) < len(mine):
                    self.solve(key, own, other, f"by its name, as a {role}")
                    mine = [one for one in mine if all(one is not each for each in own)]
                    theirs = [one for one in theirs if all(one is not each for each in other)]
                    count = f"among {len(mine)} of this shape that are left"
            if len(mine) == 1:
                return self.add(mine, theirs, f"what is left {count}")
        if self.by_name(mine, theirs, f"by name {count}"):
            return None
        in_order = sorted(mine, key=lambda one: natural(one.name))
        one_pattern = len({re.sub(r"\d+", "0", one.name) for one in mine}) == 1
        if self.ordered and one_pattern and in_order != mine and key[0] != "parameter":
            raise ValueError(
                f"{_ASKED}: {listed([one.name for one in mine])} have one shape, {key[1]}, and stand in another "
                "order than that of their numbers, as where sorted files were put together."
            )
        if self.ordered and key[0] != "parameter":
            if self.alike:
                return self.add(mine, theirs, f"by order {count}", check=True)
            if _is_vector(key):
                for step, word in ((-1, "before"), (1, "after")):
                    if self.by_neighbour(mine, theirs, step, f"by the layer {word} it, {count}"):
                        return None
            else:
                return self.add(mine, theirs, f"by order {count}", check=True)
        if one_pattern and key[0] != "parameter" and (in_order == mine or not self.ordered):
            return self.add(in_order, theirs, f"by number {count}", check=True)
        reason = (
            "neither names nor neighbours tell them apart"
            if self.ordered
            else ("the source is sorted by name, as .safetensors files are, and does not keep the order of the layers")
        )
        raise ValueError(
            f"{_ASKED}: {listed([one.name for one in mine])} and {listed([one.path for one in theirs])} have one shape, "
            f"{key[1]}, and {reason}."
        )

    def by_name(self, mine: Sequence[Source], theirs: Sequence[Target], how: str) -> bool:
        other = {self.plain(one.path, 1): one for one in theirs if not automatic(one.path)}
        for bare in (False, True):
            own = {self.plain(one.name, 0, bare): one for one in mine}
            if len(own) == len(mine) and own.keys() == other.keys():
                self.add(list(own.values()), [other[name] for name in own], how)
                return True
        return False

    def by_neighbour(self, mine: Sequence[Source], theirs: Sequence[Target], step: int, how: str) -> bool:
        own = [self.neighbour(one, step, 0) for one in mine]
        other = [self.neighbour(one, step, 1) for one in theirs]
        if Counter(own) != Counter(other):
            return False
        for place in dict.fromkeys(own):
            self.add(
                [one for one, at in zip(mine, own, strict=True) if at == place],
                [one for one, at in zip(theirs, other, strict=True) if at == place],
                how,
                check=True,
            )
        return True

    def neighbour(self, one: Any, step: int, side: int) -> int | None:
        """The nearest matrix before or after a layer, by its source's place."""
        here = self.where[id(one)]
        places = {
            self.where[id(pair[side])]: place for place, pair in self.found.items() if not _is_vector(pair[1].key)
        }
        beyond = [at for at in places if (at - here) * step > 0]
        return places[min(beyond, key=lambda at: abs(at - here))] if beyond else None

    def check_neighbours(
        self, matrices: Sequence[Key], classes: Mapping[Key, tuple[list[Source], list[Target]]]
    ) -> None:
        """Where the whole order differs, a pair by order must share a neighbour with its like."""
        if self.alike or not self.ordered:
            return
        for key in matrices:
            for source in classes[key][0]:
                pair = self.found[self.where[id(source)]]
                if pair.how.startswith("by order") and not any(
                    self.neighbour(source, step, 0) == self.neighbour(pair.target, step, 1) for step in (-1, 1)
                ):
                    raise ValueError(
                        f"{_ASKED}: {listed([one.name for one in classes[key][0]])} and "
                        f"{listed([one.path for one in classes[key][1]])} have one shape, {key[1]}, and by order "
                        f"{source.name} would go to {pair.target.path}, which has other layers before and after it."
                    )

    def add(self, mine: Sequence[Source], theirs: Sequence[Target], how: str, check: bool = False) -> None:
        named = {self.plain(one.path, 1): one for one in theirs if not automatic(one.path)}
        for source, target in zip(mine, theirs, strict=True):
            roles = {role_of(source.name, "."), role_of(target.path, "/")} - {""}
            other = named.get(self.plain(source.name, 0), named.get(self.plain(source.name, 0, bare=True), target))
            if check and (other is not target or (target.key[0] == "linear" and len(roles) > 1)):
                raise ValueError(
                    f"{_ASKED}: {how} {source.name} would go to {target.path}, and by its name it would not."
                )
            self.found[self.where[id(source)]] = Pair(source, target, how)

    def plain(self, name: str, side: int, bare: bool = False) -> tuple[str, ...]:
        """A name without its region's, in words and numbers: layer1.0.conv2 and layer1_0/conv2 are one.

        `bare` is without what all sources begin with, such as DataParallel's ``module.``.
        """
        own = name[len(self.wrapper if bare else self.prefixes[side]) :]
        return words(own)


def _is_vector(key: Key) -> bool:
    return "normalisation" in key[0] or key[0] == "parameter"


def _shape(source: Source) -> tuple[int, ...]:
    entry: Any = source.entries.get("weight", next(iter(source.entries.values())))
    return entry.array.shape


def _nearness(source: Source, target: Target) -> int:
    """How many sizes agree, of the best thing that the source may be."""
    kinds: list[Key] = [key for key in source.keys if key[0] == target.key[0] and len(key[1]) == len(target.key[1])]
    agree: Callable[[Key], int] = lambda key: 1 + sum(a == b for a, b in zip(key[1], target.key[1], strict=True))  # noqa: E731
    return max(map(agree, kinds), default=0)
