"""What is said of figures of too few images, and of no others."""

import math
from typing import Any

import pytest

from diffgen.evaluation import report
from diffgen.evaluation.few import too_few

FINE = {
    "images": 1437, "training_images": 1437, "floor_images": 360, "features": 128, "extractor": "classifier",
    "fd": 2.0, "fd_floor_test": 1.0, "fd_floor_halves": 0.5, "kd": 0.024, "kd_error": 0.01, "kd_floor_test": 0.004,
    "is": 8.0, "precision": 0.9, "recall": 0.9, "density": 1.0, "coverage": 0.6, "copies": 0.0, "agreement": 0.9,
    "bits": 4.0,
}  # fmt: skip
NEIGHBOURS = {"precision", "recall", "density", "coverage", "copies"}


@pytest.mark.parametrize(
    ("changed", "figures"),
    [
        ({}, set()),
        ({"images": 64}, {"fd", "kd", "is", *NEIGHBOURS}),
        ({"images": 300}, {"is"}),
        ({"training_images": 200}, {"fd_floor_halves", "kd", *NEIGHBOURS}),
        ({"training_images": 64}, {"fd", "fd_floor_halves", "kd", *NEIGHBOURS}),
        ({"floor_images": 30}, {"fd_floor_test"}),
        ({"features": 2048}, {"fd", "fd_floor_test", "fd_floor_halves"}),
        ({"kd": -0.054, "kd_error": 0.208}, {"kd"}),
        ({"kd_error": math.inf}, {"kd"}),
        ({"images": 500, "kd_error": 0.022}, {"kd", "is"}),
        ({"kd_error": 0.022}, set()),
    ],
)
def test_figures_that_need_more_images(changed: dict[str, Any], figures: set[str]) -> None:
    assert set(too_few({**FINE, **changed})) == figures


def test_figures_that_are_not_there_need_none() -> None:
    assert too_few({"images": 4, "training_images": 5, "bits": 4.0}) == {}


def test_the_table_says_so_once_for_each_reason() -> None:
    lines = list(report.table({**FINE, "images": 64, "kd": -0.054, "kd_error": 0.208}))
    few = [line.removeprefix("too few images: ") for line in lines if line.startswith("too few images: ")]
    assert few == [
        "Frechet distance: 64 images for 128 features: it is mostly their number that it measures",
        "kernel distance x 1000: its error, 208, is larger than its value",
        "inception score: 64 images: below 1,000 it is not of ten parts, and lower",
        "precision, recall, density, coverage, near-copies of training images: 64 images, and it takes some 256",
    ]
    assert not [line for line in report.table(FINE) if "too few" in line]
