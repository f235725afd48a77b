"""What training looks like so far: samples of the averaged weights from fixed noise, so that pictures compare."""

from pathlib import Path

from diffgen.data import Source
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import columns, cycle_labels


def draw(sampling: Sampling, dataset: Source, n: int, path: Path) -> str | None:
    """Write what the data set shows of n samples; returns what there is to say about it.

    Raises:
        EnvironmentFault: The picture cannot be written.
        Interrupted: The run is to stop.
    """
    classes = sampling.trained.shape.num_classes
    return dataset.preview(sampling, cycle_labels(n, classes), columns(n, classes), path)
