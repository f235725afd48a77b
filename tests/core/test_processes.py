"""One process and two see the same run. Two are started by torchrun and talk over gloo on the CPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import events
import numpy as np
import pytest
import torch

from diffgen.storage.checkpoint import load

Python = Callable[..., subprocess.CompletedProcess[str]]
Metrics = Callable[[Path], list[dict[str, Any]]]

TWO = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
RUN = [
    "dataset=digits", "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]", "train.images=320", "train.batch_size=16",
    "train.log_every=16", "train.checkpoint_every=160", "train.preview_every=320", "preview.n=2", "sampler.steps=3",
    "train.micro_batch=5", "lr_schedule.warmup=32", "train.eval_every=160", "train.eval_n=15", "extractor.epochs=1",
    "logger=[jsonl,tensorboard]",
]  # fmt: skip

COUNTED = """
import sys
import torch
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from diffgen.training.parts import Parts
from diffgen.cli import train
shared, exchanged = Parts._shared, []
def counting(self, module):
    module = shared(self, module)
    def hook(group, bucket):
        exchanged.append(bucket.is_last())
        return allreduce_hook(group, bucket)
    module.register_comm_hook(None, hook)
    return module
Parts._shared = counting
code = train.main()
print("exchanges", sum(exchanged), "buckets", len(exchanged))
sys.exit(code)
"""

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, fit: Callable[..., Path], tiny_run: Path) -> dict[str, Path]:
    """The same run of twenty steps on one process (this one) and on two: run directories, and what the two said.

    It begins from the weights of another run.
    """
    root, init = tmp_path_factory.mktemp("processes"), f"train.init={tiny_run}"
    fit(root / "one", *RUN, init)
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    (root / "counted.py").write_text(COUNTED)
    command = [sys.executable, *TWO[:-1], "counted.py", *RUN, init]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (root / "said").write_text(done.stdout)
    made = list((root / "outputs" / "digits-flow").iterdir())
    assert len(made) == 1, "one run directory, whatever the number of processes"
    return {"one": root / "one", "two": made[0], "said": root / "said"}


def test_two_processes_really_ran(runs: dict[str, Path]) -> None:
    said = runs["said"].read_text()
    assert "cpu x 2" in said
    assert "16 = 2 x 8" in said
    assert "(10.7 k of 10.7 k numbers)" in " ".join(said.split()), "the weights that it begins from"


def test_the_main_process_alone_tells_loggers(runs: dict[str, Path], metrics: Metrics) -> None:
    """Of each logged step and each evaluation, once."""
    for run in (runs["one"], runs["two"]):
        assert len(list((run / "tensorboard").iterdir())) == 1
        scalars = events.scalars(run)
        assert [step for step, _ in scalars["loss"]] == [row["images"] for row in metrics(run)]
        judged = [json.loads(line) for line in (run / "eval" / "training.jsonl").read_text().splitlines()]
        for key in ("fd", "kd", "agreement"):
            assert scalars[f"eval/{key}"] == [(row["images_seen"], pytest.approx(row[key])) for row in judged]


def test_gradients_are_exchanged_once_a_step(runs: dict[str, Path]) -> None:
    """Twenty steps of two micro-batches each, on each of two processes."""
    assert runs["said"].read_text().count("exchanges 20 buckets 20") == 2


def test_only_the_main_process_speaks(runs: dict[str, Path]) -> None:
    said = runs["said"].read_text()
    assert said.count("diffgen-train: digits, flow") == 1
    assert said.count("next: ") == 1


def test_losses_of_two_processes_are_those_of_one(runs: dict[str, Path], metrics: Metrics) -> None:
    one, two = metrics(runs["one"]), metrics(runs["two"])
    assert [row["step"] for row in two] == list(range(1, 21))
    for row, expected in zip(two, one, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
        assert (row["images"], row["lr"]) == (expected["images"], expected["lr"])


def test_averaged_weights_of_two_processes_are_those_of_one(runs: dict[str, Path]) -> None:
    for folder in ("00000160", "00000320"):
        one, two = (load(runs[name] / "checkpoints" / folder).weights for name in ("one", "two"))
        start = load(runs["one"] / "checkpoints" / "00000160").weights
        for name, weight in two.items():
            torch.testing.assert_close(weight, one[name], rtol=1e-3, atol=1e-4)
    assert any(not torch.equal(weight, start[name]) for name, weight in one.items())


def test_two_processes_are_judged_as_one_is(runs: dict[str, Path]) -> None:
    one, two = (
        [json.loads(line) for line in (runs[name] / "eval" / "training.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [row["images_seen"] for row in two] == [160, 320]
    for row, expected in zip(two, one, strict=True):
        assert row["fd"] == pytest.approx(expected["fd"], rel=1e-2)
        assert row["agreement"] == expected["agreement"]
    assert load(runs["one"] / "checkpoints" / "best").images == load(runs["two"] / "checkpoints" / "best").images


def test_two_processes_write_what_one_writes(runs: dict[str, Path]) -> None:
    events_aside = {run: (p for p in runs[run].rglob("*") if "tfevents" not in p.name) for run in ("one", "two")}
    files = {run: sorted(str(p.relative_to(runs[run])) for p in paths) for run, paths in events_aside.items()}
    assert files["one"] == files["two"]


@pytest.mark.slow
def test_two_processes_sample_what_one_samples(
    runs: dict[str, Path], python: Python, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Seven images do not divide by two; a stochastic sampler must not notice either."""
    settings = [
        f"ckpt={runs['one']}",
        "n=7",
        "save=[npz,png]",
        "sampler=ancestral",
        "sampler.steps=4",
        "batch_size=3",
    ]
    assert "cpu x 1" in command("sample", *settings, "out=one").out
    done = python(*TWO, "diffgen.cli.sample", *settings, "out=two")
    assert done.returncode == 0, done.stderr
    assert "cpu x 2" in done.stdout
    one, two = (np.load(tmp_path / name / "samples.npz") for name in ("one", "two"))
    assert one["arr_0"].shape == (7, 8, 8, 1)
    assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
    assert np.array_equal(one["arr_1"], two["arr_1"])
    names = [
        sorted(str(p.relative_to(tmp_path / name)) for p in (tmp_path / name).rglob("*")) for name in ("one", "two")
    ]
    assert names[0] == names[1]


