"""Clips that a checkpoint made, beside real ones: their frames, how they follow each other, and exact checks."""

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core import processes
from diffgen.core.processes import share_of
from diffgen.core.settings import FEWEST
from diffgen.data import Images, Source
from diffgen.data.base import Stored
from diffgen.data.kinds import Pixels
from diffgen.data.splits import Splits
from diffgen.evaluation import clip_metrics
from diffgen.evaluation.drawing import examples
from diffgen.evaluation.extractors import Extractor
from diffgen.evaluation.model import spread
from diffgen.evaluation.statistics import Moments, frechet_distance
from diffgen.sampling.drawing import Sampling

MOST = 1_000
"""Clips to judge unless told otherwise."""

FRAMES = 8_000
"""Frames, each of another clip, that an extractor of pictures is made from."""

REAL = 4_000
"""Training clips that distances are to."""

CLIPS_AT_ONCE, FRAMES_AT_ONCE = 64, 1024
"""What is looked at together."""

Row = dict[str, Any]


def draw_share(
    sampling: Sampling, labels: list[int], accelerator: Accelerator, batch: int, progress: Callable[[int], None]
) -> Stored:
    """This process's share of clips 0 .. n - 1, see `share_of`; `progress` hears how many are done, by all."""
    whose = torch.tensor([labels[i] for i in share_of(len(labels), accelerator)])
    return Stored(examples(sampling, labels, accelerator, batch, progress), whose)


def gathered(share: Stored, accelerator: Accelerator, n: int) -> Iterator[Stored]:
    """The clips of all processes, on each, a few at a time."""
    return in_batches(*(processes.gathered(column, n, accelerator) for column in share))


def in_batches(clips: Tensor, labels: Tensor) -> Iterator[Stored]:
    """Clips that are there, a few at a time."""
    return map(Stored, clips.split(CLIPS_AT_ONCE), labels.split(CLIPS_AT_ONCE))


def given(source: Source, n: int) -> Iterator[Stored]:
    """The first n clips of a source, a few at a time."""
    return source.batches(iter(torch.arange(n).split(CLIPS_AT_ONCE)), torch.device("cpu"))


def some(source: Source, n: int) -> Iterator[Stored]:
    """n clips, spread evenly over a source, or all if there are fewer; a few at a time."""
    return source.batches(iter(spread(len(source), n).split(CLIPS_AT_ONCE)), torch.device("cpu"))


# --- what they are judged by --------------------------------------------------------------------------------------


def untold(splits: Splits, name: str) -> dict[str, str]:
    """Metrics that cannot be told by a data set of this name, each with why."""
    channels, frames, *sides = splits.train.shape.size
    can_tell = splits.train.straight(torch.zeros(1, frames, channels, *sides, dtype=torch.uint8)) is not None
    return {} if can_tell else {"checks": f"metrics=checks are of one moving digit, and dataset={name} has others"}


def in_frames(splits: Splits) -> Splits:
    """Single frames of the clips with their labels, as pictures: what an extractor is made from."""
    return Splits(_frames(splits.train), lambda: _frames(splits.test) if splits.test else None)


def _frames(source: Source) -> Images:
    """One frame of each of some clips, in turn the first, the second, ..."""
    frames, labels = [], []
    for clips, whose in some(source, FRAMES):
        clip = torch.arange(len(clips))
        frames.append(clips[clip, clip % clips.shape[1]])
        labels.append(whose)
    return Images(torch.cat(frames), torch.cat(labels), source.classes, Pixels())


class Seen(NamedTuple):
    """What is looked at in n clips of T frames.

    Attributes:
        labels: Those that were asked for, int64 [n], -1 for none.
        features: Of each frame, float [n, T, d].
        changes: The same of a picture of what changes from each frame to the next, float [n, T - 1, d].
        motion: Between frames, in grey levels, float [n, T - 1].
        read: What a classifier of the data's own classes takes each frame for, int64 [n, T]; None where there is none.
        shape: See `clip_metrics.constancy`, float [n]; None where the data cannot tell how clips should move.
        straight: See `Source.straight`, bool [n]; None as before.
    """

    labels: Tensor
    features: Tensor
    changes: Tensor
    motion: Tensor
    read: Tensor | None
    shape: Tensor | None
    straight: Tensor | None

    @classmethod
    def joined(cls, parts: list["Seen"]) -> "Seen":
        """Several sets as one."""
        columns = zip(*parts, strict=True)
        return cls(*(None if column[0] is None else torch.cat(column) for column in columns))  # type: ignore[arg-type]

    def part(self, which: Tensor) -> "Seen":
        """The clips of these numbers, int64 [m]."""
        return Seen(*(None if column is None else column[which] for column in self))  # type: ignore[arg-type]


