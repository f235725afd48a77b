"""Which figures were made of too few images to be read, and why."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

SOME = 256
"""Images below which neighbours are far apart, and the kernel distance's subsets small."""

TENFOLD = 1000
"""Images from which the inception score is that of ten parts."""


def too_few(row: Mapping[str, Any]) -> dict[str, str]:
    """Figures of a row of results that need more images, each with why.

    Args:
        row: Its figures, and `images`, `training_images`, `features` and perhaps `floor_images`: numbers of each.
    """
    return {key: why for key, why in _reasons(row) if key in row}


def _reasons(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    dim, train = row.get("features", 0), row.get("training_images", math.inf)
    fewest, which = min((row.get("images", math.inf), "images"), (train, "training images"))
    sets = {"fd": (fewest, which), "fd_floor_test": (row.get("floor_images", math.inf), "held-out images")}
    sets["fd_floor_halves"] = (train // 2, "images in each half")
    for key, (count, what) in sets.items():
        if count <= dim:
            yield key, f"{count} {what} for {dim} features: it is mostly their number that it measures"
    if why := _kernel(row, fewest):
        yield "kd", why
    if row.get("images", math.inf) < TENFOLD:
        yield "is", f"{row['images']} images: below {TENFOLD:,} it is not of ten parts, and lower"
    if fewest < SOME:
        for key in ("precision", "recall", "density", "coverage", "copies"):
            yield key, f"{fewest} {which}, and it takes some {SOME}"


def _kernel(row: Mapping[str, Any], fewest: float) -> str:
    """What is wrong with the kernel distance, if anything."""
    value, error = row.get("kd"), row.get("kd_error")
    if value is None:
        return ""
    if error is None or not math.isfinite(error):
        return f"{fewest} images have no error"
    if error >= abs(value):
        return f"its error, {1000 * error:.3g}, is larger than its value"
    if fewest < TENFOLD and error >= abs(value - row.get("kd_floor_test", -math.inf)):
        return f"its error, {1000 * error:.3g}, is larger than what is between it and its floor"
    return f"subsets of {fewest // 2} images, and it takes some {SOME // 2}" if fewest < SOME else ""
