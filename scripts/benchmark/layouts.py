"""The networks that are compared, in each library's own words, and pictures to train them on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diffgen.build import make_model
from diffgen.cli import configs

Config = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """One size of network.

    Attributes:
        name: What the tables call it.
        shape: Channels, height and width of the pictures.
        batch: Images a step, on a CPU and on a GPU.
        ours: Overrides of diffgen's config.
        diffusers: Arguments of UNet2DModel; None where it cannot be said there.
        lucidrains: Arguments of denoising_diffusion_pytorch.Unet with about as many parameters.
    """

    name: str
    shape: tuple[int, int, int]
    batch: tuple[int, int]
    ours: list[str]
    diffusers: Config | None = None
    lucidrains: Config | None = None


def _blocks(levels: str) -> Config:
    """Block types of UNet2DModel, from a letter a level: A attends, D does not."""
    down = {"A": "AttnDownBlock2D", "D": "DownBlock2D"}
    up = {"A": "AttnUpBlock2D", "D": "UpBlock2D"}
    return {
        "down_block_types": tuple(down[letter] for letter in levels),
        "up_block_types": tuple(up[letter] for letter in reversed(levels)),
    }


MNIST = Layout(
    "MNIST, 1.6 M",
    (1, 28, 28),
    (16, 512),
    ["model=unet_small", "model.patch=1", "model.channel_mult=[1,2,2]", "model.blocks=2", "model.heads=8"],
    {"block_out_channels": (32, 64, 64), "layers_per_block": 2, **_blocks("DDA")},
    {"dim": 24, "dim_mults": (1, 2, 4), "flash_attn": True},
)
DDPM = Layout(
    "DDPM CIFAR-10, 35.7 M",
    (3, 32, 32),
    (8, 128),
    ["model=unet_base"],
    {  # google/ddpm-cifar10-32
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "dropout": 0.1,
        **_blocks("DADD"),
    },
    {"dim": 64, "dim_mults": (1, 2, 4, 8), "flash_attn": True, "dropout": 0.1},
)
EDM = Layout("EDM CIFAR-10, 55.7 M", (3, 32, 32), (2, 128), ["model=unet_large"])
TINY = Layout(
    "a network for tests",
    (1, 8, 8),
    (2, 2),
    ["model=unet_tiny", "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]"],
    {"block_out_channels": (8,), "layers_per_block": 1, "norm_num_groups": 4, **_blocks("D")},
)

LAYOUTS = {layout.name: layout for layout in (MNIST, DDPM, EDM, TINY)}

PLAIN = [
    "dataset=image_folder",
    "method=ddpm",
    "optimizer=adamw",
    "conditional=false",
    "train.label_dropout=0",
    "train.log_every=1000000000",
]
"""Unconditional eps-prediction, as the peers train."""


def compose(*overrides: str) -> Config:
    """The config of `diffgen-train OVERRIDES` as plain data."""
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        config: Any = OmegaConf.to_container(hydra.compose("train", list(overrides)), resolve=True)
    return dict(config)


def with_data(config: Config, shape: tuple[int, int, int]) -> Config:
    """A config with the unlabelled data that the trainer would fill in."""
    return {
        **config,
        "data": {
            "kind": {"name": "pixels", "background": "white", "range": None},
            "size": list(shape),
            "num_classes": 0,
        },
    }


def our_network(layout: Layout) -> nn.Module:
    """diffgen's U-Net."""
    return make_model(with_data(compose(*PLAIN, *layout.ours), layout.shape))


def diffusers_network(layout: Layout) -> nn.Module:
    """diffusers' U-Net.

    Raises:
        ImportError: diffusers is not installed.
    """
    from diffusers import UNet2DModel

    channels, size, _ = layout.shape
    assert layout.diffusers is not None
    return UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **layout.diffusers)


def lucidrains_network(layout: Layout) -> nn.Module:
    """denoising_diffusion_pytorch's U-Net.

    Raises:
        ImportError: It is not installed.
    """
    from denoising_diffusion_pytorch import Unet

    assert layout.lucidrains is not None
    return Unet(channels=layout.shape[0], **layout.lucidrains)


@dataclass
class Costs:
    """Parameters and arithmetic of the networks, by library; each is counted once."""

    known: dict[tuple[str, str], Config] = field(default_factory=dict)

    def of(self, library: str, layout: Layout) -> Config:
        """`parameters`, and `gflop` of forward and backward of one image: three times the forward pass."""
        build: dict[str, Callable[[Layout], nn.Module]] = {
            "diffgen": our_network,
            "diffusers": diffusers_network,
            "lucidrains": lucidrains_network,
        }
        key = library, layout.name
        if key not in self.known:
            self.known[key] = cost(build[library], layout)
        return self.known[key]


def cost(build: Callable[[Layout], nn.Module], layout: Layout) -> Config:
    """See `Costs.of`."""
    return counted(lambda: build(layout), layout.shape, labelled=build is our_network)


def counted(build: Callable[[], nn.Module], shape: tuple[int, int, int], *, labelled: bool = True) -> Config:
    """Parameters and GFLOP of a network; two operations to a multiply-add, three times the forward pass of an image.

    Args:
        build: Makes the network.
        shape: Of an image.
        labelled: Whether it takes a label beside image and time.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = build()
        inputs = [torch.zeros(1, *shape), torch.zeros(1)]
        network(*inputs, *([torch.zeros(1, dtype=torch.long)] if labelled else []))
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "gflop": 3 * counter.get_total_flops() / 1e9}


def pictures(folder: Path, shape: tuple[int, int, int], count: int) -> Path:
    """PNG files of noise, in the one class folder that torchvision's ImageFolder asks for."""
    rng = np.random.default_rng(0)
    channels, height, width = shape
    (folder / "class").mkdir(parents=True)
    for number in range(count):
        pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        image.save(folder / "class" / f"{number:05}.png")
    return folder
