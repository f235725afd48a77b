"""The transformer: sizes and cost that papers state, every kind of data, and what it must be at initialisation."""

import re
from itertools import combinations
from typing import Any

import networks
import pytest
import torch
import torch.nn.functional as F
from rows import row
from torch import Tensor, nn

from diffgen.core import speed
from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets import MODELS, DataShape, DiT
from diffgen.nets.dit import Attention, Patches, RMSNorm, pairs_by_axis, rotate, rotations
from diffgen.objectives import Denoise

SMALL = {**row("model", "dit_tiny"), "width": 24, "depth": 2, "heads": 2, "patch": 1}
CIFAR, MNIST, IMAGENET = DataShape((3, 32, 32), 10), DataShape((1, 28, 28), 10), DataShape((3, 64, 64), 1000)


def make(shape: DataShape, **changes: Any) -> DiT:
    torch.manual_seed(0)
    network: DiT = build(MODELS, {**SMALL, **changes}, shape)
    return network


def excite(network: nn.Module) -> nn.Module:
    return networks.excite(network).eval()


def inputs(shape: DataShape, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    if shape.vocabulary:
        x = torch.randint(shape.vocabulary + 1, (batch, *shape.size), generator=generator)
    else:
        x = torch.randn(batch, *shape.size, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, torch.full((batch,), -1)


# --- sizes ----------------------------------------------------------------------------------------------------


def sized(width: int, depth: int, heads: int, patch: int, **changes: Any) -> dict[str, Any]:
    return {**SMALL, "width": width, "depth": depth, "heads": heads, "patch": patch, **changes}


JIT = {"bottleneck": 128, "class_tokens": 32}
SIZES = [
    ("S/2", CIFAR, row("model", "dit_small"), 32_492_940, 12.107),
    ("S/4", CIFAR, row("model", "dit_small", patch=4), 32_520_624, 2.820),
    ("B/2", CIFAR, row("model", "dit_base"), 129_570_060, 46.001),
    ("B/4", CIFAR, row("model", "dit_base", patch=4), 129_625_392, 11.121),
    ("L/2", CIFAR, row("model", "dit_large"), 456_839_148, 161.357),
    ("L/4", CIFAR, row("model", "dit_large", patch=4), 456_912_912, 39.372),
    ("512x8 /2", CIFAR, sized(512, 8, 8, 2), 38_759_260, 13.990),
    ("256x12 /2", CIFAR, sized(256, 12, 4, 2), 14_480_124, 5.647),
    ("128x6 /4", MNIST, sized(128, 6, 4, 4), 1_871_372, 0.125),
    ("192x8 /4", MNIST, sized(192, 8, 3, 4), 5_506_768, 0.366),
    ("B/4 of 64x64", IMAGENET, row("model", "dit_base", patch=4), 130_385_712, 46.029),
    ("JiT-B/16", DataShape((3, 256, 256), 1000), sized(768, 12, 12, 16, class_tokens_from=4, **JIT), 131_123_712, 50.446),
    ("JiT-L/16", DataShape((3, 256, 256), 1000), sized(1024, 24, 16, 16, class_tokens_from=8, **JIT), 458_877_664, 175.889),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "settings", "parameters", "gflop"), [case[1:] for case in SIZES])
def test_sizes_and_costs_are_those_of_the_papers(
    shape: DataShape, settings: dict[str, Any], parameters: int, gflop: float
) -> None:
    """As published, but that labels enter before the two layers of the noise embedding, 256 wide, as in the U-Net.

    There DiT's table of labels, whose last row stands for none, is as wide as the network.
    """
    with torch.device("meta"):
        network = build(MODELS, settings, shape)
    labels = (shape.num_classes + 1) * (settings["width"] - 256)
    assert sum(p.numel() for p in network.parameters()) == parameters - labels
    assert speed.gflop(network, *Denoise().inputs(shape.size, shape.size, torch.device("meta"))) == pytest.approx(
        gflop, abs=1e-3
    )


# --- kinds of data ----------------------------------------------------------------------------------------------


KINDS = {
    "pictures": (DataShape((2, 4, 6), 3), {"patch": 2}),
    "sequences": (DataShape((3, 6), 3), {"patch": 3}),
    "clips": (DataShape((1, 2, 4, 4), 3), {"patch": 2}),
    "text": (DataShape((5,), 3, vocabulary=7), {}),
    "one token": (DataShape((1,), 3, vocabulary=7), {}),
    "tokens of pictures": (DataShape((1, 3, 4), 3, vocabulary=5), {}),
    "estimate": (DataShape((2, 4, 4), 3), {"self_condition": True}),
    "class tokens": (DataShape((2, 4, 4), 3), {"class_tokens": 3, "class_tokens_from": 1, "bottleneck": 4}),
}


@pytest.mark.parametrize(("shape", "changes"), KINDS.values(), ids=KINDS)
def test_every_kind_of_data(shape: DataShape, changes: dict[str, Any]) -> None:
    """The right shape, sites that all see the last value, and examples that do not mix."""
    network = excite(make(shape, **changes)).double()
    x, t, _ = inputs(shape)
    x, t, label = x if shape.vocabulary else x.double(), t.double(), torch.tensor([2, -1, 0])
    out = network(x, t, label)
    assert out.shape == (3, *shape.size, *([shape.vocabulary] if shape.vocabulary else []))
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(out, alone, rtol=1e-5, atol=1e-5)
    other = x.clone()
    last = other[0].view(-1)[-1:]
    last.copy_((last + 1) % 3)
    changed = (network(other, t, label) - out).abs()
    assert (changed[0] > 0).all() and not changed[1:].any()


@pytest.mark.parametrize(("shape", "changes"), KINDS.values(), ids=KINDS)
def test_every_parameter_learns(shape: DataShape, changes: dict[str, Any]) -> None:
    network = excite(make(shape, **changes))
    x, t, _ = inputs(shape)
    estimate = torch.ones(x.shape) if changes.get("self_condition") else None
    network(x, t, torch.tensor([0, 1, 2]), None, estimate).square().sum().backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    lonely = shape.size == (1,)  # a site that attends to itself alone, however
    assert all(lonely and re.search(r"attention\.(q|k|norm_q|norm_k)\.", name) for name in idle), idle


@pytest.mark.parametrize("size", [(3, 6), (2, 4, 6), (2, 2, 4, 6)])
def test_a_patch_is_a_site(size: tuple[int, ...]) -> None:
    """Values of a patch reach its own site and no other, and a site is written to where it was read."""
    ends = Patches(DataShape(size), 24, [2] * (len(size) - 1), None, inputs=1)
    x = torch.zeros(1, *size)
    x[(0, 1, *(side - 1 for side in size[1:]))] = 1  # the last value of the last patch, of channel 1
    sites = (ends(x) - ends(torch.zeros_like(x))).detach()
    assert [bool(site.any()) for site in sites[0]] == [False] * (sites.shape[1] - 1) + [True]
    values = size[0] * 2 ** (len(size) - 1)
    ends.stem = ends.head = nn.Identity()  # type: ignore[assignment]
    ends.width, x = values, torch.randn(2, *size)
    positions = ends(torch.zeros_like(x))
    torch.testing.assert_close(ends.back(ends(x) - positions), x, rtol=0, atol=1e-5)


# --- positions --------------------------------------------------------------------------------------------------


def test_channels_of_a_head_are_shared_among_axes() -> None:
    assert pairs_by_axis(64, 1) == [32]
    assert pairs_by_axis(64, 2) == [16, 16]
    assert pairs_by_axis(64, 3) == [8, 12, 12]
    assert pairs_by_axis(16, 3) == [2, 3, 3]


def test_rotary_angles_are_those_of_the_formula() -> None:
    cos, sin = rotations([2, 3], 8, torch.device("cpu"))
    row, column = torch.tensor([0.0, 0, 0, 1, 1, 1]), torch.tensor([0.0, 1, 2, 0, 1, 2])
    angle = torch.stack([row, row / 100, column, column / 100], 1)
    torch.testing.assert_close((cos, sin), (angle.cos(), angle.sin()))


def test_rotated_products_know_the_distance_alone() -> None:
    """And lengths stay as they are."""
    q, k = torch.randn(2, 16, dtype=torch.float64)
    cos, sin = (part.double() for part in rotations([5, 5], 16, torch.device("cpu")))
    turned_q, turned_k = rotate(q.expand(25, 16), (cos, sin)), rotate(k.expand(25, 16), (cos, sin))
    torch.testing.assert_close(turned_q.norm(dim=1), q.norm().expand(25), rtol=1e-6, atol=1e-6)
    products = turned_q @ turned_k.T
    torch.testing.assert_close(products[0, 6], products[12, 18], rtol=1e-6, atol=1e-6)
    assert (products[0, 6] - products[0, 1]).abs() > 1e-3


def test_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    layer = excite(Attention(8, heads=2)).double()
    assert isinstance(layer, Attention)
    x, rotation = torch.randn(1, 3, 8, dtype=torch.float64), rotations([3], 4, torch.device("cpu"))
    heads = []
    for head in (slice(0, 4), slice(4, 8)):
        q, k, v = (part(x)[0, :, head] for part in (layer.q, layer.k, layer.v))
        q, k = (rotate(n.weight * p / (p.square().mean(1, keepdim=True) + 1e-6).sqrt(), rotation)
                for n, p in ((layer.norm_q, q), (layer.norm_k, k)))  # fmt: skip
        heads.append((q @ k.T / 2).softmax(1) @ v)
    torch.testing.assert_close(layer(x, rotation)[0], layer.out(torch.cat(heads, 1)))


def test_places_matter() -> None:
    """The same tokens in another order are another text."""
    network = excite(make(DataShape((4,), vocabulary=5)))
    t, label = torch.zeros(1), torch.tensor([-1])
    one, two = (network(torch.tensor([ids]), t, label)[0] for ids in ([0, 1, 2, 3], [1, 0, 2, 3]))
    assert (one[2:] - two[2:]).abs().max() > 1e-3


# --- initialisation, precision, estimates -------------------------------------------------------------------------


def test_gates_are_shut_and_the_output_is_zero_at_initialisation() -> None:
    network = make(DataShape((2, 4, 4), 3))
    out = network(*inputs(DataShape((2, 4, 4), 3)))
    assert not out.any()
    seen = []
    network.norm.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    x, t, label = inputs(DataShape((2, 4, 4), 3))
    network(x, t, label)
    torch.testing.assert_close(seen[0], network.ends(x))


def test_norms_and_positions_are_float32_under_autocast() -> None:
    network = excite(make(DataShape((2, 4, 4))))
    seen: list[torch.dtype] = []
    for layer in network.modules():
        if isinstance(layer, RMSNorm):
            layer.register_forward_hook(lambda _, args, out: seen.append(out.dtype))
    exact = network(*inputs(DataShape((2, 4, 4))))
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs(DataShape((2, 4, 4))))
    assert out.dtype == torch.bfloat16 and len(seen) == 4 * 2 + 1 and set(seen) == {torch.float32}
    assert F.mse_loss(out.float(), exact) < 1e-3 * exact.square().mean()


