"""What the compiler's failures cost: a sentence. With compilers that fail on purpose, since real ones take minutes."""

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffgen.cli import app
from diffgen.core import compilation
from diffgen.core.compilation import Compiled
from diffgen.core.errors import ProcessFault

Fit = Callable[..., Path]
Patch = pytest.MonkeyPatch
fault = pytest.mark.fault

ERRORS = [
    RuntimeError("backend='inductor' raised:\nInvalidCxxCompiler: No working C++ compiler found"),
    AssertionError(),
    KeyError("sm_90"),
    FileNotFoundError(2, "No such file or directory", "gcc"),
]


class FailsBackward(torch.autograd.Function):
    """The identity, whose backward pass no compiler can make."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # type: ignore[override]
        raise RuntimeError("Failed to compile the backward pass")


def broken(monkeypatch: Patch, error: Exception | None, *, backward: bool = False) -> None:
    """Let the compiler fail with this error, or only once a gradient is wanted."""

    def compile_(call: Callable[..., Tensor], **_: Any) -> Callable[..., Tensor]:
        def run(*inputs: Tensor) -> Tensor:
            if error and not backward:
                raise error
            out = call(*inputs)
            return FailsBackward.apply(out) if backward else out

        return run

    monkeypatch.setattr(torch, "compile", compile_)


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 3))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("backward", [False, True])
def test_a_network_that_cannot_be_compiled_runs_as_it_stands(
    network: nn.Module, monkeypatch: Patch, error: Exception, backward: bool
) -> None:
    broken(monkeypatch, error, backward=backward)
    compiled = Compiled(network, key="compile", required=False)
    x = torch.randn(5, 3)
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"torch cannot compile the network here \(.+\): it runs as it stands"):
        out = compiled(x)
    out.sum().backward()
    assert compiled.failure
    torch.manual_seed(0)
    assert torch.equal(out, network(x)), "the trial took no random numbers"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(torch.randn(2, 3))  # told once


def test_where_it_is_required_the_command_ends(network: nn.Module, monkeypatch: Patch) -> None:
    broken(monkeypatch, ERRORS[0])
    compiled = Compiled(network, key="train.compile", required=True)
    with pytest.raises(ProcessFault, match=r"^train.compile=true, but .*\(InvalidCxxCompiler: No working") as caught:
        compiled(torch.randn(5, 3))
    assert caught.value.exit_code == 75


def test_a_compiler_that_cannot_start_is_one_that_fails(network: nn.Module, monkeypatch: Patch) -> None:
    """As where the folder of its cache cannot be made."""

    def cannot(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "/proc/nope")

    monkeypatch.setattr(torch, "compile", cannot)
    compiled = Compiled(network.eval(), key="compile", required=False)
    x = torch.randn(5, 3)
    with pytest.warns(UserWarning, match="No such file or directory: '/proc/nope'"):
        assert torch.equal(compiled(x), network(x))


def test_the_networks_own_error_is_not_the_compilers(monkeypatch: Patch) -> None:
    broken(monkeypatch, ERRORS[0])
    compiled = Compiled(nn.Linear(3, 4), key="compile", required=False)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        compiled(torch.randn(5, 7))
    assert compiled.failure is None


def test_memory_that_runs_out_is_no_failure_of_the_compiler(network: nn.Module, monkeypatch: Patch) -> None:
    broken(monkeypatch, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    compiled = Compiled(network, key="compile", required=True)
    for _ in range(2):  # the shape counts as untried
        with pytest.raises(torch.OutOfMemoryError):
            compiled(torch.randn(5, 3))


def test_each_shape_is_tried_once_without_a_trace(network: nn.Module, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch, "compile", lambda call, **_: lambda *inputs: network(*inputs))
    compiled = Compiled(network, key="compile", required=True)
    calls: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: calls.append(len(inputs[0])))
    x = torch.randn(5, 3)
    torch.manual_seed(0)
    out = compiled(x)
    assert all(p.grad is None for p in network.parameters())
    torch.manual_seed(0)
    assert torch.equal(out, network(x))
    compiled(x)
    compiled(x[:2])
    with torch.no_grad():
        compiled(x)
    assert calls == [5, 5, 5, 5, 2, 2, 5, 5]


# --- in the commands --------------------------------------------------------------------------------------------


@fault("a compiler that fails, where `auto` compiles", "a warning says why, and the run goes on uncompiled")
def test_a_run_goes_on_uncompiled(fit: Fit, metrics: Any, tmp_path: Path, tiny_run: Path, monkeypatch: Patch) -> None:
    """As on a GPU, where `auto` compiles."""
    broken(monkeypatch, None, backward=True)
    monkeypatch.setattr(compilation, "wanted", lambda setting, pays: True)
    with pytest.warns(UserWarning, match="torch cannot compile the network here .* \\(train.compile=false\\)"):
        run = fit(tmp_path / "run")
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(tiny_run)]


@fault("a compiler that fails, with `train.compile=true`", "one sentence, exit 75; the directory can be used again")
def test_a_run_that_must_compile_ends_with_a_sentence(
    command: Any, tiny: list[str], tmp_path: Path, monkeypatch: Patch
) -> None:
    broken(monkeypatch, ERRORS[3])
    answer = command("train", *tiny, "run_dir=run", "train.compile=true")
    assert answer.code == 75
    assert answer.err.startswith("error: train.compile=true, but torch cannot compile the network here (")
    assert answer.err.count("\n") == 1
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 75
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("train", *tiny, "run_dir=run").code == 0, "what is mended goes on in the same directory"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sample", ["n=3"]),
        ("eval", ["n=8", "metrics=denoising"]),
        ("eval", ["n=2", "metrics=bits", "dataset=digits"]),
    ],
)
@pytest.mark.parametrize("compile_", ["true", "auto"])
def test_samples_and_figures_that_cannot_be_compiled(
    command: Any, tiny_model: Path, monkeypatch: Patch, name: str, settings: list[str], compile_: str
) -> None:
    broken(monkeypatch, ERRORS[0], backward="metrics=bits" in settings)
    if compile_ == "auto":
        monkeypatch.setattr(compilation, "wanted", lambda setting, pays: True)
    answer = command(name, f"ckpt={tiny_model}", "out=out", f"compile={compile_}", *settings)
    assert "torch cannot compile the network here" in answer.err
    assert answer.err.count("\n") == 1
    assert answer.code == (75 if compile_ == "true" else 0)


@pytest.mark.parametrize(
    ("n", "batch_size", "size", "interval"),
    [(20, 8, 7, "[0.1,2]"), (20, 8, 7, "[2,9]"), (9, 8, 5, "null"), (3, 8, 3, "[0.1,2]"), (16, 8, 8, "null")],
)
def test_a_compiled_network_sees_one_size(
    command: Any, tiny_model: Path, monkeypatch: Patch, n: int, batch_size: int, size: int, interval: str
) -> None:
    sizes: set[int] = set()

    def compile_(call: Callable[..., Tensor], *, dynamic: bool) -> Callable[..., Tensor]:
        assert not dynamic
        return lambda x, *rest: (sizes.add(len(x)), call(x, *rest))[1]

    monkeypatch.setattr(torch, "compile", compile_)
    settings = [f"n={n}", f"batch_size={batch_size}", "guidance=2", f"guidance_interval={interval}", "save=npz"]
    for name in ("true", "false"):
        assert command("sample", f"ckpt={tiny_model}", *settings, f"compile={name}", f"out=of-{name}").code == 0
    assert sizes == {size}
    import numpy as np

    drawn = [np.load(f"of-{name}/samples.npz")["arr_0"].astype(int) for name in ("true", "false")]
    assert len(drawn[0]) == n
    assert abs(drawn[0] - drawn[1]).max() <= 1


def test_every_job_of_a_sweep_compiles_anew(command: Any, tiny_model: Path, monkeypatch: Patch) -> None:
    """torch compiles a function for eight sizes and no more, and what it then does is told in a log alone."""
    forgotten: list[bool] = []
    monkeypatch.setitem(sys.modules, "torch._dynamo", torch)
    monkeypatch.setattr(torch.compiler, "reset", lambda: forgotten.append(True))
    assert command("sample", "-m", f"ckpt={tiny_model}", "n=1,2,3", "out=out").code == 0
    assert len(forgotten) == 3


@pytest.mark.slow
def test_the_real_compiler_compiles_once(python: Any, tiny_model: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("TORCH_LOGS", "recompiles,graph_code")
    settings = ["n=20", "batch_size=8", "guidance=2", "guidance_interval=[0.1,2]", "compile=true"]
    done = python("-m", "diffgen.cli.sample", f"ckpt={tiny_model}", *settings, "out=out")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("TRACED GRAPH") == 1
    assert "Recompiling" not in done.stderr


@pytest.mark.slow
def test_a_machine_without_a_c_compiler(python: Any, tiny: list[str], monkeypatch: Patch) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.setenv(name, "/nonexistent")
    done = python("-m", "diffgen.cli.train", *tiny, "run_dir=run", "train.compile=true")
    assert done.returncode == 75
    assert done.stderr.splitlines()[-1].startswith("error: train.compile=true, but torch cannot compile")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("processes", "cores", "workers"), [("4", 64, "8"), ("8", 4, "1"), ("1", 64, None)])
def test_processes_share_the_compilers_workers(
    monkeypatch: Patch, processes: str, cores: int, workers: str | None
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    app._tune_libraries()
    assert os.environ.get("TORCHINDUCTOR_COMPILE_THREADS") == workers
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    app._tune_libraries()
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == "3"


def test_an_input_that_is_not_there_is_handed_on(monkeypatch: Patch) -> None:
    broken(monkeypatch, None)

    class Network(nn.Module):
        def forward(self, x: Tensor, augment: Tensor | None, estimate: Tensor | None) -> Tensor:
            assert augment is None
            return x if estimate is None else x + estimate

    network, x = Compiled(Network(), key="compile", required=True), torch.ones(2, 3)
    assert torch.equal(network(x, None, x), 2 * x) and torch.equal(network(x, None, None), x)
    assert len(network.tried) == 2, "with and without it are two shapes"
