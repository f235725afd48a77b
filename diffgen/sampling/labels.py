"""Which label each image of a run gets, and how a grid of them is laid out."""

from collections.abc import Sequence
from typing import Any

from diffgen.core.errors import require, unknown
from diffgen.core.settings import SampleSettings


def cycle_labels(n: int, num_classes: int) -> list[int]:
    """Image i gets class i mod num_classes; no label where the data has none."""
    return [i % num_classes if num_classes else -1 for i in range(n)]


def columns(n: int, num_classes: int) -> int | None:
    """Columns of a grid of images with cycling labels: one a class where that fits, else None for a square."""
    return num_classes if 2 <= num_classes <= 20 and n >= num_classes else None


def class_columns(labels: list[int], num_classes: int) -> int | None:
    """Columns of a grid with one class each, where the labels cycle through the classes."""
    return columns(len(labels), num_classes if labels == cycle_labels(len(labels), num_classes) else 0)


def choose_labels(settings: SampleSettings, classes: Sequence[str], num_classes: int, task: str) -> list[int]:
    """The label of each image; `auto` is each class in turn where new images are made, else none.

    Raises:
        UsageError: A label is out of range, or the model knows none.
    """
    wanted = settings.label
    if wanted == "auto" and (not num_classes or task not in ("generate", "trajectory")):
        wanted = "none"
    if wanted in (None, "none"):
        return [-1] * settings.n
    require(
        num_classes > 0,
        f"label={_shown(wanted)} asks for a class, but this model is unconditional: label=none",
    )
    if wanted in ("auto", "each"):
        return cycle_labels(settings.n, num_classes)
    chosen = [_label(item, num_classes, classes) for item in (wanted if isinstance(wanted, tuple) else (wanted,))]
    require(bool(chosen), "label=[] is empty: give a class, a list of classes, each or none")
    return [chosen[i % len(chosen)] for i in range(settings.n)]


def _label(item: Any, num_classes: int, classes: Sequence[str]) -> int:
    if isinstance(item, str):
        require(item in classes, unknown(f"label={item!r}", [*classes, "each", "none", "auto"]))
        return classes.index(item)
    require(0 <= item < num_classes, f"label={item} is out of range: the model has classes 0 to {num_classes - 1}")
    return int(item)


def _shown(label: Any) -> str:
    return str(list(label)) if isinstance(label, tuple) else str(label)
