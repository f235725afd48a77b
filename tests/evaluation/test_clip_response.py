"""Metrics of clips answer to what is wrong with clips: each is made worse by the fault that it is for."""

from pathlib import Path

import pytest
import torch
from rows import dataset
from torch import Tensor

from diffgen.core.eval_settings import UNASKED
from diffgen.data.splits import Splits
from diffgen.evaluation import clip_metrics, clips
from diffgen.evaluation.clips import Films
from diffgen.evaluation.extractors import classifier

N = 200


class Shades:
    """An extractor that needs no training: coarse pixels, and as logits how like each class's mean they are."""

    name, hash, dim = "shades", "0", 16

    def __init__(self, means: Tensor) -> None:
        self.means = means

    def __call__(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        coarse = torch.nn.functional.avg_pool2d(frames.float(), 4).flatten(1)
        return coarse, -torch.cdist(_placed(frames), self.means)


def _placed(frames: Tensor) -> Tensor:
    """Each frame moved to the upper left corner."""
    found = []
    for frame in frames[:, 0].float():
        rows, columns = ((frame.sum(axis) > 0).int().argmax() for axis in (1, 0))
        found.append(torch.roll(frame, (-int(rows), -int(columns)), (0, 1)).flatten())
    return torch.stack(found)


@pytest.fixture(scope="module")
def films() -> Films:
    splits = Splits.of(dataset("moving_digits", n=2000), dataset("moving_digits", n=2000, split="test"))
    frames = clips.in_frames(splits).train
    placed = _placed(frames.stored)
    means = torch.stack([placed[frames.labels == label].mean(0) for label in range(10)])
    return Films(splits, Shades(means), N)


def figures(films: Films, examples: Tensor, labels: Tensor) -> dict[str, float]:
    return clips.figures(UNASKED["clips"], films.look(clips.in_batches(examples, labels)), films.real)


@pytest.fixture(scope="module")
def real(films: Films) -> tuple[Tensor, Tensor, dict[str, float]]:
    parts = zip(*clips.some(dataset("moving_digits", n=3000, seed=5), N), strict=True)
    examples, labels = map(torch.cat, parts)
    return examples, labels, figures(films, examples, labels)


def test_real_clips_pass_every_check(real: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    found = real[2]
    assert found["straight"] == 1 and found["shape"] > 0.999 and found["identity"] == 1
    assert found["label"] > 0.7  # by the nearest mean


def test_shuffled_frames_are_worse_by_every_metric_that_sees_time(
    films: Films, real: tuple[Tensor, Tensor, dict[str, float]]
) -> None:
    examples, labels, before = real
    found = figures(films, clip_metrics.shuffled(examples, 0), labels)
    assert found["fd_pairs"] > 3 * before["fd_pairs"]
    assert found["motion"] > 3 * before["motion"]
    assert found["straight"] < 0.2
    assert found["fd_frames"] == pytest.approx(before["fd_frames"], rel=1e-6)  # which is blind to time


def test_pairs_see_shuffling_through_a_classifier_that_knows_a_digit_wherever_it_is(
    films: Films, real: tuple[Tensor, Tensor, dict[str, float]], tmp_path: Path
) -> None:
    frames = clips.in_frames(films.splits)
    trained = classifier(frames, tmp_path, torch.device("cpu"), width=8, epochs=3, seed=0)
    judge = Films(films.splits, trained, N)
    right, wrong = (figures(judge, each, real[1])["fd_pairs"] for each in (real[0], clip_metrics.shuffled(real[0], 0)))
    assert wrong > 5 * right


def test_two_digits_spliced_into_one_clip_are_no_identity(
    films: Films, real: tuple[Tensor, Tensor, dict[str, float]]
) -> None:
    examples, labels, before = real
    spliced = torch.cat([examples[:, :3], examples.roll(1, 0)[:, 3:]], 1)
    found = figures(films, spliced, labels)
    assert found["identity"] < 0.4 and found["shape"] < 0.95 and found["straight"] < 0.3
    assert found["label"] < 0.8 * before["label"] and found["fd_pairs"] > before["fd_pairs"]


def test_frozen_clips_do_not_move(films: Films, real: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    examples, labels, before = real
    found = figures(films, examples[:, :1].expand_as(examples), labels)
    assert found["motion"] > 5 * before["motion"] and found["fd_pairs"] > 3 * before["fd_pairs"]
    assert found["straight"] == 0


def test_wrong_labels_and_noise_are_found(films: Films, real: tuple[Tensor, Tensor, dict[str, float]]) -> None:
    examples, labels, before = real
    assert figures(films, examples, (labels + 1) % 10)["label"] < 0.2
    noisy = (examples.int() + torch.randint(0, 60, examples.shape)).clamp(max=255).to(torch.uint8)
    found = figures(films, noisy, labels)
    assert found["fd_frames"] > 3 * before["fd_frames"] and found["motion"] > 3 * before["motion"]


# --- pure functions -----------------------------------------------------------------------------------------------


def test_wasserstein_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = torch.randn(50), 1.5 * torch.randn(70) + 1
    assert clip_metrics.wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a.numpy(), b.numpy()), rel=1e-6)
    assert clip_metrics.wasserstein(a, a) == 0 and clip_metrics.wasserstein(a, a + 3) == pytest.approx(3, rel=1e-5)


def test_motion_is_in_grey_levels() -> None:
    clip = torch.tensor([0, 10, 10, 40], dtype=torch.uint8)[None, :, None, None, None].expand(1, 4, 1, 2, 2)
    assert clip_metrics.motion(clip).tolist() == [[10, 0, 30]]


def test_changes_are_absolute_differences() -> None:
    clip = torch.tensor([0, 200, 10, 255], dtype=torch.uint8)[None, :, None, None, None]
    assert clip_metrics.changes(clip).flatten().tolist() == [200, 190, 245]


def test_constancy_is_one_for_what_only_moves() -> None:
    clip = torch.zeros(2, 3, 1, 6, 6, dtype=torch.uint8)
    for t in range(3):
        clip[0, t, 0, t : t + 2, 2 * t : 2 * t + 2] = torch.tensor([[9, 5], [1, 7]])
        clip[1, t, 0, t, 0] = 9
        clip[1, t, 0, 0, t] = 9  # two that part
    one, parting = clip_metrics.constancy(clip)
    assert one == pytest.approx(1, abs=1e-5) and parting < 0.9
    assert clip_metrics.constancy(torch.zeros_like(clip)).tolist() == [0, 0]
