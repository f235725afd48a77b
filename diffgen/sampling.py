"""Images number i, j, ... of a sampling run, the same whatever the batch size, the number of processes or the device."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffgen.build import sampler_settings
from diffgen.denoiser import Denoiser
from diffgen.images import to_uint8
from diffgen.randomness import image_noise
from diffgen.registry import bind
from diffgen.samplers import SAMPLERS, time_grid


@dataclass
class Sampling:
    """How to sample: a denoiser, a sampler with its grid, a seed and a guidance scale."""

    denoiser: Denoiser
    sampler: Callable[..., Tensor]
    ts: Tensor
    clip: bool
    guidance: float
    seed: int
    device: torch.device
    nfe: int = 0
    """Network evaluations of each image in the latest `draw`; guidance evaluates twice at once and counts as one."""

    @classmethod
    def from_config(
        cls, denoiser: Denoiser, sampler: Mapping[str, Any], *, guidance: float, seed: int, device: torch.device
    ) -> "Sampling":
        """Look up the sampler and lay out its time grid.

        Raises:
            UsageError: The sampler's config is wrong.
        """
        own, grid, clip = sampler_settings(sampler)
        clip = amplifies_errors(denoiser) if clip == "auto" else clip
        return cls(denoiser, bind(SAMPLERS, own), time_grid(denoiser.schedule, **grid), clip, guidance, seed, device)

    @torch.inference_mode()
    def draw(self, shape: tuple[int, ...], indices: list[int], labels: list[int]) -> Tensor:
        """Images `indices` with the given labels as float [B, C, H, W], about [-1, 1].

        Image i depends on (seed, i) and its label alone (with sampler=ode, to within its tolerance). The state is float64 (float32 on MPS, which has no other):
        steps are small differences of large numbers (Karras et al. 2022, app. D).
        """
        dtype = torch.float32 if self.device.type == "mps" else torch.float64

        def noise(draw: int) -> Tensor:
            return image_noise(shape, indices, self.seed, draw).to(self.device).to(dtype)

        schedule = self.denoiser.schedule
        label = torch.tensor(labels, device=self.device)
        guided = self.denoiser.guided(label, guidance=self.guidance, clip=self.clip)
        self.nfe = 0

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            self.nfe += 1
            return guided(x, t)

        x = float(schedule.sigma(self.ts[0])) * noise(0)
        return self.sampler(denoise, schedule, x, self.ts, lambda step: noise(step + 1)).float()

    def pixels(
        self, shape: tuple[int, ...], indices: list[int], labels: list[int], batch_size: int
    ) -> Iterator[Tensor]:
        """The same in batches, as uint8 on the CPU."""
        for start in range(0, len(indices), batch_size):
            part = slice(start, start + batch_size)
            yield to_uint8(self.draw(shape, indices[part], labels[part])).cpu()


def amplifies_errors(denoiser: Denoiser) -> bool:
    """Whether x0_hat at t_max is the network's output many times over, as it is for eps, where c_out = -sigma/alpha.

    There the first steps of a sampler go astray unless x0_hat is clipped to the range of images.
    """
    end = torch.tensor(denoiser.schedule.t_max, dtype=torch.float64)
    return float(denoiser.c_out(end).abs()) > 10


def cycle_labels(n: int, num_classes: int) -> list[int]:
    """Image i gets class i mod num_classes; no label where the data has none."""
    return [i % num_classes if num_classes else -1 for i in range(n)]


def columns(n: int, num_classes: int) -> int | None:
    """Columns of a grid of images with cycling labels: one a class where that fits, else None for a square."""
    return num_classes if 2 <= num_classes <= 20 and n >= num_classes else None
