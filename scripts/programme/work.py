"""What a measurement is given, and what it may answer."""

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

RANDOM = "random data"
PLUGIN = Path(__file__).with_name("random_images.py")


@dataclass(frozen=True)
class Work:
    """What every piece of the programme is given.

    Attributes:
        folder: Kept between invocations: runs, logs, compiled networks.
        tiny: Whether only to show that everything runs: small networks, few steps, on a CPU.
        data: The folder with the official CIFAR-10; None where random images of its size stand for it.
        deadline: When to be done, of `time.monotonic`.
        speed_run_minutes: Length of the speed-run; None for the recipe's own.
    """

    folder: Path
    tiny: bool
    data: Path | None
    deadline: float
    speed_run_minutes: float | None = None

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    @property
    def pictures(self) -> str:
        """What the networks of CIFAR-10's size are trained on, in words."""
        return "CIFAR-10" if self.data else RANDOM

    def dataset(self) -> list[str]:
        """Settings of `diffgen-train` beside an experiment on CIFAR-10: which pictures."""
        if self.data:
            return [f"dataset.root={self.data}"]
        return [f"plugins=['{PLUGIN}']", "dataset=random_images", *(["dataset.images=64"] if self.tiny else [])]

    def scratch(self, stack: ExitStack) -> Path:
        """An empty folder that is deleted with the stack."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self.folder)))

    def network(self) -> list[str]:
        """Settings that make any experiment's network tiny where that is wanted."""
        sizes = ["channels=8", "channel_mult=[1]", "blocks=1", "attention_resolutions=[]", "patch=4"]
        return [f"model.{size}" for size in sizes] if self.tiny else []


@dataclass(frozen=True)
class Piece:
    """One measurement, made in one go.

    Attributes:
        minutes: How long it may take on one H100; it is not begun with less time left.
        run: Gives its figures. `wrong`, a list of sentences, says what is not as it should be.
        alike: Whether it differs from another one in sizes alone, so that a test need not make both.
    """

    minutes: float
    run: Callable[[Work], Row]
    alike: bool = False


class Skipped(Exception):
    """A piece that cannot be measured here; the text says why."""


class Unfinished(Exception):
    """A long piece that wants to be called again."""

    def __init__(self, sentence: str, figures: Row) -> None:
        """Args: sentence: how far it is; figures: what is known so far."""
        super().__init__(sentence)
        self.figures = figures


def needs_gpu(work: Work) -> None:
    """Raise `Skipped` where there is no GPU to ask."""
    if work.tiny:
        raise Skipped("needs CUDA")
