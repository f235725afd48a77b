"""The vision transformer of DINOv2 (Oquab et al. 2024), in evaluation: images to class tokens.

Parameters have the names that they have in the safetensors files on Hugging Face, so that a file loads as it is. The
published ones saw images of 518 x 518; at 224 x 224 their position embeddings are resized as the authors' code does.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import digest

SIDE, PATCH = 224, 14
HEAD = 64  # channels of an attention head, in every size of the network
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
EPSILON = 1e-6


class Projections(nn.Module):
    """Queries, keys and values."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width] -> attended, [B, N, width]."""
        heads = (part(x).unflatten(2, (-1, HEAD)).transpose(1, 2) for part in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


class Scale(nn.Module):
    """A learned gain of each channel (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lambda1 = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width]."""
        return x * self.lambda1


class Block(nn.Module):
    """Attention and a small network at each token, each with a norm before it and a gain after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, EPSILON), nn.LayerNorm(width, EPSILON)
        output = nn.ModuleDict({"dense": nn.Linear(width, width)})
        self.attention = nn.ModuleDict({"attention": Projections(width), "output": output})
        self.layer_scale1, self.layer_scale2 = Scale(width), Scale(width)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, width]."""
        output: nn.Module = self.attention["output"]["dense"]  # type: ignore[index]
        x = x + self.layer_scale1(output(self.attention["attention"](self.norm1(x))))
        return x + self.layer_scale2(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class Embeddings(nn.Module):
    """Patches as tokens, after one for the class."""

    def __init__(self, width: int, positions: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = nn.Parameter(torch.zeros(1, positions, width))
        self.patch_embeddings = nn.ModuleDict({"projection": nn.Conv2d(3, width, PATCH, PATCH)})

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + H W / 196, width]."""
        patches = self.patch_embeddings["projection"](x)
        positions = resized(self.position_embeddings, patches.shape[2])
        tokens = patches.flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], dim=1) + positions


def resized(positions: Tensor, side: int) -> Tensor:
    """Position embeddings [1, 1 + n n, width] for side x side patches.

    The scale is (side + 0.1) / n, as in the authors' code, which the published distances were computed with.
    """
    n = round((positions.shape[1] - 1) ** 0.5)
    if n == side:
        return positions
    grid = positions[:, 1:].unflatten(1, (n, n)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / n
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class Dinov2(nn.Module):
    """The network without its heads."""

    def __init__(self, width: int, depth: int, positions: int) -> None:
        """Args: width: of a token; depth: blocks; positions: embeddings of positions, that of the class included."""
        super().__init__()
        self.embeddings = Embeddings(width, positions)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(Block(width) for _ in range(depth))})
        self.layernorm = nn.LayerNorm(width, EPSILON)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 [B, 1 or 3, H, W] -> class tokens [B, width]; resized as Karras et al. 2024 do for FD-DINOv2."""
        x = pixels.expand(-1, 3, -1, -1).float()
        x = F.interpolate(x, size=(SIDE, SIDE), mode="bicubic", antialias=True) / 255
        x = (x - x.new_tensor(MEAN).view(3, 1, 1)) / x.new_tensor(STD).view(3, 1, 1)
        x = self.embeddings(x)
        for block in self.encoder["layer"]:  # type: ignore[attr-defined]
            x = block(x)
        return self.layernorm(x[:, 0])


def _sound(*shape: int) -> bool:
    """Whether position embeddings are [1, 1 + n n, whole heads]."""
    return (
        len(shape) == 3
        and 1 < shape[1] <= 10_000
        and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1
        and shape[2] > 0
        and shape[2] % HEAD == 0
    )


def load_dinov2(path: Path) -> tuple[Dinov2, str]:
    """Read `model.safetensors` of dinov2-small, -base or -large.

    Returns:
        The network in evaluation mode on the CPU, and the SHA-256 of its weights.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    try:
        with safe_open(path, "pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}): extractor=dinov2 needs model.safetensors of facebook/dinov2-large from "
            "Hugging Face, named with extractor.weights=PATH; extractor=classifier needs no download"
        ) from None
    weights.pop("embeddings.mask_token", None)  # of its training
    positions = weights.get("embeddings.position_embeddings")
    if positions is None or not _sound(*positions.shape):
        raise CheckpointError(f"{path} has no embeddings.position_embeddings of DINOv2's shape: it is another network")
    depth = sum(name.endswith(".norm1.weight") for name in weights)
    with torch.device("meta"):
        network = Dinov2(positions.shape[2], depth, positions.shape[1])
    check_fit(network, weights, path)
    checksum = digest(weights, "")
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False), checksum
