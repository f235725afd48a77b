"""All metrics of a set of images, from one pass of features: what is measured, against what, and its floor."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.core.devices import with_float64
from diffgen.data import Images
from diffgen.data.images import grid, save_png
from diffgen.data.splits import Splits
from diffgen.evaluation import metrics
from diffgen.evaluation.classifier import class_agreement, classification_accuracy_score
from diffgen.evaluation.extractors import PlainPixels
from diffgen.evaluation.reference import Reference
from diffgen.evaluation.samples import Drawn
from diffgen.evaluation.statistics import Moments, frechet_distance

NEIGHBOURS = 10_000
"""Images of each kind that are compared pair by pair, as Naeem et al. 2020 do."""

SUBSETS, SUBSET = 50, 1000
"""Of the kernel distance; half of the images where there are fewer."""

PAIRS = 20
"""Pairs in the picture of the images that are nearest to training images."""


@dataclass
class Judged(Drawn):
    """Images to be judged, and what is compared with them.

    Attributes:
        reference: The data set, with its features.
        out: Folder for pictures.
        seed: Of random subsets.
    """

    reference: Reference
    out: Path
    seed: int

    @classmethod
    def of(cls, drawn: Drawn, reference: Reference, out: Path, seed: int, device: torch.device) -> "Judged":
        """To be judged on a device; on the CPU if that has no float64."""
        return cls(**vars(drawn.on(with_float64(device))), reference=reference, out=out, seed=seed)

    @property
    def splits(self) -> Splits:
        """The data set."""
        return self.reference.splits

    @cached_property
    def train(self) -> Tensor:
        """Features of the training split, where those of the images are."""
        return self.reference.train.to(self.features.device)

    @cached_property
    def test(self) -> Tensor | None:
        """Features of as many held-out images, where there are some: floors depend on the number of images."""
        test = self.reference.test
        return None if test is None else test[: len(self.features)].to(self.features.device)

    def in_pixels(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """The images, the training split and as many held-out images by their pixels, [n, d] where features are."""
        device, plain = self.features.device, PlainPixels(self.splits.train.shape.size)
        known = Reference(self.splits, plain, self.reference.cache)
        images = torch.cat([plain(some)[0] for some in self.pixels.split(256)])
        test = None if known.test is None else known.test[: len(images)].to(device)
        return images.to(device), known.train.to(device), test


Row = dict[str, Any]


def frechet(judged: Judged) -> Row:
    """Distance of Gaussians, with its floors; where there is an autoencoder one is of what it makes of real images."""
    found = distances(judged.features, judged.train, judged.test, judged.reference.reconstructed(len(judged.features)))
    return {f"fd{key}": value for key, value in found.items()}


def distances(fake: Tensor, train: Tensor, test: Tensor | None, back: Tensor | None = None) -> dict[str, float]:
    """Frechet distance to training images, and its floors, by what is added to its name; features [n, d] each.

    Args:
        fake: Of the images that are judged.
        train: Of the training images; one half of them by the other is a floor.
        test: Of as many held-out images.
        back: Of as many real images through an autoencoder.
    """
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    halves = train[order.to(train.device)].tensor_split(2)
    real = Moments.of(train).gaussian()
    found = {"": frechet_distance(real, Moments.of(fake).gaussian())}
    found["_floor_halves"] = frechet_distance(*(Moments.of(half).gaussian() for half in halves))
    for floor, features in (("test", test), ("reconstruction", back)):
        if features is not None:
            found[f"_floor_{floor}"] = frechet_distance(real, Moments.of(features.to(train.device)).gaussian())
    return found


def kernel(judged: Judged) -> Row:
    """Squared MMD with its standard error, and its floor."""

    def distance(fake: Tensor) -> tuple[float, float]:
        size = min(SUBSET, len(fake) // 2, len(judged.train) // 2)
        return metrics.kernel_distance(judged.train, fake, subsets=SUBSETS, size=size, seed=judged.seed)

    row: Row = dict(zip(("kd", "kd_error"), distance(judged.features), strict=True))
    if judged.test is not None:
        row["kd_floor_test"] = distance(judged.test)[0]
    return row


def score(judged: Judged) -> Row:
    """Inception score, by the extractor's own classes."""
    if judged.logits is None:
        return {}
    splits = 10 if len(judged.logits) >= 1000 else 1
    mean, std = metrics.inception_score(judged.logits, splits=splits, seed=judged.seed)
    return {"is": mean, "is_std": std}


