"""The embedded data set: 1797 real handwritten digits, 8x8, that come with scikit-learn."""

import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from diffgen.data.base import DATASETS, Images


@DATASETS.register("digits")
def digits(*, split: Literal["train", "test", "all"]) -> Images:
    """UCI optical digits (Alpaydin & Kaynak 1998). Every fifth image, 0, 5, 10, ..., is held out as the test split."""
    table = _table()  # 64 grey levels from 0 to 16, and the digit
    pixels = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    held_out = np.arange(len(pixels)) % 5 == 0
    keep = {"train": ~held_out, "test": held_out, "all": np.ones_like(held_out)}[split]
    labels = torch.from_numpy(table[keep, 64].astype(np.int64))
    return Images(torch.from_numpy(pixels[keep])[:, None], labels, tuple("0123456789"))


def _table() -> np.ndarray:
    """The file inside scikit-learn, [1797, 65]; importing the library to read it would take a second."""
    for folder in sys.path:
        path = Path(folder, "sklearn", "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    data = load_digits()
    return np.column_stack([data.data, data.target])
