"""Non-leaky augmentation."""

import math

import torch

from diffgen.core.randomness import generator
from diffgen.data.augment import Draws, augment, draw, warp


def smooth(n: int, height: int = 32, width: int = 48) -> torch.Tensor:
    """A blob off the centre, smooth enough to be resampled."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    return (2 * torch.exp(-30 * ((x - 0.15) ** 2 + (y + 0.1) ** 2)) - 1).expand(n, 1, height, width)


def test_untouched_images_are_the_same_bits_and_have_zero_labels():
    x = torch.rand(64, 3, 8, 8) * 2 - 1
    out, labels = augment(x, draw(64, generator("cpu", 0, "augment")), 0.0)
    flipped = labels[:, 0] == 1
    assert 16 < int(flipped.sum()) < 48
    assert torch.equal(out[~flipped], x[~flipped])
    assert torch.equal(out[flipped], x[flipped].flip(-1))
    assert not labels[:, 1:].any()


def test_labels_tell_what_was_done():
    draws = Draws(torch.tensor([[0.9, 0.9, 0.0, 0.9, 0.9, 0.0]]), torch.zeros(1, 8))
    draws.values[0, 2], draws.values[0, 6:] = 1.5, torch.tensor([0.5, -2.0])
    _, labels = augment(smooth(1), draws, 0.5)
    assert torch.allclose(labels, torch.tensor([[0, 0, 1.5, 0, 0, 0, 0, 0.5, -2.0]]))


def centroid(x: torch.Tensor) -> tuple[float, float]:
    """Centre of mass in image sizes."""
    mass = (x + 1)[0, 0]
    height, width = mass.shape
    y = (torch.arange(height) + 0.5) / height - 0.5
    x_axis = (torch.arange(width) + 0.5) / width - 0.5
    return float((mass.sum(0) * x_axis).sum() / mass.sum()), float((mass.sum(1) * y).sum() / mass.sum())


def test_shift_moves_by_image_sizes():
    zero, x = torch.zeros(1), smooth(1)
    before = centroid(x)
    after = centroid(warp(x, zero, zero, zero, zero, torch.tensor([[-0.125, 0.125]])))
    assert math.isclose(after[0] - before[0], -0.125, abs_tol=5e-3)
    assert math.isclose(after[1] - before[1], 0.125, abs_tol=5e-3)


def test_rotation_keeps_pixel_lengths_on_images_that_are_not_square():
    zero, x = torch.zeros(1), smooth(1)
    x0, y0 = centroid(x)
    x1, y1 = centroid(warp(x, zero, torch.full((1,), math.pi / 2), zero, zero, torch.zeros(1, 2)))
    height, width = x.shape[-2:]
    assert math.isclose(x1 * width, -y0 * height, abs_tol=0.2)  # a quarter turn in pixels, not in image sizes
    assert math.isclose(y1 * height, x0 * width, abs_tol=0.2)


def test_scaling_changes_the_area_by_its_square():
    zero, x = torch.zeros(1), smooth(1, 32, 32)
    big = warp(x, torch.full((1,), 0.5), zero, zero, zero, torch.zeros(1, 2))
    assert math.isclose(float((big + 1).sum() / (x + 1).sum()), 2.0, rel_tol=0.05)
    stretched = warp(x, zero, zero, torch.full((1,), 0.5), torch.full((1,), 0.7), torch.zeros(1, 2))
    assert math.isclose(float((stretched + 1).sum() / (x + 1).sum()), 1.0, rel_tol=0.05)


def test_each_distortion_happens_with_its_probability():
    _, labels = augment(smooth(4000, 4, 4).clone(), draw(4000, generator("cpu", 1, "augment")), 0.12)
    assert math.isclose(float(labels[:, 0].mean()), 0.5, abs_tol=0.03)
    assert math.isclose(float(labels[:, 1].mean()), 0.06, abs_tol=0.015)
    for column in (2, 4, 7, 8):
        assert math.isclose(float((labels[:, column] != 0).float().mean()), 0.12, abs_tol=0.02)
