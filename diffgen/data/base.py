"""The data set table, and data in memory. Pictures decoded when asked for are in `pictures`, vectors in `vectors`."""

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.core.files import write_atomically
from diffgen.core.registry import Table
from diffgen.data import images
from diffgen.data.kinds import Kind, Pixels
from diffgen.data.places import LeftOut
from diffgen.nets.base import DataShape

DATASETS = Table("dataset")
"""Rows are called as row(**settings) and give a `Source`."""

RESIDENT_BYTES = 2 * 2**30
"""Sets up to this size are kept on the device as they are."""

PREVIEWED = 64
"""Examples of a preview that are drawn at once."""


class Stored(NamedTuple):
    """Examples as a data set stores them, uint8 [B, C, H, W] of pictures, and their labels, int64 [B], -1 for none."""

    examples: Tensor
    labels: Tensor


class Drawer(Protocol):
    """What a preview asks of `diffgen.sampling.drawing.Sampling`."""

    device: torch.device

    @property
    def denoiser(self) -> Any:
        """x, t, label -> x0_hat."""

    def draw(
        self, indices: list[int], labels: list[int], watch: Callable[[Tensor, Tensor], None] | None = None
    ) -> Tensor:
        """Samples as x0, float [B, *size]; `watch` sees each (x, t) that the sampler visits."""

    def examples(self, indices: list[int], labels: list[int], batch_size: int) -> Iterator[Tensor]:
        """The same as they are stored, batch by batch, on the CPU."""


class Source(ABC):
    """What the trainer asks of a data set."""

    kind: Kind
    shape: DataShape
    """Of x0."""
    classes: tuple[str, ...]
    home: str
    """Where its examples are, in words for the header of a run."""
    found: str = ""
    """What was found where they come from, in words for the header, if there was anything to find."""
    notes: tuple[str, ...] = ()
    """What a user should know before training on it, a sentence each."""
    left_out: tuple[LeftOut, ...] = ()
    """What was found and is not used."""
    groups: Tensor | None = None
    """Examples of one number belong together, as clips of one film do: all are held out or none, int64 [N]."""
    coupled: bool = False
    """Whether each example comes with the noise that it was made of, so that neither can be changed alone."""
    entropy: float | None = None
    """Bits of an example's true distribution, where it is known: no model can need fewer."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @property
    def once(self) -> int:
        """Examples that make one pass over the data: fewer than all where they overlap."""
        return len(self)

    def right(self, text: str) -> bool | None:
        """Whether a text is one that the data could have; None where nothing can tell."""
        return None

    def straight(self, clips: Tensor) -> Tensor | None:
        """Whether what clips show moves as in the data, bool [n]; None where nothing can tell.

        Args:
            clips: As they are stored, uint8 [n, T, C, H, W].
        """
        return None

    @abstractmethod
    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """For each int64 tensor of entries: these examples and their labels, on the device."""

    def x0(self, examples: Tensor, mirrored: Tensor | None) -> Tensor:
        """What is learned from stored examples [B, ...], mirrored where that is asked for, bool [B]."""
        return self.kind.encode(examples if mirrored is None else self.kind.mirror(examples, mirrored))

    def z(self, examples: Tensor) -> Tensor | None:
        """The noise that stored examples [B, ...] were made of, like x0; None where any will do."""
        return None

    def preview(self, drawer: Drawer, labels: list[int], columns: int | None, path: Path) -> str | None:
        """Draw one sample for each label and write a PNG of them, or text; returns what there is to say.

        Beside the PNG of clips stands what shows them as they move.

        Raises:
            EnvironmentFault: The file cannot be written.
        """
        drawn = torch.cat(list(drawer.examples(list(range(len(labels))), labels, PREVIEWED)))
        if self.kind.textual:
            write_atomically(path, self.kind.write("txt", drawn, labels, ()))
            return self.kind.lines(drawn[:1])[0]
        images.save_png(self.kind.show(drawn, labels, columns), path)
        for name in self.kind.always:
            write_atomically(path.with_suffix(f".{name}"), self.kind.write(name, drawn, labels, ()))
        return None

    def of(self, kind: Kind) -> "Source":
        """The same examples, known as another kind that stores them alike."""
        other = copy.copy(self)
        other.kind, other.shape = kind, replace(self.shape, vocabulary=kind.vocabulary)
        return other

    def part(self, entries: Tensor) -> "Source":
        """Some of the examples, under numbers of their own; `entries` int64 [n] are their numbers here."""
        return Part(self, entries)

    def renamed(self, classes: tuple[str, ...], numbers: list[int]) -> "Source":
        """The same examples, told by other classes; label i becomes `numbers[i]`, and -1 stays."""
        return Part(self, torch.arange(len(self)), classes, numbers)


class Part(Source):
    """Some examples of a data set, perhaps told by other classes."""

    def __init__(
        self, whole: Source, entries: Tensor, classes: tuple[str, ...] | None = None, numbers: list[int] | None = None
    ) -> None:
        """See `Source.part` and `Source.renamed`."""
        self.whole, self.entries, self.numbers = whole, entries, numbers
        self.classes = whole.classes if classes is None else classes
        self.kind, self.home, self.found, self.entropy = whole.kind, whole.home, whole.found, whole.entropy
        self.notes, self.left_out = whole.notes, whole.left_out
        self.shape = replace(whole.shape, num_classes=len(self.classes))

    def __len__(self) -> int:
        return len(self.entries)

    def right(self, text: str) -> bool | None:
        """See `Source`."""
        return self.whole.right(text)

    def straight(self, clips: Tensor) -> Tensor | None:
        """See `Source`."""
        return self.whole.straight(clips)

    def of(self, kind: Kind) -> Source:
        """See `Source`."""
        return Part(self.whole.of(kind), self.entries, self.classes, self.numbers)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        for examples, labels in self.whole.batches((self.entries[some] for some in entries), device):
            yield Stored(examples, translated(labels, self.numbers))


def translated(labels: Tensor, numbers: list[int] | None) -> Tensor:
    """Labels int64 [n] by other numbers; -1, no label, stays."""
    return labels if numbers is None else torch.tensor([*numbers, -1], device=labels.device)[labels]


class InMemory(Source):
    """A data set that fits into memory, moved to the device once; batches are gathered there."""

    home = "kept on the device"

    def __init__(self, examples: Tensor, labels: Tensor, classes: tuple[str, ...], kind: Kind) -> None:
        """Check that examples and labels belong together.

        Args:
            examples: As the kind stores them, [N, ...].
            labels: int64 [N]; -1 where an example has none.
            classes: Names of the labels, empty for unlabelled data.
            kind: What an example is.

        Raises:
            DataError: There are none, or the labels are not theirs.
        """
        self.stored, self.labels, self.classes, self.kind = examples, labels, classes, kind
        if not len(examples):
            raise DataError("there are no examples")
        named = not classes or -1 <= labels.min() <= labels.max() < len(classes)
        if len(labels) != len(examples) or not named:
            raise DataError(f"labels must be one for each of {len(examples)} {kind.unit}, -1 to {len(classes) - 1}")
        self.shape = DataShape(_size(examples[:1], kind), len(classes), vocabulary=kind.vocabulary)
        if examples.nbytes > RESIDENT_BYTES:
            self.home = "kept in memory"

    def __len__(self) -> int:
        return len(self.stored)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        return gather(self.stored, self.labels, entries, device)

    def of(self, kind: Kind) -> "InMemory":
        """See `Source`."""
        other = copy.copy(self)
        other.kind = kind
        other.shape = replace(self.shape, size=_size(self.stored[:1], kind), vocabulary=kind.vocabulary)
        return other

    def part(self, entries: Tensor) -> Source:
        """See `Source`; of a large set nothing is copied."""
        if self.stored.nbytes > RESIDENT_BYTES:
            return Part(self, entries)
        return self._with(self.stored[entries], self.labels[entries])

    def renamed(self, classes: tuple[str, ...], numbers: list[int]) -> "InMemory":
        """See `Source`."""
        other = self._with(self.stored, translated(self.labels, numbers))
        other.classes, other.shape = classes, replace(self.shape, num_classes=len(classes))
        return other

    def _with(self, stored: Tensor, labels: Tensor) -> "InMemory":
        other = copy.copy(self)
        other.stored, other.labels = stored, labels
        vars(other).pop("digest", None)  # that of the whole
        return other

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, examples and labels, in hex."""
        total = hashlib.sha256(str(list(self.stored.shape)).encode())
        for some in self.stored.split(1024):  # they may lie in a file, or in another order
            total.update(some.contiguous().numpy().data)
        total.update(self.labels.contiguous().numpy().data)
        return total.hexdigest()


