"""The U-Net: sizes that the papers state, any data shape, and what it must be at initialisation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from networks import excite
from omegaconf import OmegaConf
from torch import Tensor, nn

from diffgen.cli.configs import config_dir
from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets import MODELS, DataShape, UNet
from diffgen.nets.layers import Embedding, SinusoidalEmbedding, attend, norm
from diffgen.nets.unet import Attention

SMALL: dict[str, Any] = {
    "name": "unet", "channels": 8, "channel_mult": [1, 2], "blocks": 1, "attention_resolutions": [], "heads": 1,
    "dropout": 0.0, "resample": "conv", "skip_scale": 1.0, "decoder_attention": "all", "patch": 1, "time_layers": [],
}  # fmt: skip


def config(name: str) -> dict[str, Any]:
    loaded = OmegaConf.to_container(OmegaConf.load(Path(config_dir()) / "model" / f"{name}.yaml"))
    assert isinstance(loaded, dict)
    return {str(key): value for key, value in loaded.items()}


def make(shape: DataShape, **changes: object) -> UNet:
    torch.manual_seed(0)
    return build(MODELS, {**SMALL, **changes}, shape)


def on_meta(name: str, num_classes: int) -> UNet:
    with torch.device("meta"):
        return build(MODELS, config(name), DataShape((3, 32, 32), num_classes))


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def inputs(batch: int, shape: DataShape) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(batch, shape.channels, shape.height, shape.width, generator=generator)
    return x, torch.rand(batch, generator=generator) * 1000, torch.full((batch,), -1)


# --- sizes --------------------------------------------------------------------------------------------------


def test_unet_base_is_the_network_of_ddpm() -> None:
    """35.7 M (Ho et al. 2020, app. B); the count of the authors' own CIFAR-10 checkpoint."""
    assert size(on_meta("unet_base", 0)) == 35_746_307


def test_unet_large_is_the_network_of_edm() -> None:
    """55.7 M (Karras et al. 2022, table 7)."""
    assert round(size(on_meta("unet_large", 0)) / 1e6, 1) == 55.7
    assert round(size(on_meta("unet_large", 10)) / 1e6, 1) == 55.7


@pytest.mark.parametrize(("name", "millions"), [("unet_tiny", 0.2), ("unet_small", 1.0)])
def test_cpu_sizes_are_small(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(MODELS, config(name), DataShape((1, 28, 28), 10))
    assert size(model) / 1e6 <= millions + 0.05


def test_labels_cost_one_linear_layer() -> None:
    assert size(on_meta("unet_base", 10)) - size(on_meta("unet_base", 0)) == 10 * 128 + 128


# --- data shapes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resample", ["conv", "block"])
@pytest.mark.parametrize(
    ("channels", "height", "width", "patch"),
    [(1, 8, 8, 1), (3, 7, 7, 1), (2, 5, 9, 1), (5, 12, 6, 2), (1, 1, 1, 1), (3, 3, 16, 1), (1, 9, 6, 3)],
)
def test_any_channels_and_sizes(channels: int, height: int, width: int, patch: int, resample: str) -> None:
    shape = DataShape((channels, height, width), 0)
    model = excite(make(shape, resample=resample, patch=patch, channel_mult=[1, 2, 2], attention_resolutions=[2]))
    x, t, label = inputs(2, shape)
    assert model(x, t, label).shape == x.shape


@pytest.mark.parametrize("resample", ["conv", "block"])
def test_every_parameter_and_every_input_pixel_matters(resample: str) -> None:
    shape = DataShape((2, 7, 5), 3)
    model = excite(make(shape, resample=resample, attention_resolutions=[4], heads=2))
    x, t, _ = inputs(3, shape)
    x.requires_grad_()
    model(x, t, torch.tensor([0, 1, 2])).square().sum().backward()
    assert x.grad is not None
    assert (x.grad != 0).all()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_images_of_a_batch_do_not_see_each_other() -> None:
    shape = DataShape((1, 6, 6), 3)
    model = excite(make(shape, attention_resolutions=[6, 3])).eval().double()
    x, t, _ = inputs(3, shape)
    x, t, label = x.double(), t.double(), torch.tensor([2, -1, 0])
    together = model(x, t, label)
    alone = torch.cat([model(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-6)


# --- initialisation, labels, noise level --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["unet_tiny", "unet_small"])
def test_output_is_near_zero_at_initialisation(name: str) -> None:
    torch.manual_seed(0)
    shape = DataShape((1, 28, 28), 10)
    model = build(MODELS, config(name), shape)
    x, t, _ = inputs(4, shape)
    output = model(x, t, torch.tensor([0, 1, 2, -1]))
    assert 0 < output.abs().max() < 1e-3


def test_label_none_is_no_label_at_all() -> None:
    shape = DataShape((1, 6, 6), 4)
    model = excite(make(shape)).eval()
    x, t, none = inputs(2, shape)
    with_none, with_label = model(x, t, none), model(x, t, torch.tensor([3, 0]))
    assert isinstance(model.embedding, Embedding)
    assert model.embedding.label is not None
    with torch.no_grad():
        model.embedding.label.weight.zero_()
    torch.testing.assert_close(model(x, t, torch.tensor([3, 0])), with_none, rtol=0, atol=0)
    assert (with_label - with_none).abs().max() > 1e-3


def test_an_unconditional_model_ignores_labels() -> None:
    shape = DataShape((1, 6, 6), 0)
    model = excite(make(shape)).eval()
    x, t, none = inputs(2, shape)
    assert torch.equal(model(x, t, none), model(x, t, torch.tensor([5, 7])))


def test_sinusoidal_embedding_is_that_of_the_transformer() -> None:
    embedded = SinusoidalEmbedding(6)(torch.tensor([0.0, 3.0]))
    frequencies = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)])
    torch.testing.assert_close(embedded[0], torch.tensor([1.0, 1, 1, 0, 0, 0]))
    torch.testing.assert_close(embedded[1], torch.cat([(3 * frequencies).cos(), (3 * frequencies).sin()]))


