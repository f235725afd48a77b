"""Pairs of noise and what a sampler made of it: their file, and the data set of it, for reflow (Liu et al. 2023)."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.core.errors import CheckpointError, DataError, UsageError
from diffgen.core.registry import build, named
from diffgen.data.base import DATASETS, Source, Stored, gather, translated
from diffgen.data.kinds import KINDS, Kind
from diffgen.nets.base import DataShape
from diffgen.storage.tensor_file import check_finite, check_plain, load_tensors, parse, read_header, write_tensors

FILE = "pairs"
"""What `save=` names, and the file's name: pairs.safetensors."""


class Pairs(Source):
    """Examples x0 as they were drawn, each with the noise z that it was drawn from.

    Attributes:
        both: float32 [N, 2, *size], x0 and z.
        labels: int64 [N], -1 for none.
    """

    home = "kept on the device"
    coupled = True

    def __init__(self, both: Tensor, labels: Tensor, classes: tuple[str, ...], kind: Kind, found: str) -> None:
        """Put them together; `found` says in words what made them, for the header."""
        self.both, self.labels, self.classes, self.kind, self.found = both, labels, classes, kind, found
        self.shape = DataShape(tuple(both.shape[2:]), len(classes))

    def __len__(self) -> int:
        return len(self.both)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`; examples are [B, 2, *size]."""
        return gather(self.both, self.labels, entries, device)

    def x0(self, examples: Tensor, mirrored: Tensor | None) -> Tensor:
        """See `Source`."""
        return examples[:, 0]

    def z(self, examples: Tensor) -> Tensor:
        """See `Source`."""
        return examples[:, 1]

    def of(self, kind: Kind) -> Source:
        """There is no other kind: x0 are the numbers that a sampler gave."""
        raise UsageError("dataset=pairs holds real numbers and the noise that they were made of: objective=denoise")

    def part(self, entries: Tensor) -> "Pairs":
        """See `Source`."""
        return Pairs(self.both[entries], self.labels[entries], self.classes, self.kind, self.found)

    def renamed(self, classes: tuple[str, ...], numbers: list[int]) -> "Pairs":
        """See `Source`."""
        return Pairs(self.both, translated(self.labels, numbers), classes, self.kind, self.found)


def write(
    folder: Path,
    x0: Tensor,
    z: Tensor,
    labels: list[int],
    classes: tuple[str, ...],
    kind: Kind,
    made: Mapping[str, Any],
) -> None:
    """Write pairs.safetensors.

    Args:
        folder: Where.
        x0: float32 [n, *size], not rounded to what examples are stored as.
        z: float32 alike, standard normal: the sampler started from sigma(t_max) z.
        labels: One each, -1 for none.
        classes: Their names.
        kind: What an example is.
        made: The schedule, and how they were drawn, plain data.

    Raises:
        EnvironmentFault: It cannot be written.
    """
    said = {"kind": named(KINDS, kind), "classes": list(classes), **made}
    tensors = {"x0": x0, "z": z, "labels": torch.tensor(labels)}
    write_tensors(tensors, folder / f"{FILE}.safetensors", {FILE: json.dumps(said)})


@DATASETS.register("pairs")
def pairs(*, path: str | None) -> Pairs:
    """What `diffgen-sample save=[pairs]` has written.

    Args:
        path: The file.

    Raises:
        DataError: It is none of these, or damaged.
        UsageError: No path is given.
    """
    if path is None:
        raise UsageError(
            "path is missing: dataset.path=OUT/pairs.safetensors, which diffgen-sample save=[pairs] writes"
        )
    what = f"dataset.path={path!r}"
    try:
        text = read_header(Path(path))["__metadata__"].get(FILE)
        if text is None:
            raise DataError(f"{what} holds no pairs: diffgen-sample save=[pairs] writes them")
        said = parse(text, Path(path))
        check_plain(said, what)
        tensors = load_tensors(Path(path))
        check_finite(tensors, Path(path))
    except OSError as error:
        raise DataError(f"{what} cannot be read: {error.strerror}") from None
    except CheckpointError as error:
        raise DataError(f"{what}: {error}") from None
    return _checked(tensors, said, what)


def _checked(tensors: Mapping[str, Tensor], said: Mapping[str, Any], what: str) -> Pairs:
    """The data set of a file's tensors and of what it says of them."""
    x0, z, labels = (tensors.get(name, torch.zeros(0)) for name in ("x0", "z", "labels"))
    classes = said.get("classes")
    classes = tuple(classes) if isinstance(classes, list) and all(isinstance(name, str) for name in classes) else ()
    numbers = x0.dtype == z.dtype == torch.float32 and labels.dtype == torch.int64
    if not (numbers and len(x0) and x0.shape == z.shape and labels.shape == x0.shape[:1]):
        raise DataError(f"{what} must hold x0 and z, float32 [n, ...] alike, and labels, int64 [n]")
    if not -1 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise DataError(f"{what} holds labels of other classes than it names")
    try:
        kind: Kind = build(KINDS, said.get("kind"))
        kind.check(tuple(x0.shape[1:]))
    except UsageError as error:
        raise DataError(f"{what}: {error}") from None
    return Pairs(torch.stack([x0, z], 1), labels, classes, kind, f"made by {said.get('sampler', 'a sampler')}")
