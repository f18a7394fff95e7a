"""Every parser of files and of command lines, fed what its files are not: by hypothesis in tests, by `make fuzz` for longer.

The law: nothing but the errors that are named, no answer that takes `SECONDS`, and no more memory than `TIMES` what the file
holds. By `python tests/fuzz.py MINUTES` each parser is fuzzed in a process of its own, by atheris, which seeks new paths.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SECONDS = 5
TIMES, ROOM = 4, 4_000_000  # bytes that a call may need for itself: tables of Pillow's and of zipfile's, messages
ROOT = Path(__file__).parents[1]
NUMBERS = (b"-1", b"0", b"99999999999", b"1e400", b"true", b"null", b"2.5")
NAMED = (ValueError, FileNotFoundError, FileExistsError)


class Parser(NamedTuple):
    """A reader of one kind of file.

    Attributes:
      seeds: whole files, as bytes, from which changed ones are made.
      read: gets a folder of its own and the bytes, and reads them as a user would.
      holds: how many bytes the file holds when it is unpacked.
      threads: whether its reader leaves native threads at work, which tracemalloc must not be stopped beside: its memory is
        not measured here.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[Path, bytes], object]
    holds: Callable[[bytes], int] = len
    threads: bool = False


class BrokenLawError(AssertionError):
    """An answer that takes too long, or too much memory."""


def obey(parser: Parser, folder: Path, content: bytes) -> str:
    """Reads `content`, and raises what is no named error; returns the name of what came of it."""

    def late(number, frame):
        raise BrokenLawError(f"no answer within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    if not parser.threads:
        tracemalloc.start()
    try:
        parser.read(folder, content)
        outcome = "read"
    except NAMED as error:
        outcome = type(error).__name__
        if not str(error).strip():
            raise BrokenLawError(f"a {outcome} without a word") from error
    finally:
        peak = 0
        if not parser.threads:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    if peak > ROOM + TIMES * parser.holds(content):
        raise BrokenLawError(f"{peak:,} bytes for a file that holds {parser.holds(content):,}")
    return outcome


def changed(whole: bytes, draw: random.Random) -> bytes:
    """Cut, turned, doubled, overwritten: one to four times."""
    content = bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        at, count = draw.randint(0, len(content)), draw.choice((1, 1, 2, 4, 8, 64))
        match draw.randrange(7):
            case 0:
                del content[at:]
            case 1:
                del content[at : at + count]
            case 2:
                content[at:at] = content[at : at + count]
            case 3:
                content[at : at + count] = draw.choice((b"\0", b"\xff", b"\x80", b"9", b"{", b'"')) * count
            case 4:
                content[at : at + 4] = draw.choice((0, 1, 2**31 - 1, 2**32 - 1)).to_bytes(
                    4, draw.choice(("big", "little"))
                )
            case 5 if found := list(re.finditer(rb"\d+", content)):
                one = draw.choice(found)
                content[one.start() : one.end()] = draw.choice(NUMBERS)
            case _ if at < len(content):
                content[at] ^= 1 << draw.randrange(8)
    return bytes(content)


def unzipped(content: bytes) -> int:
    """What the members of a zip hold, however many bytes its directory promises."""
    held = len(content)
    with contextlib.suppress(Exception), zipfile.ZipFile(io.BytesIO(content)) as archive:
        for member in archive.infolist():
            with contextlib.suppress(Exception), archive.open(member) as stream:
                while part := stream.read(1 << 20):
                    held += len(part)
    return held


def ungzipped(content: bytes) -> int:
    held = len(content)
    with contextlib.suppress(EOFError, OSError, zlib.error), gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
        while part := stream.read(1 << 20):
            held += len(part)
    return held


def json_seeds(*documents: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(one).encode() for one in documents]


def warm(parser: Parser, seeds: list[bytes]) -> None:
    """What is imported and cached at the first call is no memory of the second one's."""
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(*NAMED):
            parser.read(Path(folder), seed)


def in_a_folder(parser: Parser, content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return obey(parser, Path(folder), content)


def atheris_of(name: str, minutes: float) -> None:
    """This process fuzzes one parser, and ends with the first broken law."""
    import atheris

    with atheris.instrument_imports(include=["kdjax"]):
        from parsers import PARSERS

        parser = PARSERS[name]
        seeds = parser.seeds()
        warm(parser, seeds)
    corpus = Path(tempfile.mkdtemp())
    for number, seed in enumerate(seeds):
        (corpus / str(number)).write_bytes(seed)

    def change(content: bytes, most: int, seed: int) -> bytes:
        draw = random.Random(seed)
        return (
            changed(content or draw.choice(seeds), draw)[:most]
            if draw.random() < 0.5
            else atheris.Mutate(content, most)
        )

    options = [
        f"-max_total_time={round(60 * minutes)}",
        "-timeout=0",
        "-rss_limit_mb=3000",
        "-max_len=20000",
    ]
    options += ["-print_final_stats=1", "-verbosity=0", f"-artifact_prefix={tempfile.gettempdir()}/kdjax-fuzz-{name}-"]
    atheris.Setup(
        [sys.argv[0], str(corpus), *options], lambda content: in_a_folder(parser, content), custom_mutator=change
    )
    atheris.Fuzz()


def main(minutes: float) -> int:
    """All parsers, one after the other; prints how often each was run, and what broke."""
    from parsers import PARSERS

    total, broken = 0, []
    for name in PARSERS:
        command = [sys.executable, "-X", "faulthandler", __file__, "--one", name, str(minutes / len(PARSERS))]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, errors="replace")
        runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
        total += int(runs[1]) if runs else 0
        print(
            f"{name}: {int(runs[1]) if runs else 0:,} executions{'' if done.returncode == 0 else ', broken:'}",
            flush=True,
        )
        if done.returncode:
            broken.append(name)
            print(f"exit code {done.returncode}\n{done.stderr[-3000:]}", flush=True)
    print(f"{total:,} executions of {len(PARSERS)} parsers in {minutes:g} minutes; {len(broken)} broke the law.")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    if sys.argv[1] == "--one":
        atheris_of(sys.argv[2], float(sys.argv[3]))
    else:
        sys.exit(main(float(sys.argv[1])))
