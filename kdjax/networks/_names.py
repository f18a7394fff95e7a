"""What the name of a layer tells, in PyTorch's state dicts and in Flax's trees: its words, its number, its role."""

import re
from collections.abc import Sequence

_ROLES = {
    role: name
    for name, roles in {
        "query": "q query q_proj q_lin wq to_q q_linear linear_q query_proj",
        "key": "k key k_proj k_lin wk to_k k_linear linear_k key_proj",
        "value": "v value v_proj v_lin wv to_v v_linear linear_v value_proj",
        "out": "o out out_proj o_proj out_lin wo to_out proj",
    }.items()
    for role in roles.split()
}


def common(names: Sequence[str]) -> str:
    """The parts with which all names begin, each being longer."""
    parts = [name.split(".")[:-1] for name in names]
    alike: list[str] = []
    for several in zip(*parts, strict=False):
        if len({*several}) > 1:
            break
        alike.append(several[0])
    return ".".join(alike)


def automatic(path: str) -> bool:
    """Whether Flax made a name, such as Conv_0; it counts the layers as they are made, not as they are called."""
    return any(re.fullmatch(r"[A-Z]\w*_\d+", name) for name in path.split("/"))


def role_of(name: str, separator: str) -> str:
    return _ROLES.get(name.rpartition(separator)[2].lower(), "")


def natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


def words(name: str) -> tuple[str, ...]:
    """Words and numbers: layer1.0.conv2 and layer1_0/conv2 have the same."""
    return tuple(re.findall(r"[a-z]+|\d+", name.lower()))