def _size(example: Tensor, kind: Kind) -> tuple[int, ...]:
    """The size of x0, of a kind that makes of it what it must."""
    x0 = kind.encode(example)
    wanted = torch.int64 if kind.vocabulary else torch.float32
    if x0.dtype != wanted:
        told = f"must give {str(wanted).removeprefix('torch.')}, and gives {x0.dtype} of {example.dtype}"
        raise DataError(f"{type(kind).__name__}.encode {told}")
    again = kind.decode(x0)
    if (again.shape, again.dtype) != (example.shape, example.dtype):
        stored, given = (f"{values.dtype} {list(values.shape)}" for values in (example, again))
        raise DataError(
            f"{type(kind).__name__}.decode must give examples as they are stored, {stored}, and gives {given}"
        )
    size = tuple(x0.shape[1:])
    kind.check(size)
    return size


class Images(InMemory):
    """Pictures in memory: uint8 [N, C, H, W]."""

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        kind: Kind = Pixels(),  # noqa: B008  frozen
    ) -> None:
        """See `InMemory`.

        Raises:
            DataError: They are no pixels, or the labels are not theirs.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or not len(pixels):
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise DataError(f"pixels must be torch.uint8 [N, C, H, W] with N >= 1, and are {found}")
        super().__init__(pixels, labels, classes, kind)

    @property
    def pixels(self) -> Tensor:
        """uint8 [N, C, H, W]."""
        return self.stored


def gather(values: Tensor, labels: Tensor, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
    """Batches of tensors that are moved to the device once, or batch by batch if they are large."""
    if values.nbytes <= RESIDENT_BYTES:
        values, labels = values.to(device), labels.to(device)
    for chosen in entries:
        chosen = chosen.to(values.device, non_blocking=True)
        # on a CPU eight times faster than [chosen]
        some = Stored(values.index_select(0, chosen), labels.index_select(0, chosen))
        yield Stored(*(each.to(device) for each in some))


def spread(count: int, size: int) -> Tensor:
    """Numbers of `count` examples of `size` or of all, as far from each other as can be: files are sorted by class."""
    return torch.linspace(0, size - 1, min(count, size), dtype=torch.float64).round().long()


def in_order(source: Source, count: int, device: torch.device) -> Iterator[Stored]:
    """The first `count` images and labels of a data set, in batches."""
    return source.batches(iter(torch.arange(count).split(256)), device)


def all_x0(source: Source, *, mirrored: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples as they are learned from, with labels, in batches on the CPU; their mirror images, too, if asked."""
    for stored, labels in in_order(source, len(source), torch.device("cpu")):
        yield source.x0(stored, None), labels
        if mirrored:
            yield source.x0(stored, torch.ones(len(stored), dtype=torch.bool)), labels
