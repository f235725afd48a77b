"""The table of extractors: what a row gives, what it caches, and what it says when something is missing."""

import hashlib
import pickle
import sys
from pathlib import Path

import pytest
import torch
from contracts import check_extractor
from safetensors.torch import load_file, save_file

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import build
from diffgen.data import Images
from diffgen.data.base import Part
from diffgen.data.digits import digits
from diffgen.data.images import to_float
from diffgen.data.splits import Splits
from diffgen.evaluation import classifier, extractors, turns
from diffgen.evaluation.extractors import EXTRACTORS, Extractor
from diffgen.storage import checkpoint

CPU = torch.device("cpu")
SPLITS = Splits.of(digits(split="train"), digits(split="test"))
CLASSIFIER = {"name": "classifier", "width": 4, "epochs": 1, "seed": 0}


def extractor(config: dict, cache: Path) -> Extractor:
    return build(EXTRACTORS, config, SPLITS, cache, CPU)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_the_classifier_is_trained_once(cache, monkeypatch):
    first = extractor(CLASSIFIER, cache)
    monkeypatch.setattr(classifier, "train_classifier", None)  # a second training would fail
    second = extractor(CLASSIFIER, cache)
    features, logits = second(SPLITS.test.pixels)
    check_extractor(second, "classifier", SPLITS.test.pixels[:20])
    assert second.dim == 16 and logits.shape == (360, 10)
    assert second.hash == first.hash
    assert torch.equal(first(SPLITS.test.pixels)[0], features)


def test_data_without_labels_needs_another_extractor(cache):
    images = Images(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.full((4,), -1), ())
    with pytest.raises(UsageError, match=r"extractor.name=classifier is trained on labels.*no classes.*inception"):
        build(EXTRACTORS, CLASSIFIER, Splits.of(images, images), cache, CPU)


def test_a_checkpoint_is_no_classifier(tiny_model):
    """And nobody is told to delete it."""
    with pytest.raises(CheckpointError, match="another network$"):
        extractor({"name": "safetensors", "weights": str(checkpoint.find_model(tiny_model))}, tiny_model)


def test_other_data_has_a_classifier_of_its_own(cache):
    """Also where shape and classes are the same, as two folders of pictures may have them."""
    images = Images(SPLITS.train.pixels[:64].flip(3), SPLITS.train.labels[:64], SPLITS.train.classes)
    other = build(EXTRACTORS, {**CLASSIFIER, "epochs": 1}, Splits.of(images, images), cache, CPU)
    again = build(EXTRACTORS, {**CLASSIFIER, "epochs": 1}, SPLITS, cache, CPU)
    assert other.hash != again.hash
    assert other.facts["images"] == 64 and again.facts["images"] == len(SPLITS.train)


