"""What a set of pictures was found to be, in words for the header of a run."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from diffgen.core.paths import setting
from diffgen.data.places import LeftOut
from diffgen.data.reading import Reading, Seen

FEW = 4
"""Modes, reasons or names that are listed before the rest is counted."""

DIM = 64
"""Grey level that the brightest pixel of a set should reach."""

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"}


def found(
    seen: Sequence[Seen], size: tuple[int, int], reading: Reading, left_out: Sequence[LeftOut], total: int
) -> str:
    """How many pictures, of which modes and sizes, what was done to them, and what is left out.

    Args:
        seen: The pictures that were looked at.
        size: Height and width that they got.
        reading: How they were read.
        left_out: What is not used.
        total: How many pictures there are.
    """
    frames = sum(picture.frames for picture in seen)
    first = f"{several(total, 'picture')}{looked(seen, total)}: {counted(picture.mode for picture in seen)}"
    parts = [sizes(seen, size), *colours(seen, reading)]
    parts += [f"{frames:,} of several frames, the first of which is read"] if frames else []
    return "; ".join([first, *parts, told_left_out(left_out)])


def several(count: int, what: str) -> str:
    """`1 film`, `12 films`."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def looked(seen: Sequence[Seen], total: int) -> str:
    """How many were looked at, if not all."""
    return f" (of {len(seen):,} looked at)" if len(seen) < total else ""


def colours(seen: Sequence[Seen], reading: Reading) -> list[str]:
    """What was done to the colours."""
    transparent = sum(picture.transparent for picture in seen)
    parts = [f"{transparent:,} with transparent pixels, laid on {reading.background}"] if transparent else []
    return parts + ([f"range [{reading.range[0]:g}, {reading.range[1]:g}]"] if reading.range else [])


def told_left_out(left_out: Sequence[LeftOut]) -> str:
    """How many files are left out, and why."""
    if not left_out:
        return "none left out"
    return f"{len(left_out):,} left out: {counted(each.reason for each in left_out)}"


def counted(words: Iterable[str]) -> str:
    """`12 RGB, 3 L`, the most frequent first."""
    common = Counter(words).most_common()
    rest = sum(count for _, count in common[FEW:])
    return ", ".join([f"{count:,} {word}" for word, count in common[:FEW]] + ([f"{rest:,} others"] if rest else []))


def sizes(seen: Sequence[Seen], size: tuple[int, int]) -> str:
    """The sizes of some pictures, and what became of them."""
    found = {each for picture in seen for each in (picture.size, *picture.others)}
    different = sorted(found, key=lambda each: (each[0] * each[1], each))
    words = ["x".join(map(str, each)) for each in different]
    told = words[0] if len(words) == 1 else f"{words[0]} to {words[-1]} ({len(words)} sizes)"
    return told if different == [size] else f"{told}, made {size[0]}x{size[1]}"


def named(classes: Sequence[str]) -> str:
    """The names of classes, as many as a line holds."""
    shown = list(classes) if len(classes) <= 12 else [*classes[:8], "...", classes[-1]]
    return ", ".join(shown)


def notes(pixels: Tensor, classes: Sequence[str], root: Path | None, *, looked_at: int | None = None) -> list[str]:
    """What a user would want to know before training on pictures.

    Args:
        pixels: uint8 [n, C, H, W].
        classes: Names of the classes.
        root: The folder that they are in, if it is one.
        looked_at: How many these are, if they are not all.
    """
    told, every = [], "all pictures" if looked_at is None else f"all {looked_at} pictures that were looked at"
    if pixels.shape[1] == 3 and all(_is_grey(chunk) for chunk in pixels.split(256)):
        told.append(f"{every} are grey: dataset.channels=1 learns the same for a third of the numbers")
    low, high = int(pixels.min()), int(pixels.max())
    if low == high:
        told.append(f"all pixels of {every} have the value {low}")
    elif high < DIM:
        some = "" if looked_at is None else f" of the {looked_at} pictures that were looked at"
        told.append(
            f"no pixel{some} is brighter than {high} of 255; if {high} is white, dataset.range=[0,{high}] says so"
        )
    return told + split_note(classes, root)


def split_note(classes: Sequence[str], root: Path | None) -> list[str]:
    """Classes whose names are those of splits are a folder too high, most likely."""
    splits = [name for name in classes if name.casefold() in SPLITS]
    if len(splits) < min(2, len(classes)) or not splits:
        return []
    train = next((name for name in splits if name.casefold().startswith("train")), splits[0])
    other = next((name for name in splits if name != train), None)
    chosen = {"dataset.root": train} | ({"dataset.held_out": other} if other else {})
    meant = " ".join(setting(key, root / name) for key, name in chosen.items()) if root else f"{train} alone"
    return [f"the sub-folders {', '.join(splits)} are taken for classes; if they are splits, {meant} is meant"]


def _is_grey(pixels: Tensor) -> bool:
    return bool((pixels[:, :1] == pixels).all())
