"""A data set of noise with the shape of CIFAR-10, for figures of speed where the pictures are not at hand.

diffgen-train plugins=[scripts/programme/random_images.py] dataset=random_images experiment=cifar10_fast
"""

from typing import Literal

import torch

from diffgen.data import DATASETS
from diffgen.data.base import Images

CLASSES = tuple("0123456789")
CONFIG = {"name": "random_images", "split": "train", "images": 50_000}


@DATASETS.register("random_images")
def random_images(*, split: Literal["train", "test"] = "train", images: int = 50_000) -> Images:
    """Independent uniform bytes [images, 3, 32, 32], with each class in turn; the same ones each time."""
    rng = torch.Generator().manual_seed(["train", "test"].index(split))
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=rng)
    return Images(pixels, torch.arange(images) % len(CLASSES), CLASSES)