def test_a_classifier_of_other_classes_is_refused(cache):
    images = Images(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    for path in cache.glob("classifier-*.safetensors"):
        name = f"classifier-{images.digest[:12]}-" + path.name.split("-", 2)[2]
        (cache / name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="another data set"):
        build(EXTRACTORS, CLASSIFIER, Splits.of(images, images), cache, CPU)


def test_its_file_tells_its_accuracy(cache):
    facts = extractor(CLASSIFIER, cache).facts
    _, logits = extractor(CLASSIFIER, cache)(SPLITS.test.pixels)
    right = (logits.argmax(1) == SPLITS.test.labels).double().mean()
    assert facts["test_accuracy"] == pytest.approx(float(right))


def test_another_recipe_is_another_file(cache, tmp_path):
    one, other = extractor(CLASSIFIER, cache), extractor({**CLASSIFIER, "seed": 1}, tmp_path)
    assert one.hash != other.hash


def test_features_do_not_depend_on_the_batch(cache):
    """The network is in evaluation mode: batch norm uses what it learned."""
    small = extractor(CLASSIFIER, cache)
    whole, _ = small(SPLITS.test.pixels[:40])
    parts = torch.cat([small(part)[0] for part in SPLITS.test.pixels[:40].split(7)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)


def test_a_file_of_ones_own(cache, tmp_path):
    ours = extractor(CLASSIFIER, cache)
    save_file(load_file(next(cache.glob("*.safetensors"))), tmp_path / "mine.safetensors")
    mine = extractor({"name": "safetensors", "weights": str(tmp_path / "mine.safetensors")}, tmp_path)
    check_extractor(mine, "safetensors", SPLITS.test.pixels[:20])
    assert mine.dim == ours.dim


def test_images_of_other_channels_are_refused(cache):
    with pytest.raises(UsageError, match="takes images of 1 channels, and these have 3"):
        extractor(CLASSIFIER, cache)(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


# --- without labels -----------------------------------------------------------------------------------------------

ROTATION = {"name": "rotation", "width": 4, "epochs": 1, "seed": 0}


def unlabelled(images: Images) -> Images:
    return Images(images.pixels, torch.full((len(images),), -1), ())


def test_turns_are_those_of_the_pictures():
    """Of what is no square, those of its middle; entries may come in any order."""
    wide = Images(torch.arange(2 * 4 * 6).reshape(2, 1, 4, 6).byte(), torch.full((2,), -1), ())
    source = turns.InFourTurns(wide)
    (pixels, labels), (last, _) = source.batches(iter([torch.tensor([4, 1, 7]), torch.tensor([2])]), CPU)
    middle = wide.pixels[:, :, :, 1:5]
    assert (len(source), labels.tolist()) == (8, [0, 1, 3])
    for found, picture, quarters in zip([*pixels, *last], [1, 0, 1, 0], [0, 1, 3, 2], strict=True):
        assert torch.equal(found, middle[picture].rot90(quarters, (-2, -1)))


def test_the_rotation_extractor_needs_no_labels(cache, monkeypatch):
    bare = Splits.of(unlabelled(SPLITS.train), unlabelled(SPLITS.test))
    made = build(EXTRACTORS, ROTATION, bare, cache, CPU)
    check_extractor(made, "rotation", SPLITS.test.pixels[:20])
    assert made.facts["test_accuracy"] > 0.4 and made(SPLITS.test.pixels[:2])[1] is None
    monkeypatch.setattr(classifier, "train_classifier", None)  # a second training would fail
    assert build(EXTRACTORS, ROTATION, bare, cache, CPU).hash == made.hash


def test_auto_is_the_classifier_where_there_are_labels(cache):
    auto = {**CLASSIFIER, "name": "auto"}
    assert build(EXTRACTORS, auto, SPLITS, cache, CPU).name == "classifier"
    assert build(EXTRACTORS, auto, Splits.of(unlabelled(SPLITS.train), None), cache, CPU).name == "rotation"


def test_accuracy_is_told_of_the_images_that_there_are(cache):
    """Also by a network that was trained before others were held out."""
    on_train = build(EXTRACTORS, CLASSIFIER, Splits.of(SPLITS.train, None), cache, CPU)
    assert "test_accuracy" not in on_train.facts and 0 < on_train.facts["train_accuracy"] <= 1
    on_test = build(EXTRACTORS, CLASSIFIER, SPLITS, cache, CPU)
    assert "train_accuracy" not in on_test.facts and 0 < on_test.facts["test_accuracy"] <= 1
    assert on_train.hash == on_test.hash


def test_pixels_are_averaged_to_thumbnails(tmp_path):
    small = build(EXTRACTORS, {"name": "pixels"}, SPLITS, tmp_path, CPU)
    check_extractor(small, "pixels", SPLITS.test.pixels[:20])
    assert torch.equal(small(SPLITS.test.pixels[:3])[0], to_float(SPLITS.test.pixels[:3]).flatten(1))
    large = extractors.PlainPixels((3, 50, 70))
    pixels = torch.randint(256, (2, 3, 50, 70), dtype=torch.uint8)
    assert large(pixels)[0].shape == (2, large.dim) == (2, 3 * 17 * 24)
    torch.testing.assert_close(large(pixels)[0][0, 0], to_float(pixels)[0, 0, :3, :3].mean())


def test_streamed_pictures_are_known_by_some_of_them():
    """Two folders with as many pictures have different networks."""
    parts = [Part(SPLITS.train, torch.arange(start, start + 100)) for start in (0, 1, 0)]
    first, second, again = map(classifier.identity, parts)
    assert first == again != second


# --- inception ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as the published one, with random weights."""
    port = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    network = port.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(port, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(network, "load_state_dict", lambda *_: None)
        weights = network("inception", ["2048"]).state_dict()
    path = tmp_path_factory.mktemp("weights") / extractors.INCEPTION
    torch.save(weights, path)
    return path


@pytest.fixture
def published(random_inception: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, taken for the published file."""
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(random_inception.read_bytes()).hexdigest())
    return random_inception


def test_inception_is_torch_fidelitys_network(published):
    port = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    ours = extractor({"name": "inception", "weights": None}, published.parent / "digits")
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    features, logits = ours(pixels)
    check_extractor(ours, "inception", pixels)
    reference = port.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], str(published))
    with torch.inference_mode():
        expected = reference(pixels)
    assert torch.equal(features, expected[0]) and torch.equal(logits, expected[1])


def test_inception_sees_grey_as_rgb(published):
    ours = extractor({"name": "inception", "weights": str(published)}, published.parent)
    grey = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    assert torch.equal(ours(grey)[0], ours(grey.repeat(1, 3, 1, 1))[0])
    with pytest.raises(UsageError, match="these have 4"):
        ours(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def assert_tells_all(refusal: pytest.ExceptionInfo, path: Path) -> None:
    """One sentence: the file, its checksum, where to put it, the pip line, and what does without."""
    said = str(refusal.value)
    assert "\n" not in said
    url, checksum = extractors.INCEPTION_URL, extractors.INCEPTION_SHA256
    for needed in (str(path), url, checksum, "pip install 'diffgen[eval]'", "extractor=classifier needs no download"):
        assert needed in said


def test_other_bytes_are_not_opened(random_inception):
    with pytest.raises(CheckpointError, match="is not the published file") as refusal:
        extractor({"name": "inception", "weights": str(random_inception)}, random_inception.parent)
    assert_tells_all(refusal, random_inception)


def test_missing_weights_and_no_network(tmp_path, monkeypatch):
    pytest.importorskip("torch_fidelity")

    def offline(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(CheckpointError, match=r"cannot be downloaded \(no route to host\)") as refusal:
        extractor({"name": "inception", "weights": None}, tmp_path / "digits")
    assert_tells_all(refusal, tmp_path / extractors.INCEPTION)
    with pytest.raises(CheckpointError, match="nowhere.pth is missing"):
        extractor({"name": "inception", "weights": "nowhere.pth"}, tmp_path)


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UsageError, match="without torch-fidelity") as refusal:
        extractor({"name": "inception", "weights": None}, tmp_path / "digits")
    assert_tells_all(refusal, tmp_path / extractors.INCEPTION)


class Bomb:
    def __reduce__(self):
        return (print, ("code ran",))


def test_a_pickle_is_read_for_tensors_alone(tmp_path, capsys):
    """Even with a library that asks for everything."""
    torch.save(Bomb(), tmp_path / "bomb.pth")
    with extractors._tensors_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "bomb.pth", weights_only=False)
    assert "code ran" not in capsys.readouterr().out
    torch.load(tmp_path / "bomb.pth", weights_only=False)
    assert "code ran" in capsys.readouterr().out, "the test can fail"
