"""What makes a step or a start slow, counted; how long they take is measured by the benchmark, not here."""

import ctypes
import json
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from counting import CIFAR, Counting
from torch.nn.attention import SDPBackend, sdpa_kernel

from diffgen.build import make_model
from diffgen.cli.configs import compose_group, defaults
from diffgen.core import memory, speed
from diffgen.nets import DataShape
from diffgen.nets.optimizers import eager
from diffgen.objectives import Denoise
from diffgen.storage.checkpoint import load
from diffgen.training import trainer

Fit = Callable[..., Path]
Patch = pytest.MonkeyPatch
Python = Callable[..., "subprocess.CompletedProcess[str]"]

WAITS = ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero")
"""What makes Python wait for the device."""


def counted_steps(fit: Fit, run: Path, monkeypatch: Patch, *settings: str) -> list[Counter[str]]:
    """Operators of each step of a tiny run, and its calls of the network."""
    step, counts = trainer.Trainer._step, []

    def counting(self: trainer.Trainer, *batch: torch.Tensor) -> Any:
        calls = 0

        def called(*_: Any) -> None:
            nonlocal calls
            calls += 1

        hook = self.parts.network.register_forward_hook(called)
        with Counting() as mode:
            result = step(self, *batch)
        hook.remove()
        counts.append(mode.calls + Counter({"network": calls}))
        return result

    monkeypatch.setattr(trainer.Trainer, "_step", counting)
    fit(run, *settings)
    return counts


@pytest.mark.parametrize(("settings", "calls"), [([], 1), (["train.micro_batch=4"], 4), (["weighting=uncertainty"], 1)])
def test_a_step_calls_the_network_once_and_waits_for_nothing(
    fit: Fit, tmp_path: Path, monkeypatch: Patch, settings: list[str], calls: int
) -> None:
    """A number that Python asks of a tensor makes it wait for the GPU."""
    for counts in counted_steps(fit, tmp_path / "run", monkeypatch, *settings)[1:]:
        assert counts["network"] == calls
        assert {name: counts[name] for name in WAITS if counts[name]} == {}


