"""Which label each image of a run gets, and how a grid of them is laid out."""

import re
from collections.abc import Sequence

from diffgen.core.errors import UsageError, require, unknown
from diffgen.core.settings import SampleSettings
from diffgen.data.classes import number_of
from diffgen.data.survey import named


def cycle_labels(n: int, num_classes: int) -> list[int]:
    """Image i gets class i mod num_classes; no label where the data has none."""
    return [i % num_classes if num_classes else -1 for i in range(n)]


def columns(n: int, num_classes: int) -> int | None:
    """Columns of a grid of images with cycling labels, each of one class; None for a square where that does not fit."""
    if not 2 <= num_classes <= 20 or n < num_classes:
        return None
    return num_classes * max(1, round(n**0.5 / num_classes))  # of few classes several columns each


def class_columns(labels: list[int], num_classes: int) -> int | None:
    """Columns of a grid with one class each, where the labels cycle through the classes."""
    return columns(len(labels), num_classes if labels == cycle_labels(len(labels), num_classes) else 0)


def choose_labels(settings: SampleSettings, classes: Sequence[str], num_classes: int, *, new: bool) -> list[int]:
    """The label of each image; `auto` is each class in turn where new images are made, else none.

    Args:
        settings: How to draw.
        classes: Their names, if they have some.
        num_classes: How many the model knows.
        new: Whether the images are new; see `tasks.Plan`.

    Raises:
        UsageError: A label is out of range, or the model knows none.
    """
    wanted = settings.label
    if wanted == "auto" and not (num_classes and new):
        wanted = "none"
    if wanted in (None, "none", "null"):
        for word, other in (("none", "null"), ("null", "none")):
            _check_meant(word, other, classes, given=settings.label)
        return [-1] * settings.n
    require(
        num_classes > 0,
        f"label={_shown(wanted)} asks for a class, but this model is unconditional: label=none",
    )
    if wanted in ("auto", "each"):
        _check_meant("each", "auto", classes, given=wanted)
        return cycle_labels(settings.n, num_classes)
    chosen = [_label(item, num_classes, classes) for item in (wanted if isinstance(wanted, tuple) else (wanted,))]
    require(bool(chosen), "label=[] is empty: give a class, a list of classes, each or none")
    return [chosen[i % len(chosen)] for i in range(settings.n)]


def _check_meant(word: str, instead: str, classes: Sequence[str], *, given: object) -> None:
    """Refuse a word that is also the name of a class."""
    require(
        given != word or word not in classes,
        f"label={word} could be the class of that name: label=[{word}] is, and label={instead} is what it else means",
    )


def _label(item: object, num_classes: int, classes: Sequence[str]) -> int:
    """The number of a class; see `classes.number_of`."""
    number = number_of(item, classes, num_classes)
    if number is None and classes and not re.fullmatch(r"-?\d+", str(item)):
        raise UsageError(unknown(f"label={item!r}", dict.fromkeys([*classes, "each", "none", "auto"])))
    if number is None:
        names = f" ({named(classes)})" if classes else ""
        raise UsageError(f"label={item} is out of range: the model has classes 0 to {num_classes - 1}{names}")
    return number


def told(labels: Sequence[int], classes: Sequence[str]) -> str:
    """The classes that are drawn, by name; empty where there are none."""
    drawn = list(dict.fromkeys(label for label in labels if label >= 0))
    names = [classes[label] if classes else str(label) for label in drawn]
    return f"class {names[0]}" if len(names) == 1 else f"classes {named(names)}" if names else ""


def _shown(label: object) -> str:
    return str(list(label)) if isinstance(label, tuple) else str(label)
