"""From images to features: the table of extractors.

A row is called as row(splits, cache, device, **settings) and gives an `Extractor`. Distances compare only between
features with the same hash. The FID of the literature is that of `inception`, and of nothing else.
"""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, UsageError, require
from diffgen.core.processes import main_first
from diffgen.core.registry import Table, build
from diffgen.data.images import to_float
from diffgen.data.splits import Splits
from diffgen.evaluation import turns
from diffgen.evaluation.classifier import Classifier, load_classifier, trained_here
from diffgen.evaluation.dinov2 import Dinov2, load_dinov2

EXTRACTORS = Table("extractor")

TURNED = 100_000
"""Turned images that a network of a large set is trained on; minutes on a CPU."""

THUMBNAIL = 32
"""Longest side at which pixels are compared."""

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION}"
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


class Extractor(Protocol):
    """What metrics ask of a feature network."""

    name: str
    """The row's name."""
    hash: str
    """SHA-256 of the weights, in hex."""
    dim: int
    """Size d of the features."""

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 [B, C, H, W] -> float32 features [B, d] and logits [B, k] or None, on the extractor's device."""


class Small:
    """The extractor around a `Classifier`: its pooled features and its logits."""

    def __init__(self, name: str, model: Classifier, checksum: str, facts: Mapping[str, object], device: torch.device):
        """Wrap a classifier; `facts` are what its file says of it."""
        self.name, self.hash, self.facts = name, checksum, facts
        self.model, self.device = model.to(device), device
        self.dim = model.head.in_features

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Extractor`.

        Raises:
            UsageError: The classifier was made for another number of channels.
        """
        channels = self.model.channels
        require(
            pixels.shape[1] == channels,
            f"extractor={self.name} takes images of {channels} channels, and these have {pixels.shape[1]}",
        )
        features = self.model.features(to_float(pixels.to(self.device)))
        return features, self.model.head(features)


class Turned:
    """The extractor around a classifier of turns: its features alone, since its classes are no classes of the data.

    Attributes:
        tells_pictures_apart: Whether images with near features are near copies; elsewhere they are.
    """

    name = "rotation"
    tells_pictures_apart = False

    def __init__(self, small: Small) -> None:
        """Wrap the classifier."""
        self.small, self.hash, self.dim, self.facts = small, small.hash, small.dim, small.facts

    def __call__(self, pixels: Tensor) -> tuple[Tensor, None]:
        """See `Extractor`; images need not be squares."""
        return self.small(pixels)[0], None


Epochs = int | Literal["auto"]


@EXTRACTORS.register("classifier")
def classifier(splits: Splits, cache: Path, device: torch.device, *, width: int, epochs: Epochs, seed: int) -> Small:
    """A classifier trained on the training split, once: it is kept in `cache` and read from there afterwards.

    It has seen the training images, so distances to these and to held-out images have different floors: give both.

    Args:
        splits: The data set; labelled.
        cache: A folder for this data set and no other.
        device: Where to train and run.
        width: Channels of the first layer; features have 4 times as many.
        epochs: Passes over the training images; `auto` is 15 for small sets, 2 for grey images, 10 for colour ones.
        seed: Of weights, order and shifts.

    Raises:
        UsageError: The data has no labels.
        CheckpointError: The file in the cache is damaged, or of other data.
    """
    require(
        splits.train.shape.num_classes > 1,
        f"name=classifier is trained on labels, and the data has {splits.train.shape.num_classes or 'no'} classes: "
        "choose extractor=rotation, pixels, inception, dinov2 or safetensors",
    )
    if epochs == "auto":
        epochs = 15 if len(splits.train) < 10_000 else 2 if splits.train.shape.channels == 1 else 10
    return Small("classifier", *trained_here("classifier", splits, cache, device, width, epochs, seed), device)


@EXTRACTORS.register("rotation")
def rotation(splits: Splits, cache: Path, device: torch.device, *, width: int, epochs: Epochs, seed: int) -> Turned:
    """A classifier of which way up a picture is, of four (Gidaris et al. 2018): it needs no labels.

    Made and kept like `classifier`, from the training images in all four turns; an epoch is a pass over all of them.

    Args:
        splits: The data set.
        cache: A folder for this data set and no other.
        device: Where to train and run.
        width: Channels of the first layer; features have 4 times as many.
        epochs: Passes over the turned images; `auto` is 15 for small sets, and fewer for others: 100,000 images or one.
        seed: Of weights, order and shifts.

    Raises:
        CheckpointError: The file in the cache is damaged, or of other data.
    """
    turned = turns.splits_of(splits)
    passes = epochs if isinstance(epochs, int) else min(15, max(1, TURNED // len(turned.train)))
    return Turned(Small("rotation", *trained_here("rotation", turned, cache, device, width, passes, seed), device))


@EXTRACTORS.register("auto")
def auto(splits: Splits, cache: Path, device: torch.device, *, width: int, epochs: Epochs, seed: int) -> Extractor:
    """`classifier` where the data has labels, else `rotation`; the arguments are theirs."""
    row: Callable[..., Extractor] = classifier if splits.train.shape.num_classes > 1 else rotation
    return row(splits, cache, device, width=width, epochs=epochs, seed=seed)


class PlainPixels:
    """The extractor without a network: pixels, averaged over squares until no side is longer than 32."""

    name = "pixels"
    hash = hashlib.sha256(b"pixels, averaged to sides of 32 at most").hexdigest()
    facts: Mapping[str, object] = {}

    def __init__(self, size: tuple[int, ...]) -> None:
        """Of images of a size [C, H, W]."""
        self.factor = math.ceil(max(size[1:]) / THUMBNAIL)
        self.dim = size[0] * math.prod(math.ceil(side / self.factor) for side in size[1:])

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, None]:
        """See `Extractor`."""
        return F.avg_pool2d(to_float(pixels), self.factor, ceil_mode=True).flatten(1), None


@EXTRACTORS.register("pixels")
def plain_pixels(splits: Splits, cache: Path, device: torch.device) -> PlainPixels:
    """The pixels themselves: nothing is trained. For near-copies and nearest pairs; distances see only means."""
    return PlainPixels(splits.train.shape.size)


@EXTRACTORS.register("safetensors")
def from_file(splits: Splits, cache: Path, device: torch.device, *, weights: str) -> Small:
    """A classifier from your own file, with the tensors that `classifier.Classifier` lists.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    return Small("safetensors", *load_classifier(Path(weights)), device)


def _check_colours(name: str, pixels: Tensor) -> None:
    channels = pixels.shape[1]
    require(channels in (1, 3), f"extractor={name} takes grey or RGB images, and these have {channels} channels")


class Tokens:
    """The extractor around DINOv2: its class tokens, and no logits."""

    name = "dinov2"

    def __init__(self, network: Dinov2, checksum: str, device: torch.device):
        """Wrap the network."""
        self.network, self.hash, self.device = network.to(device), checksum, device
        self.dim = network.layernorm.normalized_shape[0]

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, None]:
        """See `Extractor`; grey images are shown as RGB.

        Raises:
            UsageError: The images have neither 1 nor 3 channels.
        """
        _check_colours(self.name, pixels)
        return self.network(pixels.to(self.device)), None


@EXTRACTORS.register("dinov2")
def dinov2(splits: Splits, cache: Path, device: torch.device, *, weights: str) -> Tokens:
    """The class tokens of DINOv2, for FD-DINOv2 (Stein et al. 2023); the literature takes the large network.

    Args:
        splits: Not used.
        cache: Not used.
        device: Where to run.
        weights: Path of `model.safetensors` of facebook/dinov2-large.

    Raises:
        CheckpointError: The file is missing, damaged, or holds another network.
    """
    return Tokens(*load_dinov2(Path(weights)), device)


class Inception:
    """The Inception of 2015 that FID is defined by, as torch-fidelity ports it, resizing included."""

    name = "inception"
    dim = 2048

    def __init__(self, network: nn.Module, device: torch.device):
        """Wrap torch-fidelity's network, which gives features and unbiased logits."""
        self.network, self.device, self.hash = network.to(device), device, INCEPTION_SHA256

    @torch.inference_mode()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """See `Extractor`; grey images are shown as RGB.

        Raises:
            UsageError: The images have neither 1 nor 3 channels.
        """
        _check_colours(self.name, pixels)
        features, logits = self.network(pixels.to(self.device).expand(-1, 3, -1, -1))
        return features, logits


@EXTRACTORS.register("inception")
def inception(splits: Splits, cache: Path, device: torch.device, *, weights: str | None) -> Inception:
    """The 2048 pooled features of TensorFlow's Inception of 2015-12-05, and its logits (Heusel et al. 2017).

    The published weights (Apache-2.0, 96 MB) are a pickle: it is opened only when its SHA-256 is right, and then for
    tensors alone.

    Args:
        splits: Not used.
        cache: Beside it the weights are looked for, and downloaded to, if `weights` is null.
        device: Where to run.
        weights: Path of the published file.

    Raises:
        UsageError: torch-fidelity is not installed.
        CheckpointError: The weights are missing or other bytes.
    """
    path = Path(weights) if weights else cache.parent / INCEPTION  # for all data sets
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UsageError(_sentence(path, "is of no use without torch-fidelity")) from None
    if not weights and not path.exists():
        _download(path)
    _check_inception(path)
    with _tensors_only():
        network = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(path))
    return Inception(network, device)


def _download(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), INCEPTION_SHA256)
    except (OSError, RuntimeError, HTTPException) as error:
        raise CheckpointError(_sentence(path, f"is missing and cannot be downloaded ({error})")) from None


def _check_inception(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(_sentence(path, "is missing"))
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != INCEPTION_SHA256:
            raise CheckpointError(_sentence(path, "is not the published file and is not opened"))


def _sentence(path: Path, what: str) -> str:
    return (
        f"weights {path} {what}: extractor=inception needs pip install 'diffgen[eval]' and the file {INCEPTION_URL} "
        f"(SHA-256 {INCEPTION_SHA256}), put there or named with extractor.weights=PATH; extractor=classifier needs no "
        "download"
    )


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make torch read pickles for tensors alone, also where a library asks for more (PyTorch's own switch)."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def shared_extractor(config: Mapping[str, object], splits: Splits, cache: Path, accelerator: Accelerator) -> Extractor:
    """The extractor of a config; the main process trains or downloads it, the others find it done."""
    made: Extractor = main_first(accelerator, lambda: build(EXTRACTORS, config, splits, cache, accelerator.device))
    return made
