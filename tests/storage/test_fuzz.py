"""A short run of `scripts/fuzz.py`; the long one's figures are in benchmarks/results/fuzz.json."""

import sys
import time
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")
sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import fuzz

TARGETS = [*fuzz.TARGETS]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_is_read_loads_or_is_refused(target: str) -> None:
    tally = fuzz.fuzz(target, 1000, seed=1)
    print(target, tally)
    assert tally.inputs >= 1000
    assert tally.loaded > 0, "nothing gets through: the fuzzer no longer reaches what it should"
    assert tally.refused > tally.inputs / 20


def test_the_fuzzer_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that is careless, told in two lines, or slow is caught."""

    def read(error: Exception | None) -> None:
        if error:
            raise error
        burn = time.process_time() + 0.02
        while time.process_time() < burn:
            pass

    monkeypatch.setattr(fuzz, "SECONDS", 0.01)
    for error in (ValueError("x"), fuzz.CheckpointError("two\nlines"), fuzz.CheckpointError("x" * 2000), None):
        with pytest.raises(AssertionError if not isinstance(error, ValueError) else ValueError):
            fuzz.Tally().count(partial(read, error))
    tally = fuzz.Tally()
    tally.count(partial(read, fuzz.CheckpointError("one line")))
    assert (tally.inputs, tally.refused, tally.loaded) == (1, 1, 0)
