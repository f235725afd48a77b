"""A data set of your own: bright squares on black, with their side as label.

diffgen-train plugins=[docs/examples/dataset.py] dataset=squares
"""

import torch

from diffgen.data.base import DATASETS, Images


@DATASETS.register("squares")
def squares(*, n: int = 1000, size: int = 8, seed: int = 0) -> Images:
    """uint8 [n, 1, size, size], labels int64 [n], and the names of the labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=rng)
    corners = torch.randint(size - 3, (n, 2), generator=rng)
    pixels = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    for image, label, (top, left) in zip(pixels, labels.tolist(), corners.tolist(), strict=True):
        image[0, top : top + 2 + label, left : left + 2 + label] = 255
    return Images(pixels, labels, ("small", "large"))
