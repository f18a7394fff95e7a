"""From a trace and the compiled program to milliseconds: which part of the step each operation belongs to, and its kind.

`kdjax.training` names its parts by `jax.named_scope`; XLA keeps the names in the program's metadata, and the profiler's
events carry the names of the program's instructions.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from jax.profiler import ProfileData

PARTS = (
    "teacher forward",
    "student forward",
    "loss",
    "student backward",
    "optimizer",
    "other operations",
    "dispatch and host",
)
KINDS = ("convolution", "matrix product", "other arithmetic", "copy", "none running")
COPIES = {"copy", "transpose", "reverse", "bitcast", "reshape", "parameter", "constant", "tuple", "fusion"}
PRODUCTS = {"dot", "ragged-dot"}
LIBRARY_PRODUCT = re.compile(r'custom_call_target="[^"]*(gemm|dot|matmul)', re.IGNORECASE)
LIBRARY_CONVOLUTION = re.compile(r'custom_call_target="[^"]*conv', re.IGNORECASE)
COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (?:\([^=]*\)|\S+) ([\w\-]+)\((.*)$")
SCOPE = re.compile(r"/(transpose\()?(?:jvp\()?(teacher|student|loss|optimizer)\)*(?:/|$)")
Place = tuple[str, str]  # part and kind


class Span(NamedTuple):
    """One run of one operation, in nanoseconds."""

    name: str
    start: float
    end: float


class _Instruction(NamedTuple):
    opcode: str
    rest: str  # operands, called computations and metadata
    computation: str

    @property
    def scope(self) -> str | None:
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found and "/" in found[1] else None


def part_of(scope: str) -> str:
    """The part of the step that a scope such as ``jit(step)/transpose(jvp(student))/CNN/…`` lies in.

    Example:
      >>> part_of("jit(step)/transpose(jvp(student))/CNN/stage1/mul")
      'student backward'
    """
    found = SCOPE.search(scope)
    if not found:
        return "other operations"
    backward, name = found.groups()
    if name == "student":
        return "student backward" if backward else "student forward"
    return "teacher forward" if name == "teacher" else name


def places(program: str) -> dict[str, Place]:
    """Part and kind of every instruction of an HLO text, by its name.

    The compiler drops some scopes. A fusion without one belongs where its last instruction with one does; any other
    instruction, such as a copy, where its first reader does. Only a convolution or product that the optimizer reads is no
    part of the optimizer: it is a gradient.
    """
    instructions: dict[str, _Instruction] = {}
    inside: dict[str, list[_Instruction]] = defaultdict(list)
    computation = ""
    for line in re.sub(r"/\*.*?\*/", "", program).splitlines():  # long tuples have comments, with "=" in them
        if opened := COMPUTATION.match(line):
            computation = opened[1]
        elif found := INSTRUCTION.match(line):
            instructions[found[1]] = instruction = _Instruction(found[2], found[3], computation)
            inside[computation].append(instruction)
    readers: dict[str, list[str]] = defaultdict(list)
    for name, instruction in instructions.items():
        for operand in re.findall(r"%([\w.\-]+)", instruction.rest.split(", metadata=")[0]):
            if operand in instructions:
                readers[operand].append(name)

    def part(name: str, seen: frozenset[str] = frozenset()) -> str | None:
        own, *within = _within(instructions[name], inside)
        scopes = (one.scope for one in [own, *reversed(within)])
        if found := next((scope for scope in scopes if scope), None):
            return part_of(found)
        inherited = (part(reader, seen | {name}) for reader in readers[name] if reader not in seen)
        found = next((one for one in inherited if one), None)
        heavy = _kind([own, *within]) in KINDS[:2]
        return "student backward" if heavy and found == "optimizer" else found

    return {
        name: (part(name) or "other operations", _kind(_within(instruction, inside)))
        for name, instruction in instructions.items()
    }


def shares(spans: Iterable[Span]) -> dict[str, float]:
    """Nanoseconds by operation. Where several run at once, each gets its part of the moment."""
    spans = [span for span in spans if span.end > span.start]
    edges = [(span.start, number) for number, span in enumerate(spans)]
    edges += [(span.end, number) for number, span in enumerate(spans)]
    running: set[int] = set()
    total: dict[str, float] = defaultdict(float)
    before = 0.0
    for moment, number in sorted(edges):
        for one in running:
            total[spans[one].name] += (moment - before) / len(running)
        before = moment
        running ^= {number}  # its first edge opens it, its second closes it
    return dict(total)


def read_spans(folder: Path, module: str) -> list[Span]:
    """The operations of one program in a folder that `jax.profiler.trace` wrote, on GPU streams or on the CPU's threads.

    A CPU operation may go on after its event: it ends where another event says so, which bears its number.
    """
    (file,) = folder.rglob("*.xplane.pb")
    planes = list(ProfileData.from_file(str(file)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    started: list[tuple[Span, object]] = []
    ends: dict[object, float] = {}
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):
                continue  # what the profiler derived from the streams
            for event in line.events:
                stats = dict(event.stats)
                if event.name.startswith("end: "):
                    ends[stats.get("_c")] = event.start_ns
                elif devices or stats.get("hlo_module") == module:
                    name = str(stats.get("hlo_op", event.name))
                    span = Span(name, event.start_ns, event.start_ns + event.duration_ns)
                    started.append((span, stats.get("_p")))
    return [span._replace(end=max(span.end, ends.get(key, span.end))) for span, key in started]


def breakdown(spans: Iterable[Span], where: Mapping[str, Place], wall: float) -> dict[Place, float]:
    """Nanoseconds by part and kind; what no operation accounts for of the `wall` time is dispatch and host."""
    # In a CUDA graph a kernel has no more than its own name, which is the instruction's without dots and dashes.
    kernels = {re.sub(r"[.\-]", "_", name): place for name, place in where.items()}
    result: dict[Place, float] = defaultdict(float)
    for name, time in shares(spans).items():
        unknown = "other operations", "copy" if "Memcpy" in name else "other arithmetic"
        result[where.get(name) or kernels.get(name, unknown)] += time
    result["dispatch and host", "none running"] = wall - sum(result.values())
    return dict(result)


def _within(instruction: _Instruction, inside: Mapping[str, list[_Instruction]]) -> list[_Instruction]:
    """The instruction, and those of the computations that it calls."""
    called = re.findall(r"(?:calls|to_apply|body)=%?([\w.\-]+)", instruction.rest)
    return [instruction, *(other for name in called for other in inside[name])]


def _kind(within: list[_Instruction]) -> str:
    if any(one.opcode == "convolution" or LIBRARY_CONVOLUTION.search(one.rest) for one in within):
        return "convolution"
    if any(one.opcode in PRODUCTS or LIBRARY_PRODUCT.search(one.rest) for one in within):
        return "matrix product"
    return "copy" if all(one.opcode in COPIES for one in within) else "other arithmetic"
