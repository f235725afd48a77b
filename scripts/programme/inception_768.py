"""The first part of FID's Inception of 2015, up to `Mixed_6e`: 768 features. Their Frechet distance is not FID.

diffgen-eval plugins=[scripts/programme/inception_768.py] extractor=inception_768 +extractor.weights=PATH metrics=fd

The file has the tensors `LAYER.weight` and `LAYER.bias` of torchvision's `inception_v3`, batch norm folded in.
"""

import hashlib
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import inception

from diffgen.data.images import to_float
from diffgen.data.splits import Splits
from diffgen.evaluation.extractors import EXTRACTORS

SIDE = 299


class Convolution(nn.Conv2d):
    """torchvision's BasicConv2d with its batch norm folded in."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W]."""
        return F.relu(super().forward(x))


def average(x: Tensor) -> Tensor:
    """The average pool of a block: padding counts in torchvision's, and did not in the network of 2015."""
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class A(inception.InceptionA):
    """Mixed_5b to 5d."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:3], self.branch_pool(average(x))]


class C(inception.InceptionC):
    """Mixed_6b to 6e."""

    def _forward(self, x: Tensor) -> list[Tensor]:
        return [*super()._forward(x)[:3], self.branch_pool(average(x))]


def network() -> nn.Sequential:
    """The layers by torchvision's names: [B, 3, 299, 299] -> [B, 768, 17, 17]."""
    layers: dict[str, nn.Module] = {
        "Conv2d_1a_3x3": Convolution(3, 32, 3, stride=2),
        "Conv2d_2a_3x3": Convolution(32, 32, 3),
        "Conv2d_2b_3x3": Convolution(32, 64, 3, padding=1),
        "maxpool1": nn.MaxPool2d(3, 2),
        "Conv2d_3b_1x1": Convolution(64, 80, 1),
        "Conv2d_4a_3x3": Convolution(80, 192, 3),
        "maxpool2": nn.MaxPool2d(3, 2),
        "Mixed_5b": A(192, 32, Convolution),
        "Mixed_5c": A(256, 64, Convolution),
        "Mixed_5d": A(288, 64, Convolution),
        "Mixed_6a": inception.InceptionB(288, Convolution),
        "Mixed_6b": C(768, 128, Convolution),
        "Mixed_6c": C(768, 160, Convolution),
        "Mixed_6d": C(768, 160, Convolution),
        "Mixed_6e": C(768, 192, Convolution),
    }
    return nn.Sequential(OrderedDict(layers))


class Inception768:
    """What metrics ask of an extractor."""

    name, dim = "inception_768", 768

    def __init__(self, weights: Path, device: torch.device) -> None:
        """Args: weights: the file; device: where to run."""
        self.device, self.hash = device, hashlib.sha256(weights.read_bytes()).hexdigest()
        self.network = network().eval().to(device)
        self.network.load_state_dict({name: x.float() for name, x in load_file(weights).items()})

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, None]:
        """uint8 [B, 3, H, W] -> features [B, 768], and no logits."""
        x = F.interpolate(to_float(pixels.to(self.device)), (SIDE, SIDE), mode="bilinear", align_corners=False)
        return self.network(x).mean((2, 3)), None


@EXTRACTORS.register("inception_768")
def inception_768(splits: Splits, cache: Path, device: torch.device, *, weights: str) -> Inception768:
    """See the module."""
    return Inception768(Path(weights), device)
