"""Every parser of files and of command lines obeys the law of tests/fuzz.py on some files; `make fuzz` tries more."""

import random

import fuzz
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parsers import PARSERS

SLOW = {"checkpoint": 6, "kdjax": 6, "experiments": 15}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax leaves errors for the collector
@pytest.mark.parametrize("name", PARSERS)
def test_what_is_no_such_file_is_named_in_time_and_in_little_memory(name):
    parser = PARSERS[name]
    seeds = parser.seeds()
    fuzz.warm(parser, seeds)

    @settings(
        max_examples=SLOW.get(name, 60),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds), st.randoms(use_true_random=False), st.one_of(st.none(), st.binary(max_size=200)))
    def obeys(seed: bytes, draw: random.Random, other: bytes | None) -> None:
        fuzz.in_a_folder(parser, fuzz.changed(seed if other is None else other, draw))

    obeys()


def test_the_law_is_one_that_can_be_broken():
    def large(folder, content):
        return bytes(len(content) * 4 + fuzz.ROOM + 100_000)

    def bare(folder, content):
        raise ValueError

    for read, message in ((large, "bytes for a file that holds 8"), (bare, "a ValueError without a word")):
        with pytest.raises(fuzz.BrokenLawError, match=message):
            fuzz.in_a_folder(fuzz.Parser(list, read), b"12345678")
    with pytest.raises(KeyError):
        fuzz.in_a_folder(fuzz.Parser(list, lambda folder, content: {}[content]), b"")
