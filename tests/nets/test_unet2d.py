"""The U-Net in the details of UNet2DModel: its size, its settings, and what they change. Outputs: tests/exporting."""

from typing import Any

import pytest
import torch
from cases import config

from diffgen.core.errors import UsageError
from diffgen.core.registry import build
from diffgen.nets import MODELS, DataShape, UNet2D

SMALL = {**config("model", "unet2d"), "channels": 16, "channel_mult": [1, 2], "blocks": 1, "groups": 4, "dropout": 0.0}


def make(size: tuple[int, ...] = (3, 16, 8), **changes: Any) -> UNet2D:
    torch.manual_seed(0)
    network: UNet2D = build(MODELS, {**SMALL, **changes}, DataShape(size))
    return network.eval()


def test_it_is_the_network_of_ddpm() -> None:
    with torch.device("meta"):
        network = build(MODELS, config("model", "unet2d"), DataShape((3, 32, 32)))
    assert sum(p.numel() for p in network.parameters()) == 35_746_307


@pytest.mark.parametrize(
    "change", [{"padding": "both"}, {"frequency_shift": 0.0}, {"groups": 8}, {"eps": 0.1}, {"head_channels": 4}]
)
def test_every_detail_makes_a_difference_and_no_weight(change: dict[str, Any]) -> None:
    plain, other = make(attention_resolutions=[8, 16]), make(attention_resolutions=[8, 16], **change)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    other.load_state_dict(plain.state_dict())
    x, condition, label = torch.randn(2, 3, 16, 8), torch.tensor([3.0, 700.0]), torch.tensor([-1, -1])
    with torch.no_grad():
        assert (plain(x, condition, label) - other(x, condition, label)).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": 3}, "groups=3 must divide the 16 channels of each norm"),
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"eps": 0.0}, r"eps=0.0 must be in \(0, 1\)"),
        ({"frequency_shift": 2.0}, r"frequency_shift=2.0 must be in \[0, 1\]"),
        ({"head_channels": 5}, "head_channels=5 must divide the 16 channels at each attention"),
        ({"head_channels": 0}, "head_channels=0 must divide"),
        ({"padding": "before"}, r"choose one of \[after, both\]"),
        ({"channel_mult": [1, 1, 1, 1, 1]}, "16 must divide both sides of 3x16x8"),
    ],
)
def test_wrong_settings_are_told(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make(**change)
