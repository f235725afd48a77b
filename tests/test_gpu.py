"""What needs a CUDA device: run with `make test-gpu`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffgen.build import restore
from diffgen.core.processes import accelerated
from diffgen.core.randomness import image_noise
from diffgen.diffusion.guidance import Guidance
from diffgen.nets.layers import attend
from diffgen.objectives import Denoise
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
@pytest.mark.parametrize("compiled", ["true", "false"])
def test_training_learns(fit: Callable[..., Path], metrics: Any, tmp_path: Path, precision: str, compiled: str) -> None:
    run = fit(tmp_path / "run", f"train.precision={precision}", f"train.compile={compiled}", "train.images=1280")
    losses = [row["loss"] for row in metrics(run)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_a_resumed_run_goes_on(fit: Callable[..., Path], metrics: Any, tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", "train.compile=false", "lr_schedule.decay=constant")
    parts = fit(tmp_path / "parts", "train.compile=false", "lr_schedule.decay=constant", "train.images=64")
    fit(parts, "train.compile=false", "lr_schedule.decay=constant")
    for a, b in zip(metrics(whole), metrics(parts), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)


@pytest.mark.parametrize("name", ["heun", "ancestral"])
def test_images_are_those_of_the_cpu(tiny_model: Path, compose: Any, name: str) -> None:
    saved = checkpoint.load(tiny_model)
    settings = compose("sample", f"sampler={name}", "sampler.steps=8")["sampler"]
    drawn = []
    for device in (torch.device("cpu"), torch.device("cuda")):
        trained = restore(saved)
        trained.denoiser.model.to(device)  # type: ignore[attr-defined]
        sampling = Sampling.from_config(trained, settings, guidance=Guidance(scale=1.5), seed=0, device=device)
        drawn.append(sampling.draw([0, 1, 2, 3], [0, 1, 2, -1]).cpu())
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=2e-2)


def test_noise_is_copied_without_waiting(tiny_model: Path, compose: Any) -> None:
    trained = restore(checkpoint.load(tiny_model))
    settings, cuda = compose("sample", "sampler=ancestral")["sampler"], torch.device("cuda")
    sampling = Sampling.from_config(trained, settings, guidance=Guidance(scale=1.0), seed=0, device=cuda)
    noise = image_noise((3, 32, 32), list(range(64)), seed=0, draw=1, pinned=True)
    torch.cuda.set_sync_debug_mode("error")
    try:
        copied = sampling.state(noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert copied.dtype == torch.float64 and torch.equal(copied.cpu().float(), noise)


@pytest.mark.parametrize("sites", [16, 64, 192, 256])
def test_very_negative_scores_have_gradients(sites: int) -> None:
    """cuDNN's kernels give NaN for 64 and 192 sites (PyTorch issue 196678)."""
    with accelerated("bf16") as accelerator:
        q, k, v = 0.1 * torch.randn(3, 8, 4, sites, 64, dtype=torch.bfloat16, device=accelerator.device)
        q[..., 0], k[..., 0] = 1.0, -120 * 8.0  # every score is about -120
        given = [x.requires_grad_() for x in (q.detach(), k.detach(), v.detach())]
        attend(*given).square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in given)


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_step_that_is_not_finite_is_skipped(
    fit: Callable[..., Path], metrics: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:

    loss, calls = Denoise.loss, iter(range(1000))
    monkeypatch.setattr(Denoise, "loss", lambda *a: loss(*a) * (float("nan") if next(calls) == 30 else 1))
    run = fit(tmp_path / "run", f"train.precision={precision}", "train.compile=false", "train.images=1280")
    rows = metrics(run)
    assert rows[-1]["skipped"] - rows[29]["skipped"] == 1
    assert all(weight.isfinite().all() for weight in checkpoint.load(run).weights.values())


def test_no_step_waits_for_the_device(
    fit: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two lines of the log, nothing of a step asks the GPU for a number."""
    from diffgen.training import trainer

    step = trainer.Trainer._step

    def strict(self: trainer.Trainer, *batch: torch.Tensor) -> Any:
        torch.cuda.set_sync_debug_mode("error" if self.at.step > 2 else "default")
        try:
            return step(self, *batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(trainer.Trainer, "_step", strict)
    fit(tmp_path / "run", "train.compile=false", "train.precision=bf16")
