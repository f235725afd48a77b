"""The scripts that a maintainer runs by hand still run."""

import os
import subprocess
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


def test_the_table_of_faults_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "fault_table.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_one_kill(tmp_path: Path, tiny: list[str]) -> None:
    """More of them are slow, and in test_faults.py."""
    chaos = [sys.executable, str(SCRIPTS / "chaos.py"), "--kills=1", "--images=256", f"--folder={tmp_path}", "--seed=1"]
    done = subprocess.run(
        [*chaos, *tiny], env={**os.environ, "PYTHONPATH": str(SCRIPTS.parent)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip().splitlines()[-1] == "the same, byte for byte"


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
