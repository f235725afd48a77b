"""Networks of clips: the U-Net between frames, and the transformer's patches and attention in space and time."""

import re
from functools import partial
from typing import Any

import pytest
import torch
from networks import excite
from rows import row
from torch import Tensor, nn

from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets import MODELS, DataShape, dit
from diffgen.nets.temporal import TimeAttention, TimeConv, as_clips, as_frames

CLIPS, FRAMES = DataShape((2, 4, 8, 8), 3), DataShape((2, 8, 8), 3)
SETTINGS: dict[str, dict[str, Any]] = {
    "unet": row("model", "unet_tiny", channels=8, attention_resolutions=[4]),
    "conv": row("model", "unet_tiny", channels=8, time_layers=["conv"]),
    "attention": row("model", "unet_tiny", channels=8, attention_resolutions=[8], time_layers=["attention"]),
    "everywhere": row("model", "unet_tiny", channels=8, attention_resolutions=[8], time_layers=["full_attention"]),
    "full": row("model", "dit_tiny", width=24, depth=2, heads=2, patch=2, patch_time=1),
    "factorised": row("model", "dit_tiny", width=24, depth=2, heads=2, patch=4, patch_time=2, attention="factorised"),
}


def make(name: str, shape: DataShape = CLIPS, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    network: nn.Module = build(MODELS, {**SETTINGS[name], **changes}, shape)
    return network.eval()


def inputs(shape: DataShape, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, *shape.seen, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, torch.arange(batch) % 3


@pytest.mark.parametrize("name", SETTINGS)
def test_every_weight_and_every_frame_matters(name: str) -> None:
    network = excite(make(name))
    x, t, label = inputs(CLIPS)
    x.requires_grad_()
    out = network(x, t, label)
    assert out.shape == x.shape
    out[:, :, 0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    assert (x.grad.abs().sum((0, 1, 3, 4)) > 0).all()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_order_of_frames_is_known(name: str) -> None:
    network, order = excite(make(name)), torch.tensor([2, 0, 3, 1])
    x, t, label = inputs(CLIPS)
    mixed = network(x[:, :, order], t, label)
    assert not torch.allclose(mixed, network(x, t, label)[:, :, order], atol=1e-3)


@pytest.mark.parametrize("name", SETTINGS)
def test_clips_of_a_batch_do_not_see_each_other(name: str) -> None:
    network = excite(make(name))
    x, t, label = inputs(CLIPS)
    alone = torch.cat([network(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    assert torch.allclose(network(x, t, label), alone, rtol=1e-3, atol=1e-3 * alone.abs().max().item())


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_known_is_seen_behind_x(name: str) -> None:
    shape = DataShape(CLIPS.size, 3, given=3)
    network = excite(make(name, shape))
    x, t, label = inputs(shape)
    out = network(x, t, label)
    assert out.shape == (3, *CLIPS.size)
    x[:, 2:] = 0
    assert not torch.allclose(out, network(x, t, label))


def test_a_network_of_clips_begins_as_that_of_pictures_frame_by_frame() -> None:
    """Layers along time begin near zero; all others have the names and shapes of the network of pictures."""
    pictures = make("unet", FRAMES)
    with torch.no_grad():
        for p in pictures.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    clips = make("unet")
    new = clips.load_state_dict(pictures.state_dict(), strict=False)
    assert not new.unexpected_keys and new.missing_keys and all(".time." in name for name in new.missing_keys)
    x, t, label = inputs(CLIPS)
    each = torch.stack([pictures(frame, t, label) for frame in x.unbind(2)], 2)
    assert torch.allclose(clips(x, t, label), each, atol=1e-3)


def test_time_convolution_is_a_convolution_over_three_frames() -> None:
    """It joins the channels of neighbours, which is torch's convolution along time."""
    layer = TimeConv(4, frames=5)
    x = torch.randn(2, 4, 5, 3, 3)
    with torch.no_grad():
        layer.conv.weight.normal_()
        h = torch.nn.functional.silu(layer.norm(as_frames(x)))
        kernel = layer.conv.weight.reshape(4, 3, 4, 1, 1).transpose(1, 2)
        wanted = x + nn.functional.conv3d(as_clips(h, 5), kernel, layer.conv.bias, padding=(1, 0, 0))
        assert torch.allclose(as_clips(layer(as_frames(x)), 5), wanted, atol=1e-5)


def test_time_attention_looks_along_time_at_one_place() -> None:
    layer = excite(TimeAttention(4, heads=2, frames=3))
    x = torch.randn(3, 4, 2, 2, requires_grad=True)
    layer(x)[0, :, 0, 0].sum().backward()
    norm_only = x.grad[:, :, 1, 1].abs().sum((1,))  # the norm is over a frame, attention at a place
    assert x.grad[1:, :, 0, 0].abs().sum() > norm_only[1:].sum() > 0


def test_full_attention_is_attention_along_time_where_a_frame_is_one_place() -> None:
    layers = [excite(TimeAttention(4, heads=2, frames=5, full=full)) for full in (False, True)]
    layers[1].load_state_dict(layers[0].state_dict())
    x = torch.randn(10, 4, 1, 1)
    assert torch.allclose(layers[0](x), layers[1](x), atol=1e-6)


def test_full_attention_sees_all_places_on_all_frames_and_knows_frames_apart() -> None:
    """Places change places together with what is seen there; frames do not, since each is told its number."""
    layer = excite(TimeAttention(4, heads=2, frames=3, full=True))
    x = torch.randn(6, 4, 2, 2)
    assert torch.allclose(layer(x.flip(3)), layer(x).flip(3), atol=1e-6)
    other = as_frames(as_clips(x, 3).flip(2))
    assert not torch.allclose(layer(other), as_frames(as_clips(layer(x), 3).flip(2)), atol=1e-3)
    seen = torch.randn(3, 4, 2, 2, requires_grad=True)
    normed = layer.norm(seen)
    layer.norm = nn.Identity()  # the norm is over a frame
    layer(normed)[0, :, 0, 0].sum().backward()
    assert (seen.grad.abs().sum(1) > 0).all()


def test_factorised_attention_sees_in_turn_the_frame_and_the_place() -> None:
    network = excite(make("factorised"))
    network.blocks = network.blocks[:1]  # one block: space alone
    network.modulations = network.modulations[:1]
    x, t, label = inputs(CLIPS)
    other = x.clone()
    other[:, :, 2:] = 0  # the second patch of time
    out, changed = network(x, t, label), network(other, t, label)
    assert torch.equal(out[:, :, :2], changed[:, :, :2]) and not torch.allclose(out[:, :, 2:], changed[:, :, 2:])
    both = excite(make("factorised", depth=2))
    assert not torch.allclose(both(x, t, label)[:, :, :2], both(other, t, label)[:, :, :2])


@pytest.mark.parametrize("over_time", [False, True])
def test_factorised_attention_is_full_attention_that_sees_less(
    over_time: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same positions: sites of other frames, or of other places, are hidden from it."""
    network = excite(make("factorised", patch=2))
    generator = torch.Generator().manual_seed(3)
    h, modulation = torch.randn(2, 32, 24, generator=generator), torch.randn(2, 6 * 24, generator=generator)
    rotation, block = dit.rotations(network.ends.grid, network.channels, h.device), network.blocks[0]
    apart = network._apart(h, block, modulation, rotation, over_time=over_time)
    own = torch.arange(32) % 16 if over_time else torch.arange(32) // 16  # two frames of 4x4 places
    masked = partial(nn.functional.scaled_dot_product_attention, attn_mask=own[:, None] == own)
    monkeypatch.setattr(dit, "attend", masked)
    assert torch.allclose(apart, block(h, modulation, rotation), rtol=1e-4, atol=1e-4)


def test_patches_of_time_leave_that_many_sites() -> None:
    assert make("full").ends.grid == [4, 4, 4] and make("factorised").ends.grid == [2, 2, 2]


@pytest.mark.parametrize("name", ["unet", "full", "factorised"])
def test_networks_of_clips_have_no_graph_breaks(name: str) -> None:
    network = excite(make(name))
    compiled = torch.compile(network, backend="eager", fullgraph=True)
    assert torch.allclose(compiled(*inputs(CLIPS)), network(*inputs(CLIPS)), atol=1e-4)


@pytest.mark.parametrize(
    ("model", "shape", "changes", "sentence"),
    [
        ("dit_tiny", CLIPS, {"patch_time": 3}, "model.patch=4, patch_time=3 must divide the sides of the data, 4x8x8"),
        ("dit_tiny", CLIPS, {"patch_time": 0}, "model.patch=4, patch_time=0 must divide"),
        (
            "dit_tiny",
            FRAMES,
            {"attention": "factorised"},
            "model.attention=factorised is for clips without class tokens",
        ),
        ("dit_tiny", CLIPS, {"attention": "factorised", "class_tokens": 2}, "model.attention=factorised is for clips"),
        ("dit_tiny", CLIPS, {"attention": "factorised", "depth": 1}, "model.depth=1 leaves no block along time"),
        ("unet_tiny", CLIPS, {"time_layers": []}, "model.time_layers=[] would leave the frames of clips alone"),
        ("unet2d", CLIPS, {}, "model.name=unet2d takes pictures [C, H, W], and the data is 2x4x8x8"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(
    model: str, shape: DataShape, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        build(MODELS, row("model", model, **changes), shape)
