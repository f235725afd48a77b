"""What may be called held out, which data set a run is judged by, and how classes are matched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffgen.core.errors import CheckpointError, DataError
from diffgen.data.digits import digits
from diffgen.data.splits import Splits
from diffgen.evaluation import held_out
from diffgen.evaluation.held_out import check_apart, judge, kept_apart
from diffgen.storage import checkpoint

Command = Callable[..., Any]
OF_PICTURES = ["dataset=image_folder", "dataset.channels=1", "train.images=16", "train.checkpoint_every=16"]
MODEL = ["metrics=bits,denoising", "n=4"]


def pictures(folder: Path, numbers: range, *, named: bool = False) -> Path:
    """Digits as PNG files, in sub-folders called a, b, ... if they are to be named."""
    data = digits(split="train")
    for i in numbers:
        path = folder / ("abcdefghij"[int(data.labels[i])] if named else "") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels[i, 0].numpy()).save(path)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures") / "all", range(40))


@pytest.fixture(scope="module")
def whole(fit: Callable[..., Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained on a folder whole. Read only."""
    return fit(tmp_path_factory.mktemp("runs") / "whole", *OF_PICTURES, f"dataset.root={folder}")


@pytest.fixture(scope="module")
def share(fit: Callable[..., Path], folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that kept a fifth of it apart. Read only."""
    told = [*OF_PICTURES, f"dataset.root={folder}", "dataset.held_out=0.2", "dataset.held_out_seed=3"]
    return fit(tmp_path_factory.mktemp("runs") / "share", *told)


def row(folder: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "results.jsonl").read_text().splitlines()[-1])
    return found


def test_training_images_are_called_so(command: Command, whole: Path) -> None:
    said = command("eval", f"ckpt={whole}", *MODEL, "out=out")
    assert said.code == 0, said.err
    found = row()
    assert (found["held_out"], found["bits_of"], found["training_images"]) == (0, "train", 40)
    assert not [key for key in found if "test" in key] and found["denoising"][0].keys() == {"nsr", "train"}
    assert "bits/dim, training images" in said.out and "denoising error, training images" in said.out
    assert "none held out (dataset.held_out=0.1" in said.out and "no images are held out: figures" in said.out
    assert "held-out images" not in said.out


def test_a_share_is_never_trained_on(command: Command, share: Path) -> None:
    said = command("eval", f"ckpt={share}", *MODEL, "out=out")
    assert said.code == 0, said.err
    found = row()
    assert (found["held_out"], found["bits_of"], found["training_images"]) == (8, "test", 32)
    assert {"denoising_train", "denoising_test"} <= found.keys()
    assert "32 training images, 8 held out, never trained on" in said.out


@pytest.mark.parametrize("own", ["held_out=0.3", "held_out_seed=1"])
def test_another_share_is_refused(command: Command, share: Path, own: str) -> None:
    said = command("eval", f"ckpt={share}", f"dataset.{own}", *MODEL, "out=out")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "ckpt was trained with dataset.held_out=0.2, dataset.held_out_seed=3" in said.err
    assert not Path("out").exists()


def test_a_share_of_what_was_trained_on_is_refused(command: Command, whole: Path, tmp_path: Path) -> None:
    """Also where the checkpoint stands alone."""
    shutil.copy(checkpoint.find_model(whole), tmp_path / "alone.safetensors")
    said = command("eval", f"ckpt={whole}", "dataset.held_out=0.2", *MODEL, "out=out")
    alone = ["dataset.root=x", "dataset.channels=1", "dataset.held_out=0.2"]
    for each in (said, command("eval", "ckpt=alone.safetensors", *alone, *MODEL, "out=out")):
        assert each.code == 2 and "ckpt was trained with nothing held out" in each.err


def test_a_checkpoint_that_stands_alone_knows_its_share(command: Command, share: Path, folder: Path) -> None:
    shutil.copy(checkpoint.find_model(share), "alone.safetensors")
    here = ["ckpt=alone.safetensors", "dataset.channels=1", f"dataset.root={folder}"]
    assert command("eval", *here, *MODEL, "out=out").code == 0
    assert (row()["held_out"], row()["training_images"]) == (8, 32)


def test_the_share_of_other_pictures_is_refused(command: Command, share: Path, folder: Path) -> None:
    """With one more picture the choice falls on others, some of which were trained on."""
    shutil.copytree(folder, "more")
    pictures(Path("more"), range(50, 51))
    said = command("eval", f"ckpt={share}", "dataset.root=more", *MODEL, "out=out")
    assert (said.code, said.err.count("\n")) == (3, 1)
    assert "are not those that ckpt was trained on" in said.err


def test_another_folder_may_be_held_out(command: Command, whole: Path) -> None:
    """And pictures of it that are in both are counted."""
    pictures(Path("others"), range(36, 46))
    said = command("eval", f"ckpt={whole}", "dataset.held_out=others", *MODEL, "out=out")
    assert said.code == 0, said.err
    assert (row()["held_out"], row()["held_out_repeated"], row()["bits_of"]) == (10, 4, "test")
    assert "10 held out, 4 of them with the pixels of a training image" in said.out


def test_training_images_in_another_folder_are_refused(command: Command, whole: Path) -> None:
    pictures(Path("again"), range(10))
    said = command("eval", f"ckpt={whole}", "dataset.held_out=again", *MODEL, "out=out")
    assert (said.code, "all 10 held-out images are training images too" in said.err) == (3, True)


def test_the_splits_of_a_data_set_of_its_own_are_kept_to(
    fit: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    """A run on all digits has seen the test split; one on the test split was not trained on the other."""
    run = fit(tmp_path / "run", "dataset.split=all", "train.images=16")
    said = command("eval", f"ckpt={run}", *MODEL, "out=out")
    assert said.code == 0, said.err
    assert (row()["held_out"], row()["training_images"]) == (0, 1797)
    said = command("eval", f"ckpt={run}", "dataset.split=train", *MODEL, "out=out")
    assert (said.code, "nothing held out, and ckpt was trained with dataset.split=all" in said.err) == (2, True)


def test_only_a_moved_root_has_to_be_typed(command: Command, share: Path, folder: Path) -> None:
    """Also of the best weights, which have no counters beside them."""
    best = share / "checkpoints" / "best"
    about = checkpoint.load(share)
    checkpoint.save_model(best, about.config, about.images, about.weights)
    moved = shutil.copytree(folder, "moved")
    folder.rename(folder.with_name("gone"))
    try:
        lost = command("eval", f"ckpt={share}", *MODEL, "out=out")
        found = [command("eval", f"ckpt={ckpt}", f"dataset.root={moved}", *MODEL, "out=out") for ckpt in (share, best)]
    finally:
        folder.with_name("gone").rename(folder)
    assert (lost.code, lost.err.count("\n")) == (3, 1)
    assert f"ckpt was trained with dataset.root='{folder}', which is not here: dataset.root=PATH" in lost.err
    assert [said.code for said in found] == [0, 0], found
    assert row()["training_images"] == 32


def test_classes_are_matched_by_name(fit: Callable[..., Path], command: Command, tmp_path: Path) -> None:
    """A folder with some of the classes is told by the numbers that the model knows, and the others are not drawn."""
    root = pictures(tmp_path / "named", range(60), named=True)
    run = fit(tmp_path / "run", *OF_PICTURES, f"dataset.root={root}")
    shutil.copytree(root, "some")
    for name in "abcdefh":
        shutil.rmtree(Path("some", name))
    said = command("eval", f"ckpt={run}", "dataset.root=some", "metrics=agreement", "n=9", "sampler.steps=2", "out=out")
    assert said.code == 0, said.err
    drawn = [i for i, share in enumerate(row()["agreement_by_class"]) if share is not None]
    assert drawn == [6, 8, 9], "g, i and j of ten"
    Path("some", "g").rename("some/moon")
    said = command("eval", f"ckpt={run}", "dataset.root=some", *MODEL, "out=out")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "has 'moon', no class of ckpt's: [a, b, c, d, e, f, g, h, i, j]" in said.err


def test_what_is_noted_is_what_differs() -> None:
    """So that checkpoints of runs that hold nothing out are, byte for byte, what they were."""
    assert kept_apart({"name": "digits", "split": "train"}) == {}
    assert kept_apart({"name": "image_folder", "held_out": None, "held_out_seed": 5}) == {}
    assert kept_apart({"name": "image_folder", "held_out": "there", "held_out_seed": 5}) == {"held_out": "there"}
    assert kept_apart({"held_out": 0.1, "held_out_seed": 5}) == {"held_out": 0.1, "held_out_seed": 5}


def test_the_splits_of_digits_share_no_image() -> None:
    splits = Splits.of(digits(split="train"), digits(split="test"))
    assert check_apart(splits) == 0 and judge(splits) == (splits.test, "test")
    assert judge(Splits.of(splits.train, None)) == (splits.train, "train")


def test_a_folder_without_labels_is_judged_without_a_download(command: Command, whole: Path, folder: Path) -> None:
    """The features are of turns, and near-copies are looked for in pixels."""
    few = ["n=8", "sampler.steps=2", "extractor.epochs=1", "extractor.width=4", "cache=cache"]
    said = command("eval", f"ckpt={whole}", "metrics=fd,is,copies,agreement", *few, "out=out")
    assert said.code == 0, said.err
    found = row()
    assert (found["extractor"], found["copies_in"], found["left_out"]) == ("rotation", "pixels", ["is", "agreement"])
    assert found["fd"] > 0 and "fd" in found["too_few"] and Path("out/pairs.png").exists()
    assert (
        "trained without labels, to tell which way up pictures are" in said.out and "near-copies, in pixels" in said.out
    )
    own = [f"images={folder}", "dataset=image_folder", f"dataset.root={folder}", "dataset.channels=1"]
    assert command("eval", *own, "metrics=copies", *few, "out=out").code == 0
    assert row()["copies"] == 1.0


def test_a_run_without_labels_is_judged_on_the_way(fit: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    told = ["train.eval_every=16", "train.eval_n=8", "extractor.epochs=1", "extractor.width=4", "dataset.held_out=0.2"]
    run = fit(tmp_path / "run", *OF_PICTURES, f"dataset.root={folder}", *told)
    (found,) = [json.loads(line) for line in (run / "eval" / "training.jsonl").read_text().splitlines()]
    assert found["extractor"] == "rotation" and found["fd_floor_test"] > 0 and "fd" in found["too_few"]


# --- what weights have seen in another run, or before a change -----------------------------------------------------


def test_weights_that_have_seen_what_is_held_out_now(
    fit: Callable[..., Path], command: Command, whole: Path, share: Path, folder: Path, tmp_path: Path
) -> None:
    """Also in the run before the one before; where each held out the same, nothing has been seen."""
    apart = [*OF_PICTURES, f"dataset.root={folder}", "dataset.held_out=0.2", "dataset.held_out_seed=3"]
    after_all = fit(tmp_path / "after all", *apart, f"train.init={whole}")
    for run in (after_all, fit(tmp_path / "later", *apart, f"train.init={after_all}")):
        said = command("eval", f"ckpt='{run}'", *MODEL, "out=out")
        assert said.code == 0, said.err
        words = "8 held out, but the weights or the autoencoder that it began from (dataset=image_folder) may have seen them"
        assert words in " ".join(said.out.split()) and "never trained on" not in said.out
    alike = fit(tmp_path / "alike", *apart, f"train.init={share}")
    assert "8 held out, never trained on" in command("eval", f"ckpt={alike}", *MODEL, "out=out").out


def test_weights_that_saw_another_data_set(
    fit: Callable[..., Path], command: Command, tiny_run: Path, folder: Path, tmp_path: Path
) -> None:
    """Whether it shares pictures with this one is not known."""
    apart = [*OF_PICTURES, f"dataset.root={folder}", "dataset.held_out=0.2", f"train.init={tiny_run}"]
    said = command("eval", f"ckpt={fit(tmp_path / 'run', *apart)}", *MODEL, "out=out")
    assert (
        "8 held out, but the weights or the autoencoder that it began from (dataset=digits) may have seen them"
        in said.out
    )


def test_the_share_of_as_many_other_pictures_is_not_gone_on_with(fit: Callable[..., Path], tmp_path: Path) -> None:
    root = pictures(tmp_path / "pictures", range(40))
    settings = [*OF_PICTURES, f"dataset.root={root}", "dataset.held_out=0.2"]
    run = fit(tmp_path / "run", *settings)
    fit(run, *settings, "train.images=32")
    for path in root.iterdir():
        path.unlink()
    pictures(root, range(1, 41))
    words = r"had 32 images to train on and has as many, but others, so that dataset.held_out=0.2 would hold out some"
    with pytest.raises(CheckpointError, match=words):
        fit(run, *settings, "train.images=48")
    assert checkpoint.load(run).images == 32


@pytest.mark.parametrize("resident", [True, False])
def test_what_is_trained_on_is_not_held_out(
    resident: bool, fit: Callable[..., Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training folder itself, also where it is not kept in memory."""
    if not resident:
        monkeypatch.setattr(held_out, "InMemory", ())
    for where in (folder, shutil.copytree(folder, tmp_path / "copy")):
        with pytest.raises(DataError, match="all 40 held-out images are training images too"):
            fit(tmp_path / "run", *OF_PICTURES, f"dataset.root={folder}", f"dataset.held_out={where}")
    assert not (tmp_path / "run").exists()


def test_what_is_in_both_is_counted_when_a_run_begins(
    fit: Callable[..., Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = pictures(tmp_path / "others", range(36, 46))
    fit(tmp_path / "run", *OF_PICTURES, f"dataset.root={folder}", f"dataset.held_out={others}")
    words = "warning: 4 of the 10 images held out are among those to train on, to the last pixel"
    assert words in " ".join(capsys.readouterr().out.split())
