"""Optimizers: which weights go where, joined steps against the same two alone, and what is refused."""

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.optimizers import OPTIMIZERS, Joined, Muon, Named, eager

Compose = Callable[..., dict[str, Any]]

MUON = {"momentum": 0.95, "nesterov": True, "ns_steps": 5}


def settings(compose: Compose, name: str, **given: Any) -> dict[str, Any]:
    return {**compose("train", "dataset=cifar10", f"optimizer={name}")["optimizer"], **given}


def parameters(network: nn.Module) -> Named:
    return [(f"model.{name}", parameter) for name, parameter in network.named_parameters()]


def transformer() -> nn.Module:
    """As somebody might write one."""
    block = nn.ModuleDict({"qkv": nn.Linear(4, 12), "mlp": nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))})
    ends = {"patch_embed": nn.Conv2d(3, 4, 2), "time": nn.Sequential(nn.Linear(4, 4)), "final": nn.Linear(4, 12)}
    return nn.ModuleDict({"blocks": nn.ModuleList([block]), **ends})


@pytest.mark.parametrize(
    ("network", "hidden"),
    [
        ("unet_tiny", {"encoder.0.embed", "middle.1.conv0", "decoder.4.skip"}),
        ("mlp", {"blocks.0.layer0", "blocks.0.layer1", "blocks.0.embed", "blocks.3.layer1"}),
        ("dit_tiny", {f"blocks.3.{name}" for name in ("attention.q", "attention.out", "feed_forward.gate")}),
        ("plugin", {"blocks.0.qkv", "blocks.0.mlp.0", "blocks.0.mlp.1"}),
    ],
)
def test_muon_takes_the_matrices_of_blocks(compose: Compose, network: str, hidden: set[str]) -> None:
    """And Adam the ends, the embedding, norms and biases: each weight is in one group."""
    if network == "plugin":
        model = transformer()
    else:
        model = build(MODELS, compose("train", f"model={network}")["model"], DataShape((3, 8, 8), 10))
    named = parameters(model)
    matrices, rest = (group["params"] for group in build(OPTIMIZERS, settings(compose, "muon"), named).param_groups)
    names = {parameter: name.removeprefix("model.").removesuffix(".weight") for name, parameter in named}
    taken = {names[p] for p in matrices}
    assert hidden <= taken
    assert network != "plugin" or hidden == taken
    assert all(p.ndim >= 2 for p in matrices)
    assert not any(p.ndim >= 2 and re.search(r"\.\d+\.", names[p]) and network != "plugin" for p in rest)
    assert not taken & {"stem", "head", "embedding.layer0", "embedding.layer1", "embedding.label", "final", "time.0"}
    assert not any(re.match("ends|modulation|class_tokens", name) for name in taken)
    assert sorted(map(id, [*matrices, *rest])) == sorted(id(p) for _, p in named)


def test_all_weights_may_be_matrices(compose: Compose) -> None:
    network = nn.ModuleDict({"blocks": nn.ModuleList([nn.Sequential(nn.Linear(3, 3, bias=False))])})
    build(OPTIMIZERS, settings(compose, "muon"), parameters(network)).step()


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd", "muon", "muon_small"])
@pytest.mark.parametrize("dataset", ["digits", "moving_digits", "numbers", "points"])
def test_a_recipe_takes_any_optimizer(compose: Compose, dataset: str, optimizer: str) -> None:
    chosen = compose("train", f"dataset={dataset}", f"optimizer={optimizer}", "optimizer.lr=0.01")["optimizer"]
    assert build(OPTIMIZERS, chosen, parameters(transformer())).param_groups[0]["lr"] == 0.01


def test_a_network_without_blocks_is_refused(compose: Compose) -> None:
    with pytest.raises(UsageError, match=r"optimizer.name='muon' finds no matrix in a numbered block"):
        build(OPTIMIZERS, settings(compose, "muon"), parameters(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))))


def stepped(optimizers: list[torch.optim.Optimizer], named: Named, *, reloaded: bool = False) -> list[Tensor]:
    """The parameters after five steps, with a rate that falls."""
    for step in range(5):
        for optimizer in optimizers:
            if reloaded:  # as Accelerate does once
                optimizer.load_state_dict(optimizer.state_dict())
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            for _, parameter in named:
                parameter.grad = (parameter.detach() + step).sin()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [parameter.detach() for _, parameter in named]