@pytest.mark.slow
def test_two_processes_judge_as_one_does(
    runs: dict[str, Path], python: Python, command: Callable[..., Any], tmp_path: Path
) -> None:
    """Each has a cache of its own, so the main process of the two trains the classifier while the other waits."""
    settings = [
        f"ckpt={runs['one']}", "n=41", "metrics=fd,kd,is,pr,dc,agreement,copies,bits,denoising", "extractor.epochs=1",
        "sampler=ancestral", "sampler.steps=3", "batch_size=6", "guidance=1",
    ]  # fmt: skip
    assert command("eval", *settings, "out=one", "cache=first").code == 0
    done = python(*TWO, "diffgen.cli.eval", *settings, "out=two", "cache=second")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("results: two/results.jsonl") == 1, "only the main process speaks"
    one, two = (json.loads((tmp_path / name / "results.jsonl").read_text()) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one.keys() - {"seconds", "time"}:
        exact = not isinstance(one[key], float)
        assert two[key] == one[key] if exact else two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-6), key


@pytest.mark.slow
def test_errors_of_two_processes_are_told_once(python: Python, tmp_path: Path, runs: dict[str, Path]) -> None:
    """All processes stop, and the sentence stands there once."""
    for arguments, words in (
        (["diffgen.cli.train", "dataset=cifer"], "dataset='cifer' is unknown"),
        (
            ["diffgen.cli.train", "dataset=image_folder", "dataset.root=nothing"],
            "dataset.root='nothing' is not a folder",
        ),
        (
            ["diffgen.cli.train", *RUN, "train.batch_size=7"],
            "train.batch_size=7 must be a multiple of the 2 processes",
        ),
        (
            ["diffgen.cli.train", *RUN, f"run_dir={runs['one']}", "train.resume=none"],
            "holds a run and train.resume=none",
        ),
    ):
        done = python(*TWO, *arguments)
        assert done.returncode != 0
        assert done.stderr.count(words) == 1, done.stderr
        assert "diffgen/" not in done.stderr, "no traceback through our files"
    assert not list(tmp_path.iterdir())


ONE_CANNOT = """
import os, sys, torch
from diffgen.core import compilation
from diffgen.cli import train
def compile_(call, **_):
    def run(*inputs):
        if os.environ["RANK"] == "1":
            raise KeyError("no compiler")
        return call(*inputs)
    return run
torch.compile, compilation.wanted = compile_, lambda setting, pays: True
sys.exit(train.main())
"""


@pytest.mark.slow
def test_where_one_process_cannot_compile_none_does(python: Python, tmp_path: Path, metrics: Metrics) -> None:
    """Else they would wait for the slow one, and nobody would know."""
    (tmp_path / "cannot.py").write_text(ONE_CANNOT)
    done = python(*TWO[:-1], "cannot.py", *RUN[:5], "train.batch_size=16", "run_dir=run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("torch cannot compile the network here ('no compiler')") == 1
    assert metrics(tmp_path / "run")