def neighbourhoods(judged: Judged, *, robust: bool) -> Row:
    """Precision and recall, or density and coverage, with the floor of held-out images."""
    names, k = (("density", "coverage"), 5) if robust else (("precision", "recall"), 3)
    if len(judged.train) <= k:
        return {}  # a ball needs k other images

    def both(fake: Tensor) -> tuple[float, float]:
        real, fake = judged.train[:NEIGHBOURS], fake[:NEIGHBOURS]
        return metrics.density_coverage(real, fake, k=k) if robust else metrics.precision_recall(real, fake, k=k)

    row: Row = dict(zip(names, both(judged.features), strict=True))
    if judged.test is not None:
        row |= {f"{name}_floor_test": value for name, value in zip(names, both(judged.test), strict=True)}
    return row


def agreement(judged: Judged) -> Row:
    """Share of images that the classifier takes for the class that was asked for, over all and by class."""
    asked = judged.labels >= 0
    if judged.logits is None or not asked.any() or judged.logits.shape[1] != judged.splits.train.shape.num_classes:
        return {}  # also where the logits are of other classes, as Inception's are
    by_class = class_agreement(judged.logits[asked], judged.labels[asked])
    return {"agreement": float(by_class.nanmean()), "agreement_by_class": [round(v, 4) for v in by_class.tolist()]}


def copies(judged: Judged) -> Row:
    """Share of images that are nearer to one training image than a third of the way to the next.

    In features, or in pixels where features are of what pictures show and not of which picture it is. The pairs that
    are nearest are drawn in `pairs.png`, each image above its training image.
    """
    if getattr(judged.reference.extractor, "tells_pictures_apart", True):
        where, images, train, test = "features", judged.features, judged.train, judged.test
    else:
        where, (images, train, test) = "pixels", judged.in_pixels()
    ratio = metrics.memorisation_ratio(images, train)
    row: Row = {"copies": float((ratio < metrics.COPY).double().mean()), "copies_in": where}
    if test is not None:
        row["copies_floor_test"] = float((metrics.memorisation_ratio(test, train) < metrics.COPY).double().mean())
    nearest = ratio.argsort()[:PAIRS]
    _, entries = metrics.nearest_neighbours(images[nearest], train, k=1)
    originals, _ = next(judged.splits.train.batches(iter([entries[:, 0].cpu()]), torch.device("cpu")))
    pairs = torch.cat([judged.pixels[nearest.cpu()], originals])
    save_png(grid(pairs, columns=len(nearest)), judged.out / "pairs.png")
    return row


def accuracy_score(judged: Judged) -> Row:
    """Accuracy on held-out images of a classifier trained on the samples, beside one trained on as many real ones."""
    test = judged.splits.test
    if not bool((judged.labels >= 0).all()) or test is None:
        return {}
    recipe = {"width": 32, "epochs": max(2, math.ceil(20_000 / len(judged.pixels))), "seed": judged.seed}
    classes, device = judged.splits.train.classes, judged.features.device
    chosen = torch.randperm(len(judged.splits.train), generator=torch.Generator().manual_seed(0))[: len(judged.pixels)]
    real, labels = next(judged.splits.train.batches(iter([chosen]), torch.device("cpu")))
    row: Row = {}
    for name, pixels, whose in (("cas", judged.pixels, judged.labels.cpu()), ("cas_real", real, labels)):
        samples = Images(pixels, whose, classes)
        row[name] = classification_accuracy_score(samples, test, **recipe, device=device)
    return row


MEASURES: dict[str, Callable[[Judged], Row]] = {
    "fd": frechet,
    "kd": kernel,
    "is": score,
    "pr": lambda judged: neighbourhoods(judged, robust=False),
    "dc": lambda judged: neighbourhoods(judged, robust=True),
    "agreement": agreement,
    "copies": copies,
    "cas": accuracy_score,
}
"""Metrics of images; those of a model (`bits`, `elbo`, ...) need none, and are in `evaluation.of_model`."""


def measured(wanted: Iterable[str], judged: Judged) -> Row:
    """Those of the wanted metrics that are of images."""
    floors = judged.reference.floors
    row: Row = {} if floors is None else {"floor_images": min(len(judged.features), len(floors))}
    found = {name: MEASURES[name](judged) for name in wanted if name in MEASURES}
    for figures in found.values():
        row |= figures
    left = [name for name, figures in found.items() if not figures]
    return row | ({"left_out": left} if left else {})
