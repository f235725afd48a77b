"""Weights that are cast together: the same numbers, by fewer launches."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import CIFAR, Counting
from torch import Tensor, nn

from diffgen.build import make_model
from diffgen.cli.configs import compose_group
from diffgen.nets import casting
from diffgen.nets.casting import Cast, CastTogether, Given, cast_names
from diffgen.training import trainer

Fit = Callable[..., Path]


def together(network: nn.Module) -> nn.Module:
    names = cast_names(network)
    return CastTogether(network, Given(network, names), names, torch.bfloat16)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """DDPM's network, made narrow, with weights large enough for its branches to matter."""
    torch.manual_seed(0)
    network = make_model({"data": CIFAR, "model": {**compose_group("model", "unet_base"), "channels": 8}})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def step(network: nn.Module, call: nn.Module) -> tuple[Tensor, list[Tensor], Counting]:
    """Output and gradients of a pass in bf16, and what was launched."""
    torch.manual_seed(1)
    x, t, label = torch.randn(2, 3, 32, 32), torch.rand(2), torch.tensor([3, -1])
    with Counting() as mode:
        with torch.autocast("cpu", torch.bfloat16):
            out = call(x, t, label)
        gradients = torch.autograd.grad(out.float().square().sum(), list(network.parameters()))
    return out, list(gradients), mode


def test_the_same_numbers_by_fewer_launches(network: nn.Module) -> None:
    plain, cast = step(network, network), step(network, together(network))
    assert torch.equal(plain[0], cast[0]) and plain[0].std() > 0.1
    for name, one, two in zip(dict(network.named_parameters()), plain[1], cast[1], strict=True):
        assert torch.equal(one, two) and one.dtype == two.dtype == torch.float32, name
    layers = sum(type(module) in casting.LAYERS for module in network.modules())
    assert len(cast_names(network)) == 2 * layers  # a weight and a bias each
    fewer = plain[2].calls["aten::_to_copy"] - cast[2].calls["aten::_to_copy"]
    assert fewer == 2 * len(cast_names(network)) > 400
    assert cast[2].calls["aten::_foreach_copy_"] == 2


@pytest.mark.parametrize("settings", [[], ["train.micro_batch=5"], ["weighting=uncertainty", "train.augment=0.5"]])
def test_a_run_is_the_run_that_autocast_would_make(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: list[str]
) -> None:
    fit(tmp_path / "together", "train.precision=bf16", "train.images=64", *settings)
    monkeypatch.setattr(casting, "LOW", {})
    fit(tmp_path / "plain", "train.precision=bf16", "train.images=64", *settings)
    for name in ("model", "state"):
        files = [tmp_path / run / f"checkpoints/00000064/{name}.safetensors" for run in ("together", "plain")]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_are_cast_once_for_each_pass(fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = Cast.forward
    monkeypatch.setattr(Cast, "forward", lambda ctx, *a: (calls.append(len(a)), real(ctx, *a))[1])
    run: Any = trainer.Trainer._step
    counts: list[int] = []
    monkeypatch.setattr(trainer.Trainer, "_step", lambda *a: (run(*a), counts.append(len(calls)))[0])
    fit(tmp_path / "run", "train.precision=bf16", "train.images=64", "train.micro_batch=8")
    assert counts == [2, 4, 6, 8]


class Idle(nn.Module):
    """A network that does not use one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_a_weight_that_is_not_used_has_no_gradient() -> None:
    """As without: an optimizer would decay it."""
    network = Idle()
    with torch.autocast("cpu", torch.bfloat16):
        together(network)(torch.ones(1, 2)).sum().backward()
    assert network.idle.weight.grad is None and network.used.weight.grad is not None


class Normed(nn.Linear):
    """A layer that makes something else of its weight first."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight / self.weight.norm(), self.bias)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_weights_with_other_uses_are_left_to_autocast() -> None:
    network = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 4, bias=False), Normed(4, 4), nn.Linear(4, 2), nn.ReLU())
    network[0].weight = network[1].weight
    assert cast_names(network) == ["3.weight", "3.bias"]
    assert cast_names(nn.Linear(2, 2).double()) == []
    made_ready = nn.Sequential(nn.utils.spectral_norm(nn.Linear(2, 2)), nn.utils.weight_norm(nn.Linear(2, 2)))
    assert cast_names(made_ready) == []
