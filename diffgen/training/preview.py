"""What training looks like so far: images from the averaged weights and fixed noise, so that pictures compare."""

from pathlib import Path

import torch

from diffgen.data import ImageSource, Vectors
from diffgen.data.images import grid, save_png
from diffgen.sampling.drawing import Sampling, columns, cycle_labels

BATCH = 64


def draw(sampling: Sampling, dataset: ImageSource, n: int, num_classes: int, path: Path) -> str | None:
    """Write a grid of n images, or the data set's own report; returns what there is to say about it.

    Raises:
        EnvironmentFault: The picture cannot be written.
        Interrupted: The run is to stop.
    """
    labels = cycle_labels(n, num_classes)
    if isinstance(dataset, Vectors):
        return dataset.report(sampling, labels, path)
    pixels = torch.cat(list(sampling.pixels(dataset.shape.size, list(range(n)), labels, BATCH)))
    save_png(grid(pixels, columns=columns(n, num_classes)), path)
    return None