@pytest.mark.parametrize("channels", [4, 8, 20, 36, 128, 144, 256])
def test_norm_groups_hold_four_channels_or_more(channels: int) -> None:
    layer = norm(channels)
    assert channels % layer.num_groups == 0
    assert layer.num_groups <= 32
    assert channels // layer.num_groups >= 4


# --- attention ----------------------------------------------------------------------------------------------


def attention_heights(model: UNet, shape: DataShape) -> list[int]:
    """Heights of the maps that attention sees, in the order of the forward pass."""
    heights: list[int] = []
    for layer in model.modules():
        if isinstance(layer, Attention):
            layer.register_forward_hook(lambda _, args, out: heights.append(args[0].shape[2]))
    model(*inputs(1, shape))
    return heights


@pytest.mark.parametrize(
    ("resolutions", "decoder", "heights"),
    [
        ([], "all", [4]),
        ([8], "all", [8, 8, 4, 8, 8, 8]),
        ([8], "last", [8, 8, 4, 8]),
        ([16, 4], "all", [16, 16, 4, 4, 4, 4, 4, 4, 16, 16, 16]),
        ([5], "all", [4]),
    ],
)
def test_attention_at_chosen_resolutions_and_in_the_middle(
    resolutions: list[int], decoder: str, heights: list[int]
) -> None:
    shape = DataShape((1, 16, 16), 0)
    model = make(shape, channel_mult=[1, 1, 1], blocks=2, attention_resolutions=resolutions, decoder_attention=decoder)
    assert attention_heights(model, shape) == heights


def test_attention_is_softmax_attention_over_pixels() -> None:
    torch.manual_seed(0)
    layer = excite(Attention(8, heads=2, skip_scale=0.5)).double()
    x = torch.randn(2, 8, 3, 2, dtype=torch.float64)
    assert isinstance(layer, Attention)
    h = nn.functional.group_norm(x, layer.norm.num_groups, layer.norm.weight, layer.norm.bias, 1e-6)
    q, k, v = torch.einsum("oc,bcp->bop", layer.qkv.weight[:, :, 0, 0], h.flatten(2)).add(
        layer.qkv.bias[:, None]
    ).reshape(2, 3, 2, 4, 6).unbind(1)  # fmt: skip
    weights = torch.einsum("bhcq,bhck->bhqk", q, k).div(2).softmax(-1)
    mixed = torch.einsum("bhqk,bhck->bhcq", weights, v).reshape(2, 8, 6)
    projected = torch.einsum("oc,bcp->bop", layer.proj.weight[:, :, 0, 0], mixed) + layer.proj.bias[:, None]
    torch.testing.assert_close(layer(x), 0.5 * (x + projected.reshape(x.shape)))


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 6}, "model.channels=6 must be a multiple of 4"),
        ({"channels": 10**9}, "model.channels=1000000000 must be a multiple of 4 in [4, 4096]"),
        ({"channel_mult": []}, "model.channel_mult=[] must be 1 to 8 whole numbers"),
        ({"channel_mult": [1, 0]}, "model.channel_mult=[1, 0] must be 1 to 8 whole numbers"),
        ({"blocks": 0}, "model.blocks=0 must be in [1, 64]"),
        ({"heads": 3}, "model.heads=3 must divide the 16 channels at each attention"),
        ({"heads": 0}, "model.heads=0 must be in [1, 64]"),
        ({"dropout": 1.0}, "model.dropout=1.0 must be in [0, 1)"),
        ({"patch": 3}, "model.patch=3 must divide the image size 8x8"),
        ({"resample": "max"}, "model.resample='max' is unknown; choose one of [block, conv]"),
        (
            {"decoder_attention": "none"},
            "model.decoder_attention='none' is unknown; choose one of [all, last]",
        ),
    ],
)
def test_impossible_settings_are_told_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make(DataShape((1, 8, 8), 0), **changes)
    assert str(caught.value).startswith(sentence)


def test_dropout_is_drawn_in_training_only() -> None:
    shape = DataShape((1, 6, 6), 0)
    model = excite(make(shape, dropout=0.5))
    x, t, label = inputs(1, shape)
    torch.manual_seed(0)
    first = model(x, t, label)
    assert not torch.equal(first, model(x, t, label))
    model.eval()
    assert torch.equal(model(x, t, label), model(x, t, label))


def test_attention_in_bf16_on_the_cpu_is_attention() -> None:
    """Values and gradients, against float64."""
    q, k, v = torch.randn(3, 2, 4, 49, 16, dtype=torch.float64).unbind()
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [part.to(dtype).detach().requires_grad_() for part in (q, k, v)]
        attended = attend(*inputs)
        attended.square().sum().backward()
        results.append([attended.detach().double(), *(part.grad.double() for part in inputs)])  # type: ignore[union-attr]
    for exact, rounded in zip(*results, strict=True):
        assert (exact - rounded).norm() < 0.02 * exact.norm()