class Films:
    """What clips are judged by: training clips, as many held-out ones as are judged, and features of their frames."""

    def __init__(self, splits: Splits, extractor: Extractor, n: int) -> None:
        """Nothing is computed before it is asked for."""
        self.splits, self.extractor, self.n = splits, extractor, n

    @cached_property
    def real(self) -> Seen:
        """Training clips."""
        return self.look(some(self.splits.train, REAL))

    @cached_property
    def test(self) -> Seen | None:
        """As many held-out clips as are judged, where there are enough of them to be judged like others."""
        held_out = self.splits.test
        return None if held_out is None or len(held_out) < FEWEST else self.look(some(held_out, self.n))

    @cached_property
    def halves(self) -> tuple[Seen, Seen]:
        """The training clips in two, by chance."""
        order = torch.randperm(len(self.real.labels), generator=torch.Generator().manual_seed(0))
        one, other = order.tensor_split(2)
        return self.real.part(one), self.real.part(other)

    def look(self, batches: Iterable[Stored]) -> Seen:
        """Look at clips."""
        return Seen.joined([self._seen(*batch) for batch in batches])

    def _seen(self, clips: Tensor, labels: Tensor) -> Seen:
        features, logits = self._said(clips)
        changes, _ = self._said(clip_metrics.changes(clips))
        classes = self.splits.train.shape.num_classes  # Inception has some of its own
        read = logits.argmax(2) if logits is not None and logits.shape[2] == classes else None
        straight = self.splits.train.straight(clips)
        shape = None if straight is None else clip_metrics.constancy(clips)
        return Seen(labels, features, changes, clip_metrics.motion(clips), read, shape, straight)

    def _said(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the extractor says of each frame: features [n, T, d], and logits [n, T, k] if it has some."""
        said = [self.extractor(frames) for frames in clips.flatten(0, 1).split(FRAMES_AT_ONCE)]
        features, logits = zip(*said, strict=True)
        both = (None if column[0] is None else torch.cat(column).cpu() for column in (features, logits))
        return tuple(None if each is None else each.unflatten(0, clips.shape[:2]) for each in both)  # type: ignore[return-value]


# --- metrics ------------------------------------------------------------------------------------------------------


def frames(made: Seen, real: Seen) -> Row:
    """Frechet distance of single frames, which knows nothing of their order."""
    return {"fd_frames": _distance(made.features.flatten(0, 1), real.features.flatten(0, 1))}


def pairs(made: Seen, real: Seen) -> Row:
    """Frechet distance of consecutive frames, by pictures of what changes between them.

    Features of both frames side by side would hardly see their order: a classifier knows a digit wherever it is.
    """
    return {"fd_pairs": _distance(made.changes.flatten(0, 1), real.changes.flatten(0, 1))}


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Moments.of(a).gaussian(), Moments.of(b).gaussian())


def motion(made: Seen, real: Seen) -> Row:
    """Distance of the distributions of how much changes between frames, in grey levels."""
    return {"motion": clip_metrics.wasserstein(made.motion.flatten(), real.motion.flatten())}


def checks(made: Seen) -> Row:
    """What can be told exactly of clips of one digit that moves: shares in [0, 1]."""
    row, asked = Row(), made.labels >= 0
    if made.read is not None:
        right = made.read == made.labels[:, None]
        row |= {"label": _share(right[asked])} if asked.any() else {}
        row["identity"] = _share((made.read == made.read[:, :1]).all(1))
    if made.shape is not None and made.straight is not None:
        row |= {"shape": float(made.shape.mean()), "straight": _share(made.straight)}
    return row


def _share(which: Tensor) -> float:
    return float(which.double().mean())


DISTANCES: dict[str, Callable[[Seen, Seen], Row]] = {"fd_frames": frames, "fd_pairs": pairs, "motion": motion}
"""Metrics of clips beside training clips; those of a model are in `evaluation.model`."""


def figures(wanted: Collection[str], made: Seen, real: Seen) -> Row:
    """Those of the wanted metrics that are of clips."""
    row = Row()
    for name in wanted:
        row |= DISTANCES[name](made, real) if name in DISTANCES else checks(made) if name == "checks" else {}
    return row


def of_samples(wanted: Collection[str], clips: Iterable[Stored], films: Films) -> Row:
    """The same, each beside what held-out clips have, and distances beside that of halves of the training clips."""
    row = figures(wanted, films.look(clips), films.real) | {"reference_clips": len(films.real.labels)}
    if films.test:
        row |= _floors("test", figures(wanted, films.test, films.real), row) | {"floor_clips": len(films.test.labels)}
    if len(films.real.labels) >= 2 * FEWEST:
        row |= _floors("halves", figures(set(wanted) & DISTANCES.keys(), *films.halves), row)
    left = [key for key in ("label", "identity") if "checks" in wanted and key not in row]
    return row | ({"left_out": left} if left else {})


def _floors(kind: str, found: Row, row: Row) -> Row:
    """Figures of real clips, of those that the row has."""
    return {f"{key}_floor_{kind}": value for key, value in found.items() if key in row}