@pytest.mark.parametrize("reloaded", [False, True])
def test_joined_optimizers_step_as_they_do_alone(compose: Compose, *, reloaded: bool) -> None:
    network = transformer()
    first, second = parameters(network), parameters(copy.deepcopy(network))
    keys = settings(compose, "muon", lr=0.1, adam_lr=0.3)
    blocks = [p for name, p in second if "blocks" in name and p.ndim == 2]
    others = [p for name, p in second if not ("blocks" in name and p.ndim == 2)]
    own = {key: keys[key] for key in ("lr", "momentum", "nesterov", "ns_steps", "weight_decay", "adjust_lr_fn")}
    parts = [eager(Muon)(blocks, own), torch.optim.Adam(others, lr=0.3, betas=(0.9, 0.95), eps=1e-10, fused=True)]
    whole = build(OPTIMIZERS, keys, first)
    for a, b in zip(stepped([whole], first, reloaded=reloaded), stepped(parts, second), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert {p for _, p in first} == whole.state.keys()


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (5, 5), (3, 2, 2, 2)])
def test_muon_steps_along_the_singular_vectors(shape: tuple[int, ...]) -> None:
    """By singular values that its polynomial makes of the gradient's, which is the first mean but for a factor."""
    weight = torch.zeros(shape, requires_grad=True)
    weight.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    eager(Muon)([weight], {**MUON, "lr": 0.1, "weight_decay": 0.0, "adjust_lr_fn": "original"}).step()
    u, s, v = torch.linalg.svd(weight.grad.flatten(1).double(), full_matrices=False)
    s = s / s.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    assert ((s > 0.6) & (s < 1.25)).all()
    size = max(1.0, shape[0] / math.prod(shape[1:])) ** 0.5
    torch.testing.assert_close(weight.detach().flatten(1).double(), -0.1 * size * (u * s) @ v, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch's Muon came with 2.9")
@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_that_of_torch(adjust: str, *, nesterov: bool) -> None:
    """But for the bfloat16 of its iterations, and on the matrices that it takes."""
    network = transformer()
    first, second = ([p for _, p in parameters(each) if p.ndim == 2] for each in (network, copy.deepcopy(network)))
    keys = {**MUON, "lr": 0.01, "weight_decay": 0.1, "nesterov": nesterov, "adjust_lr_fn": adjust}
    before = [p.detach().clone() for p in first]
    ours, theirs = (
        stepped([optimizer], [("", p) for p in some])
        for optimizer, some in ((eager(Muon)(first, keys), first), (torch.optim.Muon(second, **keys), second))
    )
    for a, b, began in zip(ours, theirs, before, strict=True):
        assert (a - b).norm() < 0.05 * (b - began).norm()


def test_muon_steps_the_same_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> list[Tensor]:
        rng = torch.Generator().manual_seed(0)
        shapes = [(3, 8), (3, 8), (3, 2, 2, 2), (5, 5)]
        return [torch.randn(shape, generator=rng).requires_grad_() for shape in shapes]

    def after(weights: list[Tensor]) -> list[Tensor]:
        keys = {**MUON, "lr": 0.1, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"}
        optimizer = eager(Muon)(weights, keys)
        return stepped([optimizer], [("", p) for p in weights])

    together = after(made())
    monkeypatch.setattr("diffgen.nets.optimizers.TOGETHER", 1)
    torch.testing.assert_close(after(made()), together)


def test_joined_optimizers_keep_what_their_members_began_with() -> None:
    weight, bias = torch.ones(2, requires_grad=True), torch.ones(3, requires_grad=True)
    member = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    member.state[weight]["momentum_buffer"] = torch.full((2,), 10.0)
    joined = eager(Joined)(member, torch.optim.SGD([bias], lr=0.1))
    weight.grad = torch.zeros(2)
    joined.step()
    assert weight.tolist() == pytest.approx([0.1, 0.1])


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_that_of_torch(compose: Compose, momentum: float, *, nesterov: bool) -> None:
    network = transformer()
    first, second = parameters(network), parameters(copy.deepcopy(network))
    keys = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.01}
    ours = build(OPTIMIZERS, settings(compose, "sgd", **keys), first)
    theirs = torch.optim.SGD([p for _, p in second], **keys)
    for a, b in zip(stepped([ours], first), stepped([theirs], second), strict=True):
        torch.testing.assert_close(a, b)


def test_a_first_step_of_sgd_that_is_skipped_leaves_no_trace(compose: Compose) -> None:
    """Torch would take whatever stood in memory for its momentum."""
    named = [("model.w", torch.ones(4096, requires_grad=True))]
    optimizer = build(OPTIMIZERS, settings(compose, "sgd"), named)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    named[0][1].grad = torch.full((4096,), math.nan)
    optimizer.step()
    assert torch.equal(optimizer.state[named[0][1]]["momentum_buffer"], torch.zeros(4096))


@pytest.mark.parametrize(
    ("name", "key", "value", "sentence"),
    [
        ("sgd", "lr", 0.0, "optimizer.lr=0.0 must be in (0, 10)"),
        ("sgd", "momentum", 1.0, "optimizer.momentum=1.0 must be in [0, 1)"),
        ("sgd", "weight_decay", -1.0, "optimizer.weight_decay=-1.0 must not be negative"),
        ("muon", "momentum", -0.1, "optimizer.momentum=-0.1 must be in [0, 1)"),
        ("muon", "ns_steps", 0, "optimizer.ns_steps=0 must be in [1, 99]"),
        ("muon", "adjust_lr_fn", "none", "optimizer.adjust_lr_fn='none' is unknown"),
        ("muon", "adam_lr", 11.0, "optimizer.adam_lr=11.0 must be in (0, 10)"),
        ("muon", "adam_betas", [0.9], "optimizer.adam_betas=[0.9] must be two numbers in [0, 1)"),
        ("muon", "adam_eps", 0.0, "optimizer.adam_eps=0.0 must be positive"),
    ],
)
def test_bad_settings_are_told(compose: Compose, name: str, key: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(OPTIMIZERS, settings(compose, name, **{key: value}), parameters(transformer()))
    assert sentence in str(caught.value)


def test_nesterov_needs_a_momentum(compose: Compose) -> None:
    with pytest.raises(UsageError, match=r"optimizer.nesterov=true needs a momentum above 0"):
        build(OPTIMIZERS, settings(compose, "sgd", momentum=0.0, nesterov=True), parameters(transformer()))
