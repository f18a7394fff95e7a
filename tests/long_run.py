"""A hundred thousand steps of a small network, with logging and saving: what grows, and what saving costs.

    python tests/long_run.py tests/long_run.json

The law: memory and speed stay as they are, files do not multiply, saving takes 3 % of the time at most.
"""

import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import optax
import tiny
from comparisons import DATA, LABELS
from rich.console import Console

from kdjax.runs import Recipe, compare, fitting
from kdjax.runs.tracking import TensorBoard

STEPS_AN_EPOCH, BATCH, WIDTH = 100, 32, 64
SECONDS_BETWEEN_SAVES = 2.0  # fifteen times as often as by default
# A megabyte in 100,000 steps for what a run remembers of its epochs, and ten for what an allocator keeps.
MOST_GROWTH, MOST_SAVING, MOST_SLOWING, MOST_FILES = 11.0, 0.03, 0.1, 120


class Samples:
    """A writer of `kdjax.runs`: at the end of each epoch the memory, the clock, and how many files there are."""

    def __init__(self, folder):
        self.folder, self.rows = folder, []

    def scalars(self, values, step):
        with open("/proc/self/statm") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files = [file for file in self.folder.rglob("*") if file.is_file()] if len(self.rows) % 20 == 0 else None
        self.rows.append((step, time.monotonic(), resident, files and len(files)))

    def hyper_parameters(self, settings, results):
        pass

    def images(self, pictures, step):
        pass

    def close(self):
        pass


def measured(steps):
    """Figures of one run of so many steps for each of the three networks; those of the last, which is taught."""
    saving, samples = [], {}
    save = fitting.save_state

    def timed(*arguments):
        begun = time.monotonic()
        save(*arguments)
        saving.append(time.monotonic() - begun)

    rows = np.arange(STEPS_AN_EPOCH * BATCH) % len(DATA[0].labels)
    data = [{"inputs": DATA[0].inputs[rows] / np.float32(255), "labels": DATA[0].labels[rows]}]
    data += [{"inputs": DATA[1].inputs / np.float32(255), "labels": DATA[1].labels}]
    recipes = {
        phase: Recipe(
            tiny.network(WIDTH),
            LABELS,
            lambda updates: optax.adam(1e-3),
            steps // STEPS_AN_EPOCH if phase == "alone" else 1,
            BATCH,
        )
        for phase in ("teacher", "alone", "distilled")
    }
    with tempfile.TemporaryDirectory() as scratch, patched(save_state=timed):
        out = Path(scratch) / "run"

        def sampled(name, folder):
            return samples.setdefault(name, Samples(folder))

        begun = time.monotonic()
        compare(
            out,
            data=data,
            seeds=1,
            track=[sampled, TensorBoard],
            console=Console(file=io.StringIO()),
            print_every=100,
            **recipes,
        )
        whole = time.monotonic() - begun
        size = sum(file.stat().st_size for file in (out / "seed-0" / "alone").rglob("*") if file.is_file())
    return figures(samples["seed-0/alone"].rows, saving, whole, size)


def patched(**changes):
    return mock.patch.multiple(fitting, SECONDS_BETWEEN_SAVES=SECONDS_BETWEEN_SAVES, **changes)


def figures(rows, saving, whole, size):
    step, clock, resident, files = (np.array(one, float) for one in zip(*rows, strict=True))
    warm = len(step) // 10
    # Means of twenty blocks: neighbours are no independent numbers.
    blocks = [np.array_split(one[warm:], 20) for one in (step, resident)]
    x, y = (np.array([block.mean() for block in one]) for one in blocks)
    slope, spread = slope_of(x, y)
    per_step = np.diff(clock[warm:]) / np.diff(step[warm:])
    first, last = (np.median(part) for part in (per_step[: len(per_step) // 5], per_step[-(len(per_step) // 5) :]))
    seconds = float(clock[-1] - clock[0])
    return {
        "steps": int(step[-1]),
        "seconds": seconds,
        "growth_mb_per_100000_steps": slope * 1e5 / 1e6,
        "growth_interval": spread * 1e5 / 1e6,
        "resident_mb_at_the_end": resident[-1] / 1e6,
        "microseconds_a_step_in_the_first_fifth": 1e6 * first,
        "microseconds_a_step_in_the_last_fifth": 1e6 * last,
        "seconds_between_saves": SECONDS_BETWEEN_SAVES,
        "saves": len(saving),
        "share_of_saving": sum(saving) / whole,
        "longest_save_in_milliseconds": 1e3 * max(saving),
        "most_files": int(np.nanmax(files)),
        "bytes_in_the_end": size,
    }


def slope_of(x, y):
    """The slope of a straight line through the points, and half the width of its 95 % interval."""
    slope, offset = np.polyfit(x, y, 1)
    rest = y - slope * x - offset
    error = np.sqrt(np.sum(rest**2) / (len(x) - 2) / np.sum((x - x.mean()) ** 2))
    return float(slope), float(2.1 * error)  # Student's t of 18 degrees of freedom


def broken(found):
    """Which laws do not hold."""
    slower = found["microseconds_a_step_in_the_last_fifth"] / found["microseconds_a_step_in_the_first_fifth"] - 1
    laws = {
        "memory": found["growth_mb_per_100000_steps"] <= MOST_GROWTH,
        "saving": found["share_of_saving"] <= MOST_SAVING,
        "speed": slower <= MOST_SLOWING,
        "files": found["most_files"] <= MOST_FILES,
    }
    return [name for name, holds in laws.items() if not holds]


if __name__ == "__main__":
    found = measured(int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
    Path(sys.argv[1]).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))
    sys.exit(", ".join(broken(found)) or 0)
