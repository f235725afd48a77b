"""Pixels, pictures and grids."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffgen.data.images import GAP, PAPER, grid, picture, save_png, to_float, to_uint8


def test_every_value_survives_the_round_trip() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(values)), values)
    assert torch.equal(to_uint8(to_float(values).double()), values)


def test_the_ends_are_minus_one_and_one() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_rounding_is_that_of_edm() -> None:
    """(x * 127.5 + 128).clip(0, 255).to(uint8) (Karras et al. 2022), the convention behind published FIDs."""
    x = torch.tensor([-2.0, -1.0, -0.5, 0.0, 1 / 255, 0.5, 0.999, 1.0, 3.0])
    assert to_uint8(x).tolist() == [0, 0, 64, 128, 128, 191, 255, 255, 255]


def test_errors_below_half_a_grey_level_do_not_show() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    for error in (-0.49, 0.49):
        assert torch.equal(to_uint8(to_float(values) + error / 127.5), values)


@pytest.mark.parametrize(
    ("channels", "mode", "size"),
    [(1, "L", (5, 4)), (3, "RGB", (5, 4)), (4, "RGBA", (5, 4)), (2, "L", (10, 4))],
)
def test_pictures_by_channels(channels: int, mode: str, size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (channels, 4, 5), dtype=torch.uint8)
    made = picture(pixels)
    assert (made.mode, made.size) == (mode, size)
    array = np.asarray(made).reshape(4, size[0], -1)
    assert (array[:, :5, 0] == pixels[0].numpy()).all()
    assert (array[:, -5:, -1] == pixels[-1].numpy()).all()


def black(n: int, height: int, width: int, channels: int = 1) -> torch.Tensor:
    return torch.zeros(n, channels, height, width, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("n", "columns", "cells"),
    [(1, None, (1, 1)), (9, None, (3, 3)), (10, None, (4, 3)), (10, 5, (5, 2)), (3, 10, (10, 1))],
)
def test_grid_has_so_many_columns(n: int, columns: int | None, cells: tuple[int, int]) -> None:
    sheet = grid(black(n, 8, 8), columns=columns, tile=8)
    assert sheet.size == tuple(GAP + count * (8 + GAP) for count in cells)


def test_tiles_stand_apart_in_reading_order() -> None:
    pixels = torch.stack([torch.full((1, 4, 6), value, dtype=torch.uint8) for value in (10, 20, 30)])
    sheet = np.asarray(grid(pixels, columns=2, tile=4))
    expected = np.full((GAP + 2 * (4 + GAP), GAP + 2 * (6 + GAP)), PAPER)
    for i, value in enumerate((10, 20, 30)):
        top, left = GAP + i // 2 * (4 + GAP), GAP + i % 2 * (6 + GAP)
        expected[top : top + 4, left : left + 6] = value
    assert (sheet == expected).all()


def test_small_tiles_are_enlarged_smoothly_and_large_ones_left_alone() -> None:
    edge = black(1, 8, 8)
    edge[..., 4:] = 255
    sheet = grid(edge, tile=64)
    assert sheet.size == (64 + 2 * GAP * 8, 64 + 2 * GAP * 8)
    row = np.asarray(sheet)[GAP * 8 + 32, GAP * 8 : GAP * 8 + 64].astype(int)
    assert len(set(row.tolist())) > 4, "bicubic, not nearest"
    assert grid(black(1, 100, 100), tile=64).size == (100 + 2 * GAP,) * 2


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "L"), (3, "RGB"), (4, "RGB")])
def test_grids_have_a_mode_that_shows_the_paper(channels: int, mode: str) -> None:
    sheet = grid(black(2, 4, 4, channels))
    assert sheet.mode == mode
    assert sheet.getpixel((0, 0)) == (PAPER if mode == "L" else (PAPER,) * 3)


def test_notes_are_kept_in_the_png(tmp_path: Path) -> None:
    save_png(grid(black(1, 4, 4)), tmp_path / "a.png", {"diffgen": "seed=3"})
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.text == {"diffgen": "seed=3"}  # type: ignore[attr-defined]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
