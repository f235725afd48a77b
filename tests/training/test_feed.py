"""What clips with known frames are learned from: noisier times, and mostly without a label."""

import conftest
import pytest
import torch
from rows import schedule

from diffgen.build import make_splits
from diffgen.core.settings import section
from diffgen.data.base import Stored
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.times import uniform
from diffgen.objectives import Batch, Denoise
from diffgen.training.feed import Feed

N = 4096


def fed(*settings: str) -> tuple[Batch, Schedule]:
    """A batch of clips whose times are uniform."""
    small = ("dataset=moving_digits", f"dataset.n={N}", "dataset.frames=4", f"train.batch_size={N}")
    config = conftest.compose_config("train", [*small, *settings])
    clips, path = make_splits(config).train, schedule("rectified_flow")
    feed = Feed(section(config, "train"), clips, path, uniform, Denoise(), clips.shape.size, slice(0, N))
    stored: Stored = next(clips.batches(iter([torch.arange(N)]), torch.device("cpu")))
    return feed.batch(3, stored), path


@pytest.mark.parametrize("stratified", [True, False])
def test_clips_with_known_frames_are_noisier(*, stratified: bool) -> None:
    """The later of two uniform times is below x in x^2 of the cases; that of other clips in x."""
    batch, path = fed("train.known_frames=0.5", f"train.stratified_times={stratified}")
    assert batch.known is not None
    some, t = batch.known.flatten(1).any(1), (batch.t - path.t_min) / (path.t_max - path.t_min)
    assert some.float().mean().item() == pytest.approx(0.5, abs=0.03)
    for x in (0.3, 0.6, 0.9):
        assert (t[~some] < x).float().mean().item() == pytest.approx(x, abs=0.04)
        assert (t[some] < x).float().mean().item() == pytest.approx(x**2, abs=0.04)


def test_clips_with_known_frames_are_mostly_without_a_label() -> None:
    batch, _ = fed("train.known_frames=0.5", "train.label_dropout=0.1")
    assert batch.known is not None
    some, none = batch.known.flatten(1).any(1), batch.label < 0
    assert none[some].float().mean().item() == pytest.approx(0.8, abs=0.03)
    assert none[~some].float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_without_known_frames_times_are_as_they_are() -> None:
    batch, path = fed("train.known_frames=0")
    assert batch.known is None
    t = (batch.t - path.t_min) / (path.t_max - path.t_min)
    assert (t < 0.5).float().mean().item() == pytest.approx(0.5, abs=0.03)
