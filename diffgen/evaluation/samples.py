"""The images to be judged, drawn or read, with what the extractor says of them."""

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core import processes
from diffgen.core.processes import share_of
from diffgen.data import Source
from diffgen.data.base import in_order
from diffgen.evaluation.extractors import Extractor
from diffgen.sampling.drawing import Sampling


@dataclass
class Drawn:
    """Images and what the extractor says of them: uint8 [n, C, H, W], [n], [n, d], [n, k] or None.

    All of it is on the CPU, where images are gathered; `on` takes it to where figures are computed.
    """

    pixels: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor | None

    @classmethod
    def joined(cls, parts: list["Drawn"]) -> "Drawn":
        """Several sets as one."""
        columns = [[getattr(part, field.name) for part in parts] for field in fields(cls)]
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]

    def on(self, device: torch.device) -> "Drawn":
        """The same with all but the pixels on a device: they are only looked at."""
        logits = None if self.logits is None else self.logits.to(device)
        return Drawn(self.pixels, self.labels.to(device), self.features.to(device), logits)


def draw_share(
    sampling: Sampling,
    labels: list[int],
    extractor: Extractor,
    accelerator: Accelerator,
    batch: int,
    progress: Callable[[int], None],
) -> Drawn:
    """This process's share of images 0 .. n - 1, see `share_of`.

    Args:
        sampling: How to draw.
        labels: Of all n images.
        extractor: Gives the features, in float32: they are compared with others' figures.
        accelerator: Says which share, and the precision of the network.
        batch: Images at once.
        progress: Hears how many are done, by all processes.
    """
    n, mine = len(labels), share_of(len(labels), accelerator)
    whose = torch.tensor([labels[i] for i in mine])
    parts: list[Drawn] = []
    done = 0
    with accelerator.autocast():
        for pixels in sampling.examples(mine, whose.tolist(), batch):
            with torch.autocast(accelerator.device.type, enabled=False):
                parts.append(_judged(pixels, whose[done : done + len(pixels)], extractor))
            done += len(pixels)
            progress(min(done * accelerator.num_processes, n))
    return Drawn.joined(parts)


def gathered(share: Drawn, accelerator: Accelerator, n: int) -> Drawn:
    """All processes' shares, on each."""
    columns = [getattr(share, field.name) for field in fields(Drawn)]
    return Drawn(*(None if column is None else processes.gathered(column, n, accelerator) for column in columns))  # type: ignore[arg-type]


def featured(pictures: Source, extractor: Extractor, n: int, progress: Callable[[int], None]) -> Drawn:
    """The first n pictures with their features; `progress` hears how many are done."""
    parts: list[Drawn] = []
    for pixels, labels in in_order(pictures, n, torch.device("cpu")):
        parts.append(_judged(pixels, labels, extractor))
        progress(sum(len(part.pixels) for part in parts))
    return Drawn.joined(parts)


def _judged(pixels: Tensor, labels: Tensor, extractor: Extractor) -> Drawn:
    features, logits = extractor(pixels)
    return Drawn(pixels, labels, features.cpu(), None if logits is None else logits.cpu())
