"""The scripts that a maintainer runs by hand still run."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_competitors_take_turns_and_the_first_round_warms_up(scripts: None) -> None:
    from benchmark import clock

    calls: list[str] = []
    times = clock.take_turns(
        {"slow": lambda: (calls.append("a"), time.sleep(0.02)), "fast": lambda: calls.append("b")}, 2
    )
    assert calls == ["a", "b"] * 3
    assert times["slow"]["wall"] >= 0.02 > times["fast"]["wall"]
    assert times["slow"]["cpu"] < 0.02  # sleeping is no work
    assert clock.medians([(1.0, 0.1), (5.0, 0.4), (2.0, 0.3)])["wall"] == 2.0


def test_a_peer_that_is_not_installed_is_said_to_be(scripts: None) -> None:
    from benchmark import clock

    def build() -> dict[str, clock.Call]:
        import no_such_peer  # noqa: F401

        return {}

    missing: list[str] = []
    assert clock.offered(missing, "peer", build) == {}
    assert missing == ["peer: not installed (no module no_such_peer)"]


@pytest.mark.slow
def test_a_competitor_steps_in_a_process_of_its_own(scripts: None, tmp_path: Path) -> None:
    from benchmark import clock, competitor, layouts

    root = layouts.pictures(tmp_path / "pictures", layouts.MNIST.shape, 20)
    settings = {"folder": str(root), "batch": 1, "burst": 2}
    with competitor.Competitor(layouts.MNIST.name, "diffgen, bfloat16", **settings) as ours:
        times = clock.take_turns({"ours": ours}, 1, warmup=0)["ours"]
    assert times["wall"] > 0 and times["cpu"] > 0 and ours.peak > 0.1
    assert ours.process.returncode == 0


@pytest.mark.parametrize(("name", "parameters", "gflop"), [("MNIST", 1.62e6, 1.66), ("DDPM", 35.7e6, 37.3)])
def test_the_compared_networks_are_of_one_size(scripts: None, name: str, parameters: float, gflop: float) -> None:
    from benchmark import layouts

    layout = getattr(layouts, name)
    ours = layouts.cost(layouts.our_network, layout)
    assert ours["parameters"] == pytest.approx(parameters, rel=0.01)
    assert ours["gflop"] == pytest.approx(gflop, rel=0.01)
    pytest.importorskip("diffusers")
    theirs = layouts.cost(layouts.diffusers_network, layout)
    assert theirs == pytest.approx(ours, rel=0.002)


def test_the_benchmark_takes_real_steps(scripts: None, tmp_path: Path) -> None:
    from benchmark import layouts, training

    small = dataclasses.replace(layouts.MNIST, shape=(1, 8, 8), ours=["model=unet_tiny"])
    root = layouts.pictures(tmp_path / "pictures", small.shape, 20)
    with ExitStack() as stack:
        trainer, step = training.our_trainer(stack, small, root, 4, "no")
        before = [p.clone() for p in trainer.parts.network.parameters()]
        passes = training.watched(trainer.parts.gradients, "accumulate")
        step()
        assert len(passes) == 1
        assert passes[0] > 0
        assert trainer.at.images == 4
        assert any((old != new).any() for old, new in zip(before, trainer.parts.network.parameters(), strict=True))


def test_the_bench_writes_a_file_and_tables(
    scripts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import bench
    import bench_table

    for section in ("data", "overhead", "noise"):
        monkeypatch.setattr(sys, "argv", ["bench.py", "--quick", "--threads=1", "--only", section, f"--out={tmp_path}"])
        bench.main()
    (path,) = tmp_path.glob("*-1-threads-*.json")
    written = json.loads(path.read_text())
    assert list(written) == ["data", "overhead", "noise"]
    text = bench_table.document(f"top\n{bench_table.BEGIN}\nold\n{bench_table.END}\nend\n", [path])
    assert text.startswith("top\n")
    assert text.endswith("\nend\n")
    assert "old" not in text
    mine, _, theirs, _ = written["data"]["rows"]
    assert f"| {mine['images_per_cpu_second'] / theirs['images_per_cpu_second']:.2f} |" in text
    assert "| diffgen heun |" in text
    before = written["noise"]["rows"][0]
    assert f"| {before['name']} | {before['us']:.1f} | {before['caller_us']:.2f} |" in text


def test_the_document_is_what_the_result_files_say() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "bench_table.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_faults_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, str(SCRIPTS / "fault_table.py"), "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
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


def test_the_scaling_tables_are_the_scripts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import scaling

    document = (SCRIPTS.parent / "docs" / "scaling.md").read_text()
    for arguments in ([], ["--batch", "4096"]):
        monkeypatch.setattr(sys, "argv", ["scaling.py", *arguments])
        scaling.main()
        assert capsys.readouterr().out in document


@pytest.mark.parametrize(("name", "processes"), [("one_node", 8), ("two_nodes", 16)])
def test_accelerate_reads_the_launch_files(name: str, processes: int) -> None:
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(SCRIPTS.parent / "docs" / "launch" / f"{name}.yaml"))
    assert config.num_processes == processes
    assert config.num_machines == processes // 8
