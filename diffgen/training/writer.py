"""Checkpoints written in the background, from a snapshot, so that training waits for a copy in memory, not for a disk.

One at a time; a fault of the disk is told and tried again with the next checkpoint, but the last one must succeed.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from diffgen.core.errors import EnvironmentFault
from diffgen.storage import checkpoint
from diffgen.storage.tensor_file import Tensors


@dataclass
class Snapshot:
    """All that one checkpoint holds; see `checkpoint.save`."""

    images: int
    config: Mapping[str, Any]
    model: Tensors
    state: Tensors
    counters: Mapping[str, Any]
    others: Mapping[str, tuple[Mapping[str, Any], Tensors]] = field(default_factory=dict)


class Writer:
    """Writes the checkpoints of one run, and deletes old ones.

    Attributes:
        pause: Seconds for which training has waited.
        count: Checkpoints that it waited for.
        newest: The newest folder that was written, if any.
    """

    def __init__(self, folders: Path, keep: int, warn: Callable[[str], None]) -> None:
        """Args: folders: `<run>/checkpoints`; keep: how many to keep; warn: is told of faults that may pass."""
        self.folders, self.keep, self.warn = folders, keep, warn
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.written: Future[Path] | None = None
        self.copies: Tensors = {}
        self.pause, self.count = 0.0, 0
        self.newest: Path | None = None

    def submit(self, snapshot: Snapshot, *, wait: bool) -> None:
        """Copy a snapshot and write it, in the background unless `wait`.

        Raises:
            EnvironmentFault: It cannot be written, with `wait`; earlier checkpoints are untouched.
        """
        started = time.monotonic()
        self._finish(warn=True)
        model, state = self._copied("model", snapshot.model), self._copied("state", snapshot.state)
        others = {name: (config, self._copied(name, those)) for name, (config, those) in snapshot.others.items()}
        if any(tensor.is_cuda for tensor in snapshot.model.values()):
            torch.cuda.synchronize()  # one wait for all copies, which were not waited for
        copied = replace(snapshot, model=model, state=state, others=others)
        self.written = self.thread.submit(self._write, copied)
        self.pause, self.count = self.pause + time.monotonic() - started, self.count + 1
        if wait:
            self._finish(warn=False)

    def _copied(self, part: str, tensors: Tensors) -> Tensors:
        """Copies on the CPU, which training does not change, in memory that is used again: fresh pages are slow."""
        copies = {}
        for name, tensor in tensors.items():
            copy = self.copies.get(f"{part}.{name}")
            if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = self.copies[f"{part}.{name}"] = copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
        return copies

    def _write(self, snapshot: Snapshot) -> Path:
        folder = self.folders / f"{snapshot.images:08d}"
        parts = (snapshot.config, snapshot.images, snapshot.model, snapshot.state, snapshot.counters, snapshot.others)
        try:
            checkpoint.save(folder, *parts)
        except EnvironmentFault as error:
            if "No space left" not in str(error) or self.keep == 1:
                raise
            checkpoint.rotate(self.folders, self.keep - 1)  # the oldest would go anyway, and is in the way
            checkpoint.save(folder, *parts)
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
