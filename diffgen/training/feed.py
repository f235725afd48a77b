"""What step k of a run is fed: which examples, turned how, with which noise, times and labels.

All of it is a function of the seed, the step and the images seen, drawn for the global batch; each process takes its
slice. So one process and eight train on the same numbers, and nothing has to be saved to go on.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from diffgen.core.randomness import data_order, generator, uniforms
from diffgen.core.settings import TrainSettings
from diffgen.data.base import Source, Stored
from diffgen.diffusion.denoiser import NO_LABEL
from diffgen.diffusion.knowing import known_frames
from diffgen.diffusion.schedules import Schedule
from diffgen.objectives import Batch, Objective

TimeDensity = Callable[[Tensor, Schedule], Tensor]
"""(u in (0, 1) [B], schedule) -> t [B]: a row of `diffgen.diffusion.times.TIMES`."""


UNNAMED = 0.8
"""Share of the clips with known frames that have no label: a clip that somebody brings has none."""

NOISIER = 2
"""The time of a clip with known frames is the latest of so many draws: where noise hides what there is to see, they are
all there is to go by, and where there is little of it nothing asks for them."""


class Feed:
    """One process's share of every batch."""

    def __init__(
        self,
        settings: TrainSettings,
        source: Source,
        schedule: Schedule,
        time_density: TimeDensity,
        objective: Objective,
        noise_size: tuple[int, ...],
        share: slice,
    ) -> None:
        """Args: noise_size: of an example's noise; share: which examples of the global batch are this process's."""
        self.noise_size = noise_size
        self.settings, self.source, self.share = settings, source, share
        self.schedule, self.time_density, self.objective = schedule, time_density, objective

    def entries(self, size: int, images: int) -> Iterator[Tensor]:
        """Entries of a data set of `size`, batch by batch, for a run that has seen so many images."""
        while True:
            order = data_order(self.settings.seed, size, images, self.settings.batch_size)
            yield order[self.share]
            images += self.settings.batch_size

    def batch(self, step: int, stored: Stored) -> Batch:
        """What this process's examples of a step are learned from."""
        settings, mine, device = self.settings, self.share, stored.examples.device
        n = settings.batch_size
        rng = generator(device, settings.seed, "step", step)
        u = uniforms(n, rng, stratified=settings.stratified_times)[mine]
        flip, drop = torch.rand(2, n, generator=rng, device=device)[:, mine]
        x0, done = self.source.x0(stored.examples, flip < 0.5 if settings.horizontal_flip else None), None
        z = self.objective.noise(torch.empty(n, *self.noise_size, device=device), rng)[mine]
        own = self.source.z(stored.examples)
        z = z if own is None else own
        if settings.augment:
            draws = tuple(values[mine] for values in self.source.kind.draws(n, rng))
            x0, done = self.source.kind.augment(x0, draws, settings.augment)
        coin = torch.rand(n, generator=rng, device=device)[mine]  # these draws come last: they were not always there
        known = self._known(x0, rng)
        dropout: float | Tensor = settings.label_dropout
        if known is not None:
            told = known.flatten(1).any(1)
            u = torch.where(told, u ** (1 / NOISIER), u)  # the largest of so many, by its quantile
            dropout = torch.where(told, max(settings.label_dropout, UNNAMED), settings.label_dropout)
        t = self.time_density(u, self.schedule).clamp(self.schedule.t_min, self.schedule.t_max)
        label = torch.where(drop < dropout, NO_LABEL, stored.labels)
        return Batch(x0, label, self.objective.times(t, self.schedule), z, done, coin, known)

    def _known(self, x0: Tensor, rng: torch.Generator) -> Tensor | None:
        """Which frames of clips [B, C, T, H, W] the network is told of, bool [B, 1, T, 1, 1]."""
        if not self.settings.known_frames:
            return None
        known = known_frames(self.settings.batch_size, x0.shape[2], self.settings.known_frames, rng)[self.share]
        return known[:, None, :, None, None]
