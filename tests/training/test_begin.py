"""A new run from another's weights: what is taken, what is new, and what is refused."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import rows
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from diffgen.build import make_model, make_trained, restore
from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import named
from diffgen.data.clips import Clips
from diffgen.data.kinds import KINDS, Pixels
from diffgen.nets.base import DataShape
from diffgen.nets.layers import Embedding, carry_classes
from diffgen.storage import checkpoint
from diffgen.training.begin import begin
from diffgen.training.parts import Parts

Fit = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def parts_of(config: dict[str, Any], classes: list[str], size: tuple[int, ...], given: int = 0) -> Parts:
    """What `begin` looks at, of a run on data of this shape; four sides are those of clips."""
    kind = Clips() if len(size) == 4 else Pixels()
    data = {"kind": named(KINDS, kind), "size": list(size), "num_classes": len(classes), "classes": classes}
    config = {**config, "data": {**data, "augment_labels": 0, "given": given}}
    torch.manual_seed(1)
    network = make_model(config)
    emas = [SimpleNamespace(averaged=make_model(config)) for _ in range(2)]
    sampling = SimpleNamespace(trained=make_trained(config, network))
    parts = SimpleNamespace(
        began_from=[], network=network, emas=emas, config=config, sampling=sampling, model_config={"trained": {}}
    )
    return cast(Parts, parts)


@pytest.fixture
def config(compose: Callable[..., dict[str, Any]], tiny: list[str]) -> dict[str, Any]:
    return compose("train", *tiny)


def said(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_what_fits_is_taken_and_the_rest_is_new(config: dict[str, Any], tiny_run: Path) -> None:
    """Other channels, classes of which two are known by name, and no weight changed that is not said to be."""
    parts = parts_of(config, ["7", "cat", "0"], (3, 8, 8))
    fresh = {name: weight.clone() for name, weight in parts.network.state_dict().items()}
    row = begin(str(tiny_run), parts)
    theirs, ours = checkpoint.load(tiny_run).weights, parts.network.state_dict()
    new = {"stem.weight", "head.weight", "head.bias"}
    for name, weight in ours.items():
        if name != "embedding.label.weight":
            assert torch.equal(weight, fresh[name] if name in new else theirs[name]), name
    labels, known = ours["embedding.label.weight"], theirs["embedding.label.weight"]
    assert torch.allclose(labels[:, [0, 2]], known[:, [7, 0]] * math.sqrt(10 / 3))
    assert torch.equal(labels[:, 1], fresh["embedding.label.weight"][:, 1])
    assert f"{len(ours) - 3} of {len(ours)} weights" in row
    assert "at 128 images" in row and "by the names of 2 of 3 classes: 7, 0" in row
    assert "head.weight [3, 8, 3, 3] (was [1, 8, 3, 3])" in row
    assert "data.size ([1, 8, 8] there, [3, 8, 8] here)" in row


def test_whose_weights_they_were_is_noted(config: dict[str, Any], tiny_run: Path, tmp_path: Path) -> None:
    """Each data set once, the last first; of very many, or of what is no note, that it is unknown."""
    saved, parts = checkpoint.load(tiny_run), parts_of(config, ["0"], (1, 8, 8))
    digits, other = {"dataset": "digits"}, {"dataset": "mnist", "split": "all"}
    many = [{"dataset": f"{number}"} for number in range(20)]
    for before, after in (
        ([other, digits], [digits, other]),
        ("strange", [digits, {}]),
        ([other, 3], [digits, other, {}]),
        (many, [digits, *many[:7], {}]),
    ):
        told = {**saved.config, "trained": {**saved.config["trained"], "begun_from": before}}
        checkpoint.save_model(tmp_path / "ckpt", told, 1, saved.weights)
        begin(str(tmp_path / "ckpt"), parts)
        assert parts.model_config["trained"]["begun_from"] == after


def test_averages_begin_from_the_weights(config: dict[str, Any], tiny_run: Path) -> None:
    parts = parts_of(config, [], (1, 8, 8))
    assert "not used: embedding.label.bias, embedding.label.weight" in begin(str(tiny_run), parts)
    for ema in parts.emas:
        assert all(torch.equal(w, parts.network.state_dict()[name]) for name, w in ema.averaged.state_dict().items())


def test_classes_of_no_known_name_are_new_though_the_shape_fits(config: dict[str, Any], tiny_run: Path) -> None:
    parts = parts_of(config, [*"abcdefghij"], (1, 8, 8))
    fresh = parts.network.state_dict()["embedding.label.weight"].clone()
    assert "new: embedding.label.weight [8, 10]" in begin(str(tiny_run), parts)
    assert torch.equal(parts.network.state_dict()["embedding.label.weight"], fresh)


def test_a_known_class_adds_to_the_embedding_what_it_did() -> None:
    theirs, ours = (Embedding(8, 8, DataShape((1, 8, 8), classes)) for classes in (5, 3))
    label = carry_classes(cast(nn.Linear, ours.label).weight.detach(), cast(nn.Linear, theirs.label).weight, [(2, 4)])
    ours.load_state_dict({**theirs.state_dict(), "label.weight": label})
    condition = torch.tensor([0.3, 0.7])
    a, b = theirs(condition, torch.tensor([4, -1])), ours(condition, torch.tensor([2, -1]))
    assert torch.allclose(a, b, atol=1e-6)


def test_another_meaning_of_the_weights_is_said(
    config: dict[str, Any], compose: Any, tiny: list[str], tiny_run: Path
) -> None:
    other = compose("train", *tiny, "schedule=cosine", "parameterization=v")
    row = begin(str(tiny_run), parts_of(other, [], (1, 8, 8)))
    assert (
        "another parameterization.name (flow there, v here), schedule.name (rectified_flow there, cosine here)" in row
    )


def test_a_network_that_does_not_fit_is_refused(
    fit: Fit, tmp_path: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made, and nothing begins from scratch in silence."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"of another network: .* model.channels \(8 there, 16 here\)"):
        fit(tmp_path / "run", f"train.init={tiny_run}", "model.channels=16")
    with pytest.raises(CheckpointError, match=r"'nothing' does not exist"):
        fit(tmp_path / "run", "train.init=nothing")
    with pytest.raises(UsageError, match=r"train.init is empty"):
        fit(tmp_path / "run", "train.init=")
    with pytest.raises(UsageError, match=r"train.init='x' begins a new run and train.resume='y' goes on with one"):
        fit(tmp_path / "run", "train.init=x", "train.resume=y")
    with pytest.raises(UsageError, match=r"is a folder of runs: give one of \[.*tiny"):
        fit(tmp_path / "run", f"train.init={tiny_run.parent}")
    assert list(tmp_path.iterdir()) == []


def test_another_kind_of_data_is_refused(config: dict[str, Any], tiny_run: Path) -> None:
    parts = parts_of(config, [], (1, 8, 8))
    vectors = SimpleNamespace(kind=SimpleNamespace(unit="vectors", moving=False), shape=DataShape((2,)), classes=())
    cast(Any, parts).sampling = SimpleNamespace(trained=vectors)
    with pytest.raises(CheckpointError, match="made for images of 1x8x8, and this run's are vectors of 2"):
        begin(str(tiny_run), parts)


def test_clips_begin_from_pictures(config: dict[str, Any], tiny_run: Path) -> None:
    """All that a network of pictures has is taken, and what it was not told of adds nothing."""
    parts = parts_of(config, [*"0123456789"], (1, 3, 8, 8), given=4)
    row = begin(str(tiny_run), parts)
    theirs, ours = checkpoint.load(tiny_run).weights, parts.network.state_dict()
    for name, weight in theirs.items():
        assert torch.equal(ours[name][:, :1] if name == "stem.weight" else ours[name], weight), name
    assert (ours["stem.weight"][:, 1:] == 0).all()
    assert all(".time." in name for name in ours if name not in theirs)
    assert f"{len(theirs)} of {len(ours)} weights" in row
    assert "stem.weight takes in what is known of x0 from 0 on" in row and "new: encoder.0.time" in row
    assert "another data.kind.name (pixels there, video here), data.size ([1, 8, 8] there, [1, 3, 8, 8] here)" in row


def test_clips_begin_as_the_pictures_they_are_made_of(config: dict[str, Any], tiny_run: Path) -> None:
    parts = parts_of(config, [*"0123456789"], (1, 3, 8, 8), given=4)
    begin(str(tiny_run), parts)
    x, t, label = torch.randn(2, 1, 3, 8, 8), torch.tensor([0.2, 0.8]), torch.tensor([3, -1])
    clips = parts.network(torch.cat([x, torch.ones(2, 4, 3, 8, 8)], 1), t, label)
    pictures = restore(checkpoint.load(tiny_run)).denoiser.model
    each = torch.stack([pictures(frame, t, label) for frame in x.unbind(2)], 2)
    assert each.std() > 0.01 and torch.allclose(clips, each, atol=1e-3)


def test_a_run_that_is_told_begins_from_one_that_is_not(config: dict[str, Any], tmp_path: Path) -> None:
    """Transformers of clips; back again, and from other channels, what takes x in is new, though its shape may fit."""
    config = {**config, "model": rows.row("model", "dit_tiny", width=32, depth=1, patch_time=1)}
    plain, told = (parts_of(config, [], (1, 2, 8, 8), given) for given in (0, 4))
    colour = parts_of(config, [], (5, 2, 8, 8))
    for name, parts in (("plain", plain), ("told", told), ("colour", colour)):
        checkpoint.save_model(tmp_path / name, parts.config, 1, parts.network.state_dict())
    stem = "ends.stem.0.weight"
    known = plain.network.state_dict()[stem].clone()
    assert f"{stem} takes in what is known of x0 from 0 on" in begin(str(tmp_path / "plain"), told)
    taken = told.network.state_dict()[stem]
    assert torch.equal(taken[:, : known.shape[1]], known) and (taken[:, known.shape[1] :] == 0).all()
    assert f"new: {stem} [32, 80], " in begin(str(tmp_path / "colour"), told)
    assert f"new: {stem} [32, 16] (was [32, 80])" in begin(str(tmp_path / "told"), plain)


@pytest.mark.fault(
    "a run begun from another's weights is interrupted",
    "the same command goes on with it, bit for bit; they are not read",
)
def test_a_run_begun_from_weights_goes_on_without_them(
    fit: Fit, tmp_path: Path, tiny_run: Path, capsys: Capture
) -> None:
    source, constant = tmp_path / "source", "lr_schedule.decay=constant"
    shutil.copytree(tiny_run, source)
    settings = [constant, "ema.profile=power", f"train.init={source}"]
    through = fit(tmp_path / "through", *settings)
    row = said(capsys)
    assert "state new run" in row and "init " in row and "weights (" in row
    fit(tmp_path / "halves", *settings, "train.images=64")
    shutil.rmtree(source)
    capsys.readouterr()
    halves = fit(tmp_path / "halves", *settings)
    again = said(capsys)
    assert "resumed at 64 images" in again and "init " not in again
    for file in ("model", "model-0.100", "state"):
        a, b = (run / "checkpoints" / "00000128" / f"{file}.safetensors" for run in (through, halves))
        assert a.read_bytes() == b.read_bytes(), file
    assert checkpoint.load(halves).config["trained"]["begun_from"] == [{"dataset": "digits"}]
    assert "begun_from" not in checkpoint.load(tiny_run).config["trained"]
    scratch = fit(tmp_path / "scratch", constant, "ema.profile=power")
    a, b = (load_file(run / "checkpoints" / "00000128" / "model.safetensors") for run in (through, scratch))
    assert any(not torch.equal(a[name], b[name]) for name in a)


def test_other_weights_to_begin_from_are_not_read_on_the_way(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    capsys.readouterr()
    fit(run, "train.images=64", "train.init=elsewhere")
    assert "train.init: null -> elsewhere (not read: the run goes on)" in said(capsys)


def test_pictures_of_other_classes_and_channels(fit: Fit, tmp_path: Path, tiny_run: Path, capsys: Capture) -> None:
    for number in range(32):
        pixels = np.full((8, 8, 3), 255 * (number % 2), dtype=np.uint8)
        folder = tmp_path / "pictures" / ("black", "white")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    settings = ["dataset=image_folder", f"dataset.root={tmp_path / 'pictures'}", "dataset.size=8"]
    settings += ["method=flow", "train.images=64"]
    fit(tmp_path / "run", *settings, f"train.init={tiny_run}")
    row = said(capsys)
    assert "new: embedding.label.weight [8, 2] (was [8, 10]), stem.weight [8, 3, 3, 3]" in row
    assert "another data.size ([1, 8, 8] there, [3, 8, 8] here)" in row
