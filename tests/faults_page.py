"""The page of the fault suite, from its record: counts by kind of fault, by what was struck, and by what came of it."""

from collections import Counter
from importlib.metadata import version

KINDS = {
    "calls": "a call of a save failed, or the process killed at it",
    "bytes": "a bit or byte changed, a file cut, or deleted",
    "step": "killed before a step of 200",
    "stop": "asked to stop after a step of 200",
    "random": "SIGKILL at a random moment",
    "pair": "one of two processes killed or stopped",
}

TEXT = """# What was broken on purpose, and what came of it

{total} faults were injected into saves, files and running trainings; each ended as it should. One command does it all again
and writes this page, and writes nothing where one fault ends otherwise:

```
make faults
```

- Date: {date}
- Software: {software}
- Hardware: {hardware}; {workers} groups of faults at a time, a load of {load} when it began
- Time: {minutes} minutes{note}

{kinds}

**As it should** means: what is read afterwards is bit for bit what was saved, or what was there before the save; or an error
names the file or folder. For trainings it means that the run which is gone on with ends in the bits of an unbroken one.
A difference without a word counts as a failure, and so does an error that names nothing, such as a bare `KeyError`.

## Calls that fail

Each call of a save that changes the disk (open for writing, write, allocate, fsync, truncate, rename, mkdir, unlink, rmdir)
was struck in turn, in a process of its own. A library that is loaded before libc (`tests/faults_calls.c`) does it, so that
the calls of Python, Orbax and tensorstore are struck alike. It needs Linux and a C compiler; without one this part is left
out.

- **ENOSPC once**, **EIO once**: this call fails, those after it do not.
- **ENOSPC from then on**: a disk that is full. A write takes a half first, then all that would take room fails.
- **killed**: the process ends at the call; a write has written a half by then.

Afterwards another process reads what is there, goes on as a person would, and must come to the new content. Nothing
half-written may then be left in a folder of weights, of states or of a run. A place that a save did not come to, since its
threads do not always make as many calls, is not counted.

{calls}

Of a comparison and a report, which take seconds each, a drawn share of the places was struck, and the figures of a report
were not drawn anew.

## Bytes that change

Each bit of these files was changed in turn, of the training states one bit of each byte, of the weights of 36 KB none; each
file was cut to each of its lengths, the larger ones at each 512 bytes and at some odd lengths; and deleted. "right" is what
a byte gives that Orbax does not read, or one of a file that it does not need.

{bytes}

## Trainings that are killed

Of 200 steps each, of networks of 78 weights, saved every 40 steps (every 5 where SIGKILL came at random). Killed before a
step: what is in memory is thrown away, in one process. The other kills end real processes, each run twice before it may
finish. Asked to stop: what SIGTERM does to `kdjax compare`, after each step of one of its networks; weights and each
epoch's numbers are those of the unbroken run.

{kills}

Of two processes the one that is left ends by itself, within {bound} seconds, with JAX's message that another one died. JAX
takes a process for dead that has sent no heartbeat: here for 10 seconds, and for 100 unless
`jax.distributed.initialize(heartbeat_timeout_seconds=…)` says otherwise. SIGTERM to one stops both after the same step.

## What this does not show

A killed process is no lost power: what the system had not yet written to the disk was there in all these runs. Disks that
say that they have written and have not, and file systems of networks, were not tried.
"""


def orbax() -> str:
    return f"orbax-checkpoint {version('orbax-checkpoint')}"


def total(record: dict) -> int:
    return sum(one["injected"] for one in record["groups"])


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---"] * len(head), *([f"{cell:,}" if type(cell) is int else cell for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def by_name(record: dict, kind: str, first: str) -> str:
    """A row for each subject and fault, with its outcomes."""
    counts: dict[tuple[str, str], Counter] = {}
    for one in record["groups"]:
        if one["kind"] == kind:
            for fault, outcome, count in one["outcomes"]:
                counts.setdefault((one["name"], fault), Counter())[outcome] += count
    outcomes = sorted({outcome for own in counts.values() for outcome in own})
    rows = [[name, fault, *(own[outcome] for outcome in outcomes)] for (name, fault), own in counts.items()]
    return table([first, "fault", *outcomes], rows)


def kills(record: dict) -> str:
    rows = [
        [one["name"] or KINDS[one["kind"]], fault, count, outcome]
        for one in record["groups"]
        if one["kind"] in ("step", "stop", "random", "pair")
        for fault, outcome, count in one["outcomes"]
    ]
    return table(["training", "fault", "faults", "result"], rows)


def page(record: dict) -> str:
    import faults_pair

    counts = Counter()
    for one in record["groups"]:
        counts[one["kind"]] += one["injected"]
    return TEXT.format(
        total=f"{total(record):,}",
        date=record["date"],
        software=record["software"],
        hardware=record["hardware"],
        workers=record["workers"],
        load=record["load"],
        note=f"\n- {record['note']}" if "note" in record else "",
        minutes=f"{record['seconds'] / 60:.0f}",
        kinds=table(["fault", "how many"], [[words, counts[kind]] for kind, words in KINDS.items()]),
        calls=by_name(record, "calls", "save"),
        bytes=by_name(record, "bytes", "file"),
        kills=kills(record),
        bound=faults_pair.BOUND,
    )
