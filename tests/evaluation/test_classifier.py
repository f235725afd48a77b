"""The classifier that diffgen trains: how well, how repeatably, and what its files are checked for."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffgen.core.errors import CheckpointError, DataError, UsageError
from diffgen.core.randomness import generator
from diffgen.data import Images
from diffgen.data.digits import digits
from diffgen.data.images import to_float
from diffgen.evaluation import classifier
from diffgen.evaluation.classifier import (
    Classifier,
    accuracy,
    class_agreement,
    classification_accuracy_score,
    load_classifier,
    save_classifier,
    shift,
    train_classifier,
)

CPU = torch.device("cpu")
TRAIN, TEST = digits(split="train"), digits(split="test")
RECIPE = {"width": 12, "epochs": 10, "seed": 0, "device": CPU}


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return train_classifier(TRAIN, **RECIPE)


def test_it_learns_the_digits(trained):
    assert accuracy(trained, TEST, CPU) > 0.95


def test_the_seed_decides_all_weights():
    one, again, other = (
        train_classifier(TRAIN, width=4, epochs=1, seed=seed, device=CPU).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(TRAIN, width=4, epochs=1, seed=0, device=CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("before", [True, False])
def test_cudnn_is_deterministic_while_one_is_trained(monkeypatch: pytest.MonkeyPatch, before: bool):
    """And it looks for no faster kernels meanwhile, which may be others each time."""
    cudnn, seen = torch.backends.cudnn, []

    def watched(x, rng):
        seen.append((cudnn.enabled, cudnn.deterministic, cudnn.benchmark))
        return shift(x, rng)

    monkeypatch.setattr(classifier, "shift", watched)
    with cudnn.flags(enabled=True, deterministic=before, benchmark=not before):
        train_classifier(TRAIN, width=2, epochs=1, seed=0, device=CPU)
        assert (cudnn.deterministic, cudnn.benchmark) == (before, not before)
    assert set(seen) == {(True, True, False)}


@pytest.mark.parametrize("sides", [(1, 1), (7, 9), (28, 28), (32, 64)])
def test_any_size_of_image_has_features(sides):
    model = Classifier(3, 10, 4).eval()
    assert model.features(torch.zeros(2, 3, *sides)).shape == (2, 16)
    assert model(torch.zeros(2, 3, *sides)).shape == (2, 10)


def test_shifts_move_whole_images_and_fill_with_black():
    x = torch.zeros(50, 2, 16, 16)
    x[:, :, 5, 7] = 1
    moved = shift(x, generator("cpu", 0, "test"))
    rows, columns = (moved[:, 0] == 1).nonzero()[:, 1:].T
    assert set(rows.tolist()) == {3, 4, 5, 6, 7} and set(columns.tolist()) == {5, 6, 7, 8, 9}
    assert torch.equal(moved[:, 0], moved[:, 1])
    assert set(moved.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_unlabelled_images_cannot_train_one():
    images = Images(TRAIN.pixels[:8], torch.full((8,), -1), ())
    with pytest.raises(DataError, match="two classes"):
        train_classifier(images, width=4, epochs=1, seed=0, device=CPU)


@pytest.mark.parametrize(("key", "value"), [("width", 0), ("epochs", 0)])
def test_numbers_out_of_range_are_refused(key, value):
    with pytest.raises(UsageError, match=f"{key}={value}"):
        train_classifier(TRAIN, **{**RECIPE, key: value})


def test_agreement_by_class():
    logits = 5.0 * torch.eye(4)[torch.tensor([0, 0, 1, 2, 2, 1])]
    found = class_agreement(logits, torch.tensor([0, 0, 1, 1, 2, 2]))
    torch.testing.assert_close(found, torch.tensor([1, 0.5, 0.5, torch.nan], dtype=torch.float64), equal_nan=True)


def test_labels_that_lie_cost_the_accuracy_score():
    half = Images(TRAIN.pixels, torch.where(TRAIN.labels == 3, 8, TRAIN.labels), TRAIN.classes)
    honest, lying = (classification_accuracy_score(images, TEST, **RECIPE) for images in (TRAIN, half))
    threes = float((TEST.labels == 3).double().mean())
    assert lying == pytest.approx(honest - threes, abs=0.04)


# --- files --------------------------------------------------------------------------------------------------------


def test_a_saved_classifier_comes_back(trained, tmp_path: Path):
    path = tmp_path / "made" / "classifier.safetensors"
    save_classifier(trained, path, {"test_accuracy": 0.9})
    model, checksum, facts = load_classifier(path)
    x = to_float(TEST.pixels)
    assert torch.equal(model(x), trained(x))
    assert facts == {"test_accuracy": 0.9}
    assert len(checksum) == 64 and not model.training


def test_a_plain_file_has_the_same_hash(trained, tmp_path: Path):
    save_classifier(trained, tmp_path / "ours.safetensors", {"test_accuracy": 0.9})
    save_file(load_file(tmp_path / "ours.safetensors"), tmp_path / "plain.safetensors")
    ours, plain = (load_classifier(tmp_path / f"{name}.safetensors") for name in ("ours", "plain"))
    assert plain[1] == ours[1]
    assert plain[2] == {}


def test_a_flipped_byte_is_noticed(trained, tmp_path: Path):
    path = tmp_path / "classifier.safetensors"
    save_classifier(trained, path, {})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(path)


def test_other_files_are_refused_in_a_sentence(trained, tmp_path: Path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(path)
    path.write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_classifier(path)
    save_file({"a": torch.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="another network"):
        load_classifier(path)
    weights = {key: value.contiguous() for key, value in trained.state_dict().items()}
    save_file({**weights, "convs.2.weight": torch.zeros(1, 1, 3, 3)}, path)
    with pytest.raises(CheckpointError, match=r"convs\.2\.weight"):
        load_classifier(path)
