"""Where a run stands."""

import torch

from diffgen.core.settings import TrainSettings
from diffgen.training.stopwatch import Stopwatch
from diffgen.training.tally import Tally


class Progress:
    """Steps and images so far, the time they took, and what was counted on the way.

    Attributes:
        step: Optimizer steps.
        images: Training images seen, by all processes.
        first_images: The same where this part of the run began.
        watch: The time.
        tally: Losses and skipped steps.
    """

    def __init__(self, settings: TrainSettings, device: torch.device) -> None:
        """A run that has not begun."""
        self.settings = settings
        self.step = self.images = self.first_images = 0
        self.watch = Stopwatch()
        self.tally = Tally.zeros(device)

    def share(self) -> float:
        """Share of the run that is done, by images or by minutes, whichever is further."""
        return self.settings.share(self.images, self.watch.seconds)

    def crossed(self, every: int | None) -> bool:
        """Whether the latest step passed a multiple of so many images."""
        return every is not None and self.images // every > (self.images - self.settings.batch_size) // every

    def move_on(self) -> None:
        """Count a step."""
        self.step += 1
        self.images += self.settings.batch_size
