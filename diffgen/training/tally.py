"""What a run counts between two lines of its log, on the device, so that no step waits for the GPU."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class Tally:
    """Sums since the last line of the log, and steps that were skipped because their gradient was not finite.

    Attributes:
        loss: Sum of the mean losses of good steps; float32 [].
        steps: Number of good steps; int64 [].
        in_row: Steps skipped one after the other up to now; int64 [].
        longest: The largest `in_row` since the last line; int64 [].
        skipped: Steps skipped in the whole run; int64 [].
    """

    loss: Tensor
    steps: Tensor
    in_row: Tensor
    longest: Tensor
    skipped: Tensor

    @classmethod
    def zeros(cls, device: torch.device) -> "Tally":
        """Nothing counted yet."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return cls(zero.float(), *(zero.clone() for _ in range(4)))

    def add(self, loss: Tensor, bad: Tensor) -> None:
        """Count a step with this loss [], skipped if `bad`, bool []."""
        self.loss = self.loss + torch.where(bad, 0.0, loss)
        self.steps = self.steps + ~bad
        self.in_row = (self.in_row + 1) * bad
        self.longest = torch.maximum(self.longest, self.in_row)
        self.skipped = self.skipped + bad

    def begin_line(self) -> None:
        """Start the sums of the next line of the log."""
        self.loss, self.steps = torch.zeros_like(self.loss), torch.zeros_like(self.steps)
        self.longest = self.in_row.clone()

    def tensors(self, losses: Tensor) -> dict[str, Tensor]:
        """All counts by name, for a checkpoint; `losses` are those of all processes, float32 [world]."""
        return {f"tally.{field.name}": getattr(self, field.name) for field in fields(self)} | {"tally.loss": losses}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor], rank: int, world: int, device: torch.device) -> "Tally":
        """What `tensors` gave, for one process of so many; among another number of them the loss is the mean.

        Raises:
            KeyError: One is missing, or has another shape.
        """
        counts = {field.name: tensors[f"tally.{field.name}"].to(device) for field in fields(cls)}
        losses = counts["loss"]
        if any(count.shape != losses.shape[1:] for name, count in counts.items() if name != "loss") or losses.ndim != 1:
            raise KeyError("tally")
        return cls(**(counts | {"loss": losses[rank] if len(losses) == world else losses.mean()}))
