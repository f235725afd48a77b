"""Clips that a checkpoint made, beside real ones: their frames, how they follow each other, and exact checks."""

from collections.abc import Callable, Collection
from functools import cached_property
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core import processes
from diffgen.core.processes import share_of
from diffgen.data import Images, Source
from diffgen.data.base import Stored
from diffgen.data.kinds import Pixels
from diffgen.data.splits import Splits
from diffgen.evaluation import clip_metrics
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

Row = dict[str, Any]


class Drawn(NamedTuple):
    """Clips: uint8 [n, T, C, H, W], and the labels that were asked for, int64 [n], -1 for none; on the CPU."""

    clips: Tensor
    labels: Tensor


def draw_share(
    sampling: Sampling, labels: list[int], accelerator: Accelerator, batch: int, progress: Callable[[int], None]
) -> Drawn:
    """This process's share of clips 0 .. n - 1, see `share_of`; `progress` hears how many are done, by all."""
    mine = share_of(len(labels), accelerator)
    whose = [labels[i] for i in mine]
    parts: list[Tensor] = []
    with accelerator.autocast():
        for clips in sampling.examples(mine, whose, batch):
            parts.append(clips)
            progress(min(sum(map(len, parts)) * accelerator.num_processes, len(labels)))
    return Drawn(torch.cat(parts), torch.tensor(whose))


def gathered(share: Drawn, accelerator: Accelerator, n: int) -> Drawn:
    """All processes' shares, on each."""
    return Drawn(*(processes.gathered(column, n, accelerator) for column in share))


def given(source: Source, n: int) -> Drawn:
    """The first n clips of a source."""
    return Drawn(*next(source.batches(iter([torch.arange(n)]), torch.device("cpu"))))


# --- what they are judged by --------------------------------------------------------------------------------------


def in_frames(splits: Splits) -> Splits:
    """Single frames of the clips with their labels, as pictures: what an extractor is made from."""
    return Splits(_frames(splits.train), lambda: _frames(splits.test) if splits.test else None)


def _frames(source: Source) -> Images:
    """One frame of each of some clips, in turn the first, the second, ..."""
    clips = some(source, FRAMES)
    which = torch.arange(len(clips.labels)) % clips.examples.shape[1]
    frames = clips.examples[torch.arange(len(which)), which]
    return Images(frames, clips.labels, source.classes, Pixels())


def some(source: Source, n: int) -> Stored:
    """n clips, spread evenly over a source, or all if there are fewer."""
    parts = list(source.batches(iter(spread(len(source), n).split(256)), torch.device("cpu")))
    return Stored(*(torch.cat(column) for column in zip(*parts, strict=True)))


class Films:
    """What clips are judged by: training clips, as many held-out ones as are judged, and features of their frames."""

    def __init__(self, splits: Splits, extractor: Extractor, n: int) -> None:
        """Nothing is computed before it is asked for."""
        self.splits, self.extractor, self.n = splits, extractor, n

    @cached_property
    def real(self) -> "Featured":
        """Training clips."""
        return Featured(some(self.splits.train, REAL), self.extractor)

    @cached_property
    def test(self) -> "Featured | None":
        """As many held-out clips as are judged."""
        return None if self.splits.test is None else Featured(some(self.splits.test, self.n), self.extractor)


class Featured:
    """Clips, and what the extractor says of each of their frames."""

    def __init__(self, stored: Stored | Drawn, extractor: Extractor) -> None:
        self.clips, self.labels = stored
        said = [extractor(frames) for frames in self.clips.flatten(0, 1).split(1024)]
        n = len(self.clips)
        self.features = torch.cat([features.cpu() for features, _ in said]).unflatten(0, (n, -1))
        logits = [each.cpu() for _, each in said if each is not None]
        self.read = torch.cat(logits).argmax(1).unflatten(0, (n, -1)) if logits else None


# --- metrics ------------------------------------------------------------------------------------------------------


def frames(made: Featured, films: Films) -> Row:
    """Frechet distance of single frames, which knows nothing of their order."""
    return {"fd_frames": _distance(made.features.flatten(0, 1), films.real.features.flatten(0, 1))}


def pairs(made: Featured, films: Films) -> Row:
    """Frechet distance of consecutive frames: of the mean of their features and the difference, side by side."""
    return {"fd_pairs": _distance(_paired(made.features), _paired(films.real.features))}


def _paired(features: Tensor) -> Tensor:
    """[n, T, d] -> [n (T - 1), 2 d]."""
    before, after = features[:, :-1], features[:, 1:]
    return torch.cat([(before + after) / 2, after - before], 2).flatten(0, 1)


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(Moments.of(a).gaussian(), Moments.of(b).gaussian())


def motion(made: Featured, films: Films) -> Row:
    """Distance of the distributions of how much changes between frames, in grey levels."""
    return {"motion": clip_metrics.wasserstein(clip_metrics.motion(made.clips), clip_metrics.motion(films.real.clips))}


def checks(made: Featured, films: Films) -> Row:
    """What can be told exactly of clips of one digit that moves: shares in [0, 1]; empty for other data."""
    straight = films.splits.train.straight(made.clips)
    if straight is None or made.read is None:
        return {}
    asked = made.labels >= 0
    row: Row = {"label": float((made.read == made.labels[:, None])[asked].double().mean())} if asked.any() else {}
    row["identity"] = float((made.read == made.read[:, :1]).all(1).double().mean())
    row["shape"] = float(clip_metrics.constancy(made.clips).mean())
    return row | {"straight": float(straight.double().mean())}


MEASURES: dict[str, Callable[[Featured, Films], Row]] = {
    "fd_frames": frames,
    "fd_pairs": pairs,
    "motion": motion,
    "checks": checks,
}
"""Metrics of clips; those of a model are in `evaluation.model`."""


def of_samples(wanted: Collection[str], drawn: Drawn, films: Films) -> Row:
    """Those of the wanted metrics that are of clips, each beside what held-out clips have."""
    made = Featured(drawn, films.extractor)
    row: Row = {} if films.test is None else {"floor_clips": len(films.test.clips)}
    left = []
    for name in wanted:
        figures = MEASURES[name](made, films) if name in MEASURES else {}
        floors = MEASURES[name](films.test, films) if figures and films.test else {}
        row |= figures | {f"{key}_floor_test": value for key, value in floors.items()}
        left += [name] if name in MEASURES and not figures else []
    return row | ({"left_out": left} if left else {})
