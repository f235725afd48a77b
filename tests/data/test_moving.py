"""Digits that move: what a clip shows is known, and is a function of the seed and its number."""

import pytest
import torch
from rows import dataset
from torch import Tensor

from diffgen.core.errors import UsageError
from diffgen.data.moving import Moving, centres, drawn, reflected

CPU = torch.device("cpu")


def clips(source: Moving, n: int) -> tuple[Tensor, Tensor]:
    examples, labels = next(source.batches(iter([torch.arange(n)]), CPU))
    return examples, labels


def moving(**settings: object) -> Moving:
    source: Moving = dataset("moving_digits", n=300, **{"frames": 8, **settings})
    return source


def test_each_frame_is_the_digit_at_its_place_and_nothing_else() -> None:
    source = moving()
    examples, labels = clips(source, 40)
    truth = source.truth(torch.arange(40))
    assert examples.dtype == torch.uint8 and examples.shape == (40, 8, 1, 16, 16)
    assert torch.equal(labels, truth.labels[:, 0])
    for clip, sprite, corners in zip(examples, truth.sprites[:, 0], truth.corners[:, :, 0], strict=True):
        for frame, (row, column) in zip(clip[:, 0], corners.tolist(), strict=True):
            assert torch.equal(frame[row : row + 8, column : column + 8], sprite)
            assert frame.sum() == sprite.sum()


def test_a_digit_moves_by_the_same_step_until_a_wall_reflects_it() -> None:
    corners = moving(frames=40).truth(torch.arange(200)).corners[:, :, 0]
    steps = corners.diff(dim=1)
    assert corners.min() == 0 and corners.max() == 8
    assert (steps.abs() == steps[:, :1].abs()).all() and steps.abs().max() == 1 and steps[:, 0].any(1).all()
    turns = (steps[:, 1:] != steps[:, :-1]) & (steps[:, 1:] != 0)
    at_wall = (corners[:, 1:-1] == 0) | (corners[:, 1:-1] == 8)
    assert turns.any() and (at_wall | ~turns).all()


def test_a_line_between_walls_is_a_triangle() -> None:
    places = reflected(torch.tensor([0, 3, 8, 9, 16, 17, -2, -9]), 8)
    assert places.tolist() == [0, 3, 8, 7, 0, 1, 2, 7]


def test_clips_are_a_function_of_the_seed_and_their_number() -> None:
    examples, _ = clips(moving(), 60)
    again, _ = next(moving().batches(iter([torch.tensor([59, 3])]), CPU))
    assert torch.equal(again, examples[[59, 3]])
    assert not torch.equal(clips(moving(seed=1), 60)[0], examples)
    assert torch.equal(clips(moving(seed=1, split="test"), 60)[0], clips(moving(split="test"), 60)[0])


def test_the_test_split_has_digits_that_are_not_trained_on() -> None:
    known = {bytes(sprite.numpy().tobytes()) for sprite in moving().digits.pixels}
    held = [sprite.numpy().tobytes() for sprite in moving(split="test").digits.pixels]
    assert len(held) == 360 and sum(each in known for each in held) <= 3


def test_all_labels_places_and_directions_are_equally_likely() -> None:
    truth = dataset("moving_digits", n=6000).truth(torch.arange(6000))
    start, step = truth.corners[:, 0, 0], truth.corners[:, 1, 0] - truth.corners[:, 0, 0]
    places = torch.bincount(9 * start[:, 0] + start[:, 1], minlength=81)
    assert places.min() > 40 and places.max() < 110  # 74 expected
    inside = ((start > 0) & (start < 8)).all(1)
    ways = torch.bincount((3 * (step[inside, 0] + 1) + step[inside, 1] + 1), minlength=9)
    assert ways[4] == 0 and ways[[0, 1, 2, 3, 5, 6, 7, 8]].min() > 380  # 454 expected


def test_of_two_digits_the_brighter_one_is_seen_and_none_is_asked_for() -> None:
    source = moving(digits=2)
    examples, labels = clips(source, 30)
    truth = source.truth(torch.arange(30))
    assert source.classes == () and (labels == -1).all() and source.straight(examples) is None
    alone = [drawn(truth.sprites[:, [i]], truth.corners[:, :, [i]], 16) for i in (0, 1)]
    assert torch.equal(examples[:, :, 0], torch.maximum(*alone))


def test_real_clips_are_straight_and_shuffled_ones_are_not() -> None:
    source = moving()
    examples, _ = clips(source, 200)
    straight = source.straight(examples)
    assert straight is not None and straight.all()
    backwards = source.straight(examples.flip(1))
    assert backwards is not None and backwards.all()  # motion has no direction in time
    mixed = source.straight(examples[:, torch.tensor([3, 0, 7, 1, 5, 2, 6, 4])])
    assert mixed is not None and mixed.float().mean() < 0.05


@pytest.mark.parametrize("frames", [3, 4, 6, 8, 16])
def test_what_stands_still_is_not_straight_however_few_frames_there_are(frames: int) -> None:
    source = moving(frames=frames)
    examples, _ = clips(source, 100)
    real, frozen = source.straight(examples), source.straight(examples[:, :1].expand_as(examples))
    assert real is not None and real.all() and frozen is not None and not frozen.any()
    black = source.straight(torch.zeros_like(examples))
    assert black is not None and not black.any()


def test_the_centre_of_brightness_is_in_pixels() -> None:
    clip = torch.zeros(1, 2, 1, 4, 6, dtype=torch.uint8)
    clip[0, 0, 0, 1, 4] = 9
    assert torch.allclose(centres(clip), torch.tensor([[[1.0, 4.0], [1.5, 2.5]]]))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": 1}, "dataset.frames=1 must be in \\[2, 256\\]"),
        ({"digits": 3}, "dataset.digits=3"),
        ({"n": 0}, "dataset.n=0 must be in"),
        ({"seed": -1}, "dataset.seed=-1 must be in"),
    ],
)
def test_what_cannot_be_made_is_told(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        dataset("moving_digits", **settings)