def test_optimizer_and_average_are_one_call_each(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    counts = counted_steps(fit, tmp_path / "run", monkeypatch)[3]
    assert counts["aten::_fused_adamw_"] == 1
    assert counts["aten::_foreach_lerp_.Scalar"] == 1
    assert counts["aten::_foreach_norm.Scalar"] <= 1
    assert counts["aten::lerp_.Scalar"] == 0


def test_a_run_that_compiles_nothing_imports_no_compiler(python: Python, tiny: list[str]) -> None:
    """To import it takes as long as all else between `import torch` and the first step."""
    program = """
import sys
from diffgen.cli import sample, train
codes = [train.main()]
sys.argv[1:] = ["ckpt=run", "n=2", "out=samples"]
print(*codes, sample.main(), "torch" in sys.modules, "torch._dynamo" in sys.modules)
"""
    done = python("-c", program, *tiny, "run_dir=run")
    assert done.stdout.splitlines()[-1] == "0 0 True False", done.stderr


@pytest.mark.parametrize(("system", "calls"), [("linux", [(-3, 2**25), (-1, 2**30)]), ("darwin", [])])
def test_freed_memory_is_kept_where_the_allocator_is_glibc(
    monkeypatch: Patch, system: str, calls: list[tuple[int, int]]
) -> None:
    """The thresholds of malloc.h; what they gain is in docs/performance.md, since pages are handed out as it happens."""
    heard: list[tuple[int, int]] = []
    monkeypatch.setattr(sys, "platform", system)
    library = SimpleNamespace(mallopt=lambda option, value: heard.append((option, value)))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    memory.keep_freed()
    assert heard == calls


@pytest.mark.parametrize(("system", "told"), [("linux", 3 * 2**20), ("darwin", 3 * 2**30)])
def test_peak_memory_is_in_gibibytes(monkeypatch: Patch, system: str, told: int) -> None:
    """getrusage counts in KiB on Linux and in bytes on macOS."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(resource, "getrusage", lambda who: SimpleNamespace(ru_maxrss=told))
    assert memory.peak(torch.device("cpu")) == "3.0 GiB"


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD])
def test_eager_optimizers_are_those_of_torch(kind: Any) -> None:
    states = []
    for make in (kind, eager(kind)):
        weights = [torch.linspace(-1, 1, 5).requires_grad_(), torch.ones(3, requires_grad=True)]
        optimizer = make(weights[:1], lr=0.1, weight_decay=0.1)
        optimizer.add_param_group({"params": weights[1:], "lr": 0.01})
        for _ in range(3):
            optimizer.zero_grad()
            sum(w.square().sum() for w in weights).backward()
            optimizer.step()
            optimizer.load_state_dict(optimizer.state_dict())
        states.append(str(optimizer.state_dict()) + str(weights))
    assert states[0] == states[1]


def test_arithmetic_is_counted_as_torch_does() -> None:
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton, which complains if it is held to the end

    shape = DataShape(tuple(CIFAR["size"]), CIFAR["num_classes"])
    model = {**compose_group("model", "unet_small"), "attention_resolutions": [16]}
    network = make_model({"data": dict(CIFAR), "model": model}).eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert (
        speed.gflop(network, *Denoise().inputs(shape.size, shape.size, torch.device("cpu")))
        == counter.get_total_flops() / 1e9
        > 0.1
    )


def test_attention_is_counted_on_every_device(monkeypatch: Patch) -> None:
    """The fused attention of some devices and versions of torch has no formula, and would count as nothing."""
    from torch.utils.flop_counter import flop_registry

    shape = DataShape(tuple(CIFAR["size"]), CIFAR["num_classes"])
    model = {**compose_group("model", "unet_small"), "attention_resolutions": [16]}
    network = make_model({"data": dict(CIFAR), "model": model}).eval()
    whole = speed.gflop(network, *Denoise().inputs(shape.size, shape.size, torch.device("cpu")))
    for row in [row for row in flop_registry if "attention" in str(row)]:
        monkeypatch.delitem(flop_registry, row)
    assert speed.gflop(network, *Denoise().inputs(shape.size, shape.size, torch.device("cpu"))) == whole


def test_a_checkpoint_waits_once(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    """For the question whether all averaged weights are finite; copies are waited for together."""
    save, waits = trainer.Trainer._save, list[int]()

    def counting(self: trainer.Trainer, *, wait: bool) -> None:
        with Counting() as mode:
            save(self, wait=wait)
        waits.append(sum(mode.calls[name] for name in WAITS))

    monkeypatch.setattr(trainer.Trainer, "_save", counting)
    fit(tmp_path / "run")
    assert waits == [1, 1]


@pytest.mark.parametrize(
    ("experiment", "millions", "gflop"), [("cifar10_dit", 38.8, 14.0), ("cifar10_jit", 38.8, 15.2)]
)
def test_the_transformer_costs_what_the_speed_runs_network_does(experiment: str, millions: float, gflop: float) -> None:
    shape = DataShape(tuple(CIFAR["size"]), CIFAR["num_classes"])
    costs = []
    for name in ("cifar10_fast", experiment):
        with torch.device("meta"):
            network = make_model({"data": dict(CIFAR), "model": defaults("train", [f"experiment={name}"])["model"]})
        costs.append(speed.gflop(network, *Denoise().inputs(shape.size, shape.size, torch.device("meta"))))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == millions
    assert round(costs[1], 1) == gflop and costs[1] == pytest.approx(costs[0], rel=0.11)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cifar10_edm", "cifar10_ddpm")]


@pytest.mark.parametrize("experiment", ["cifar10_fast", *SLOW])
def test_the_network_compiles_to_one_graph(experiment: str) -> None:
    """A break of the graph costs a compiled step most of what it gains."""
    model = {**defaults("train", [f"experiment={experiment}"])["model"], "channels": 16, "attention_resolutions": [16]}
    network = make_model({"data": dict(CIFAR), "model": model})
    torch._dynamo.reset()
    writing = torch._dynamo.explain(network)(torch.randn(2, 3, 32, 32), torch.rand(2), torch.tensor([1, -1]))
    assert writing.graph_break_count == 0, writing.break_reasons
    assert writing.graph_count == 1


def test_the_speed_runs_network_is_the_one_of_its_recipe() -> None:
    model = defaults("train", ["experiment=cifar10_fast"])["model"]
    with torch.device("meta"):
        network = make_model({"data": dict(CIFAR), "model": model})
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 27.9
    assert compose_group("model", "unet_large")["resample"] == model["resample"]


def test_utilization_is_shown_where_the_peak_is_known(monkeypatch: Patch) -> None:
    cuda = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA L40S", 362),
        ("Some GPU", None),
        ("NVIDIA L40", 181),
        ("T400", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert speed.peak_tflops(cuda, "bf16") == peak
    assert speed.peak_tflops(cuda, "no") is None
    assert speed.peak_tflops(torch.device("cpu"), "bf16") is None
    assert speed.shown(412.3, 989) == "412 TFLOP/s (MFU 42%)"
    assert speed.shown(0.0612, None) == "0.0612 TFLOP/s"


def test_a_profile_is_written(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path / "run", "train.profile=true", "train.images=400", "train.preview_every=16")
    assert "convolution" in (run / "profile" / "table.txt").read_text()
    events = Counter(
        event.get("name") for event in json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]
    )
    convolutions = sum(name.endswith("weight") and w.ndim == 4 for name, w in load(run).weights.items())
    assert (events["aten::_fused_adamw_"], events["aten::conv2d"]) == (10, 10 * convolutions), "training steps alone"
    assert "ui.perfetto.dev" in capsys.readouterr().out


def test_a_run_too_short_for_a_profile_says_so(fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path / "run", "train.profile=true", "train.images=160")
    assert not (run / "profile").exists()
    assert "no profile: it takes 20 steps, and there were 10" in capsys.readouterr().out