def test_the_estimate_is_seen_and_none_is_zeros() -> None:
    shape = DataShape((2, 4, 4))
    network = excite(make(shape, self_condition=True))
    x, t, label = inputs(shape)
    none = network(x, t, label)
    assert torch.equal(none, network(x, t, label, None, torch.zeros_like(x)))
    assert not torch.equal(none, network(x, t, label, None, x))


def test_class_tokens_are_seen_from_their_block_on() -> None:
    lengths: list[int] = []
    network = make(DataShape((1, 4, 4)), depth=3, class_tokens=5, class_tokens_from=1)
    for block in network.blocks:
        block.register_forward_hook(lambda _, args, out: lengths.append(out.shape[1]))
    network(*inputs(DataShape((1, 4, 4))))
    assert lengths == [16, 21, 21]


@pytest.mark.parametrize(
    "kind",
    ["pictures", "text", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k not in ("pictures", "text"))],
)
def test_it_compiles_to_one_graph(kind: str) -> None:
    shape, changes = KINDS[kind]
    network = excite(make(shape, **changes))
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(*inputs(shape)), network(*inputs(shape)))


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 2}, "model.width=2 must be in [4, 65536]"),
        ({"depth": 0}, "model.depth=0 must be in [1, 256]"),
        ({"heads": 5}, "model.heads=5 must be in [1, 256] and divide width=24 into even parts"),
        ({"heads": 8}, "model.heads=8 must be in [1, 256] and divide width=24 into even parts"),
        ({"heads": 12}, "model.heads=12 leaves 2 of width=24 to each, too few to tell 2 axes apart"),
        ({"patch": 3}, "model.patch=3 must divide the sides of the data, 8x8"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be in [0, 1)"),
        ({"bottleneck": 0}, "model.bottleneck=0 must be in [1, width=24] or null"),
        ({"class_tokens": -1}, "model.class_tokens=-1 must be in [0, 1024]"),
        ({"class_tokens_from": 2}, "model.class_tokens_from=2 must be a block, in [0, 1]"),
    ],
)
def test_impossible_settings_are_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(DataShape((1, 8, 8)), **changes)
    assert str(caught.value) == sentence


def test_data_that_it_cannot_take_is_told() -> None:
    with pytest.raises(UsageError, match=r"name=dit takes pictures, .* and the data is 7: choose model=mlp"):
        make(DataShape((7,)))
    with pytest.raises(UsageError, match=r"model.self_condition=true takes real numbers, and the data is tokens"):
        make(DataShape((7,), vocabulary=3), self_condition=True)


def test_sites_differ_where_all_tokens_are_masked() -> None:
    network = excite(make(DataShape((5,), vocabulary=3)))
    logits = network(torch.full((1, 5), 3), torch.zeros(1), torch.tensor([-1]))
    assert all((a - b).abs().max() > 1e-3 for a, b in combinations(logits[0], 2))
