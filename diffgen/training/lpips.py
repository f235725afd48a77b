"""LPIPS, the distance of two pictures as VGG16, a classifier of photographs, sees them (Zhang et al. 2018, eq. 1)."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, require
from diffgen.nets.base import DataShape
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import check_finite, load_tensors, read_any_header

BLOCKS: tuple[tuple[int, ...], ...] = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of the convolutions of VGG16 (Simonyan & Zisserman 2015); their last outputs are compared, then pooled."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's pictures in [-1, 1], rounded as in the authors' code."""

TINY = 1e-8
"""Beside a squared length, whose root has a slope then; as in the later versions of the authors' code."""

SMALLEST = 2 ** (len(BLOCKS) - 1)
"""Side of a picture of which the last block sees one site."""


class Lpips(nn.Module):
    """The distance; its weights have the names of torchvision's VGG16 (`features`) and of the authors' file (`lin`)."""

    def __init__(self) -> None:
        """Build the network, with arbitrary weights."""
        super().__init__()
        layers: list[nn.Module] = []
        ends, width = [], 3
        for block in BLOCKS:
            if layers:
                layers.append(nn.MaxPool2d(2))
            for out in block:
                layers += [nn.Conv2d(width, out, 3, padding=1), nn.ReLU()]
                width = out
            ends.append(len(layers) - 1)
        self.features, self.ends = nn.Sequential(*layers), ends
        for number, block in enumerate(BLOCKS):
            line = nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(block[-1], 1, 1, bias=False)})})
            self.add_module(f"lin{number}", line)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Pictures [B, 1 or 3, H, W] in [-1, 1], twice -> their distances [B]."""
        found = torch.zeros(len(a), device=a.device)
        for number, (one, other) in enumerate(zip(self._seen(a), self._seen(b), strict=True)):
            weights = self.get_parameter(f"lin{number}.model.1.weight")
            found = found + F.conv2d((one - other).square(), weights).mean((1, 2, 3))
        return found

    def _seen(self, x: Tensor) -> list[Tensor]:
        """What the blocks say, each site of length 1."""
        h = x.expand(-1, 3, -1, -1)
        h = (h - _by_colour(h, SHIFT)) / _by_colour(h, SCALE)
        seen = []
        for number, layer in enumerate(self.features):
            h = layer(h)
            if number in self.ends:
                seen.append(h / (h.square().sum(1, keepdim=True) + TINY).sqrt())
        return seen


def _by_colour(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """[3, 1, 1], written where it is used: a copy to a GPU would be waited for in each step."""
    return torch.stack([like.new_full((1, 1), value) for value in values])


def load_lpips(path: Path, key: str, shape: DataShape) -> Lpips:
    """Read the weights of a file, for pictures of a shape.

    Args:
        path: Of a .safetensors file, as `scripts/lpips_weights.py` makes it.
        key: The setting that it stands at, for sentences.
        shape: Of the pictures.

    Raises:
        UsageError: The pictures are too small, or have other channels.
        CheckpointError: The file is missing, damaged, or of another network.
    """
    given = f"{key}={str(path)!r}"
    small = min(shape.size[1:], default=0) < SMALLEST
    require(shape.channels in (1, 3), f"{given} is for grey or RGB pictures, and these have {shape.channels} channels")
    require(not small, f"{given} is for pictures from {SMALLEST}x{SMALLEST} on, and the data is {shape}")
    try:
        read_any_header(path)
        with torch.device("meta"):
            network = Lpips()
        own = network.state_dict()  # a file of all VGG16 holds a classifier, too
        weights = {name: weight for name, weight in load_tensors(path).items() if name in own}
        check_fit(network, weights, path)
        check_finite(weights, path)
    except OSError as error:
        raise CheckpointError(
            f"{given} cannot be read ({error.strerror}); scripts/lpips_weights.py makes one"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{key}: {error}; scripts/lpips_weights.py makes such a file") from None
    network.load_state_dict(weights, assign=True)
    return network.eval().requires_grad_(False)
