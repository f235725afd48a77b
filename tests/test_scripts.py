"""The scripts that a maintainer runs by hand still run."""

import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def test_the_benchmark_takes_a_step_of_each_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import bench

    step, gflop = bench.training_step("unet_tiny", 2, "cpu")
    step()
    assert gflop == pytest.approx(0.00818, rel=0.01)


def test_the_judge_says_what_it_is_given(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import check_samples

    monkeypatch.setattr(
        sys, "argv", ["check_samples.py", str(tiny_model), "--data", "digits", "--n", "80", "--guidance", "1"]
    )
    check_samples.main()
    said = capsys.readouterr().out
    assert '"n": 80' in said
    assert '"machine"' in said
