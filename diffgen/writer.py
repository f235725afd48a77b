"""Checkpoints written in the background, from a snapshot, so that training waits for a copy in memory, not for a disk.

One at a time; a fault of the disk is told and tried again with the next checkpoint, but the last one must succeed.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from torch import Tensor

from diffgen import checkpoint
from diffgen.checkpoint import Tensors
from diffgen.errors import EnvironmentFault


@dataclass
class Snapshot:
    """All that one checkpoint holds; see `checkpoint.save`."""

    images: int
    config: Mapping[str, Any]
    model: Tensors
    state: Tensors
    counters: Mapping[str, Any]

    def __post_init__(self) -> None:
        self.model, self.state = copied(self.model), copied(self.state)


def copied(tensors: Mapping[str, Tensor]) -> Tensors:
    """Copies on the CPU, which training does not change."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


class Writer:
    """Writes the checkpoints of one run, and deletes old ones.

    Attributes:
        pause: Seconds for which training has waited since `pause` was last set to 0.
        longest_pause: The longest wait for one checkpoint, in seconds.
        newest: The newest folder that was written, if any.
    """

    def __init__(self, folders: Path, keep: int, warn: Callable[[str], None]) -> None:
        """Args: folders: `<run>/checkpoints`; keep: how many to keep; warn: is told of faults that may pass."""
        self.folders, self.keep, self.warn = folders, keep, warn
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.written: Future[Path] | None = None
        self.pause = self.longest_pause = 0.0
        self.newest: Path | None = None

    def submit(self, snapshot: Callable[[], Snapshot], *, wait: bool) -> None:
        """Take a snapshot and write it, in the background unless `wait`.

        Raises:
            EnvironmentFault: It cannot be written, with `wait`; earlier checkpoints are untouched.
        """
        started = time.monotonic()
        self._finish(warn=True)
        self.written = self.thread.submit(self._write, snapshot())
        if wait:
            self._finish(warn=False)
        else:
            spent = time.monotonic() - started
            self.pause, self.longest_pause = self.pause + spent, max(self.longest_pause, spent)

    def _write(self, snapshot: Snapshot) -> Path:
        folder = self.folders / f"{snapshot.images:08d}"
        checkpoint.save(folder, snapshot.config, snapshot.images, snapshot.model, snapshot.state, snapshot.counters)
        checkpoint.rotate(self.folders, self.keep)
        return folder

    def _finish(self, *, warn: bool) -> None:
        """Wait for the checkpoint that is being written."""
        if not self.written:
            return
        written, self.written = self.written, None
        try:
            self.newest = written.result()
        except EnvironmentFault as error:
            if not warn:
                raise
            self.warn(f"{error}; training goes on, and tries again with the next checkpoint")

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whatever ends the run, the checkpoint that is being written is finished."""
        self._finish(warn=True)
        self.thread.shutdown()
