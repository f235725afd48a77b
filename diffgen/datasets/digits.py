"""The embedded data set: 1797 real handwritten digits, 8x8, that come with scikit-learn."""

from typing import Literal

import numpy as np
import torch

from diffgen.datasets.base import DATASETS, Images


@DATASETS.register("digits")
def digits(*, split: Literal["train", "test", "all"]) -> Images:
    """UCI optical digits (Alpaydin & Kaynak 1998). Every fifth image, 0, 5, 10, ..., is held out as the test split."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = np.rint(data.images * (255 / 16)).astype(np.uint8)  # grey levels are 0 .. 16
    held_out = np.arange(len(pixels)) % 5 == 0
    keep = {"train": ~held_out, "test": held_out, "all": np.ones_like(held_out)}[split]
    labels = torch.from_numpy(data.target[keep].astype(np.int64))
    return Images(torch.from_numpy(pixels[keep])[:, None], labels, tuple("0123456789"))
