"""What step k of a run is fed: which images, turned how, with which noise, times and labels.

All of it is a function of the seed, the step and the images seen, drawn for the global batch; each process takes its
slice. So one process and eight train on the same numbers, and nothing has to be saved to go on.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffgen.core.randomness import data_order, generator, uniforms
from diffgen.core.settings import TrainSettings
from diffgen.data import augment
from diffgen.data.images import to_float
from diffgen.diffusion.denoiser import NO_LABEL
from diffgen.diffusion.schedules import Schedule

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Arguments of the loss: x0, label, t, z and what augmentation did."""


class Feed:
    """One process's share of every batch."""

    def __init__(
        self,
        settings: TrainSettings,
        schedule: Schedule,
        time: Callable[[Tensor, Schedule], Tensor],
        share: slice,
    ) -> None:
        """Args: share: which images of the global batch are this process's."""
        self.settings, self.schedule, self.time, self.share = settings, schedule, time, share

    def entries(self, size: int, images: int) -> Iterator[Tensor]:
        """Entries of a data set of `size`, batch by batch, for a run that has seen so many images."""
        while True:
            order = data_order(self.settings.seed, size, images, self.settings.batch_size)
            yield order[self.share]
            images += self.settings.batch_size

    def batch(self, step: int, pixels: Tensor, label: Tensor) -> Batch:
        """The arguments of the loss for this process's images of a step, uint8 or float32 [B, C, H, W]."""
        settings, mine = self.settings, self.share
        n, device, shape = settings.batch_size, pixels.device, pixels.shape[1:]
        rng = generator(device, settings.seed, "step", step)
        u = uniforms(n, rng, stratified=settings.stratified_times)[mine]
        flip, drop = torch.rand(2, n, generator=rng, device=device)[:, mine]
        z = torch.randn(n, *shape, generator=rng, device=device)[mine]
        x0, told = self.images(pixels, flip), None
        if settings.augment:
            gates, values = augment.draw(n, rng)
            x0, told = augment.augment(x0, augment.Draws(gates[mine], values[mine]), settings.augment)
        label = torch.where(drop < settings.label_dropout, NO_LABEL, label)
        t = self.time(u, self.schedule).clamp(self.schedule.t_min, self.schedule.t_max)
        return x0, label, self.schedule.snap(t), z, told

    def images(self, pixels: Tensor, flip: Tensor) -> Tensor:
        """Images in [-1, 1], mirrored where flip [B] is below 1/2 if that is wanted: as bytes, a fourth of the work."""
        if self.settings.horizontal_flip:
            pixels = torch.where((flip < 0.5)[:, None, None, None], pixels.flip(-1), pixels)
        return to_float(pixels)


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Images start .. stop - 1 of the arguments of the loss."""
    x0, label, t, z, told = batch
    here = slice(start, stop)
    return x0[here], label[here], t[here], z[here], None if told is None else told[here]
