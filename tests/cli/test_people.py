"""What people bring to the commands: folders, names, files and habits, from the shell."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

Command = Callable[..., Any]

TINY = (
    *("model=unet_tiny", "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]"),
    *("train.images=64", "train.batch_size=32", "preview.n=4", "sampler.steps=2", "train.threads=1"),
)


def folder(root: Path, *others: str) -> tuple[str, ...]:
    return ("dataset=image_folder", f"dataset.root={root}", *TINY, *others)


def state(run: Path) -> dict[str, Any]:
    return load_file(run / "checkpoints" / "00000064" / "state.safetensors")


# --- the same pictures --------------------------------------------------------------------------------------------


def test_folder_table_arrays_zip_and_parquet_train_to_the_same_weights(command: Command, tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in", each=12)
    flat = tmp_path / "flat"
    files = sorted(root.rglob("*.png"))
    for number, file in enumerate(files):
        inputs.save(flat / f"{number:02d}.png", image=Image.open(file))
    rows = [("file", "label"), *((f"{number:02d}.png", file.parent.name) for number, file in enumerate(files))]
    (tmp_path / "labels.csv").write_text(inputs.table(rows))
    images = np.stack([np.asarray(Image.open(file)) for file in files])
    np.savez(tmp_path / "a.npz", images=images, labels=[file.parent.name for file in files])
    inputs.zipped(root, tmp_path / "a.zip", "in/")
    inputs.as_parquet(root, tmp_path / "a.parquet")
    ways = {
        "folder": folder(root),
        "table": folder(flat, "dataset.labels=labels.csv"),
        "arrays": ("dataset=arrays", "dataset.path=a.npz", *TINY),
        "zip": ("dataset=arrays", "dataset.path=a.zip", *TINY),
        "parquet": ("dataset=parquet", "dataset.path=a.parquet", *TINY),
    }
    for name, way in ways.items():
        answer = command("train", *way, f"run_dir={name}")
        assert answer.code == 0, answer.err
        assert "2 classes (cat, dog)" in answer.out
    expected = state(tmp_path / "folder")
    for name in ways:
        weights = state(tmp_path / name)
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[key], expected[key]) for key in expected), name


def test_arrays_of_two_channels_train_and_sample(command: Command, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 2), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(64) % 3)
    answer = command("train", "dataset=arrays", "dataset.path=a.npz", *TINY, "run_dir=run")
    assert answer.code == 0 and "64 images 2x16x16, 3 classes (0, 1, 2)" in answer.out
    assert command("sample", "ckpt=run", "n=6", "save=[npz]", "out=out").code == 0
    assert np.load(tmp_path / "out" / "samples.npz")["arr_0"].shape == (6, 16, 16, 2)


# --- what is said -------------------------------------------------------------------------------------------------


def test_the_header_and_a_list_say_what_is_left_out(command: Command, tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in")
    inputs.fill(root / "@eaDir", ["0.png"])
    (root / "cat" / "1.png").write_bytes(b"no picture")
    answer = command("train", *folder(root, "dataset.undecodable=skip", "dataset.held_out=0.2", "run_dir=run"))
    assert answer.code == 0, answer.err
    assert "4 images 3x6x8, 2 classes (cat, dog), kept on the device, 1 held out" in answer.out
    assert "5 pictures: 5 RGB; 6x8; 2 left out: 1 in @eaDir, 1 cannot be decoded" in answer.out
    assert (tmp_path / "run" / "left_out.txt").read_text() == "@eaDir/0.png: in @eaDir\ncat/1.png: cannot be decoded\n"


def test_a_second_folder_is_told_too(command: Command, tmp_path: Path) -> None:
    root, other = inputs.classes(tmp_path / "train"), inputs.classes(tmp_path / "val", first=50)
    (other / "cat" / "1.txt").write_text("x")
    answer = command("train", *folder(root, "dataset.held_out=val", "run_dir=run"))
    assert "held out  6 pictures: 6 RGB; 6x8; 1 left out: 1 .txt" in answer.out
    assert (tmp_path / "run" / "left_out.txt").read_text() == "held out: cat/1.txt: .txt\n"


def test_notes_are_said_once(command: Command, tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in", ["train", "val"])
    (root / "dataset.json").write_text("{}")
    answer = command("train", *folder(root, "run_dir=run"))
    assert answer.out.count("taken for classes") == answer.out.count("dataset.json is not used") == 1


def test_a_run_goes_on_with_the_same_held_out(command: Command, tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in", each=6)
    held = (*folder(root, "run_dir=run"), "dataset.held_out=0.25")
    assert command("train", *held).code == 0
    more = (*held, "train.images=128")
    other = command("train", *more, "dataset.held_out_seed=1")
    assert other.code == 4 and "another dataset.held_out_seed (0 there, 1 here)" in other.err
    inputs.fill(root / "cat", ["new.png"])
    grown = command("train", *more)
    assert grown.code == 4 and "had 9 images to train on and has 10" in grown.err
    (root / "cat" / "new.png").unlink()
    assert "resumed at 64 images" in command("train", *more).out


# --- names of classes ---------------------------------------------------------------------------------------------


@pytest.fixture
def of_numbers(command: Command, tmp_path: Path) -> None:
    """A model whose classes are called 1, 3 and 7."""
    assert command("train", *folder(inputs.classes(tmp_path / "in", ["1", "3", "7"]), "run_dir=run")).code == 0


@pytest.mark.usefixtures("of_numbers")
@pytest.mark.parametrize(
    ("label", "numbers", "said"),
    [
        ("1", [0, 0], "class 1"),
        ("'7'", [2, 2], "class 7"),
        ("[3,7]", [1, 2], "classes 3, 7"),
        ("2", [2, 2], "class 7"),
        ("each", [0, 1], "classes 1, 3"),
    ],
)
def test_a_folder_s_name_asks_for_it(
    command: Command, tmp_path: Path, label: str, numbers: list[int], said: str
) -> None:
    answer = command("sample", "ckpt=run", f"label={label}", "n=2", "save=[npz]", "out=out")
    assert answer.code == 0, answer.err
    assert answer.out.count(said) == 2, "in the header and in the last line"
    saved = np.load(tmp_path / "out" / "samples.npz")
    assert saved["arr_1"].tolist() == numbers and saved["classes"].tolist() == ["1", "3", "7"]


@pytest.mark.usefixtures("of_numbers")
def test_a_name_that_is_none_is_told_with_the_choices(command: Command) -> None:
    answer = command("sample", "ckpt=run", "label=9", "n=2", "out=out")
    assert answer.code == 2 and "the model has classes 0 to 2 (1, 3, 7)" in answer.err


def test_words_that_are_names_of_classes_are_not_guessed(command: Command, tmp_path: Path) -> None:
    assert command("train", *folder(inputs.classes(tmp_path / "in", ["each", "none"]), "run_dir=run")).code == 0
    for word, instead in (("none", "null"), ("each", "auto")):
        answer = command("sample", "ckpt=run", f"label={word}", "n=2", "out=a")
        assert answer.code == 2 and f"label=[{word}] is, and label={instead}" in answer.err
        assert command("sample", "ckpt=run", f"label=[{word}]", "n=2", f"out={word}").code == 0
    assert command("sample", "ckpt=run", "n=2", "out=b").code == 0


# --- pictures that tasks name -------------------------------------------------------------------------------------


@pytest.fixture
def upright(command: Command, tmp_path: Path) -> None:
    """A model of one picture, white above and black below."""
    inputs.turned(tmp_path / "in" / "a.jpg")
    assert command("train", *folder(tmp_path / "in", "dataset.size=8", "run_dir=run")).code == 0


@pytest.mark.usefixtures("upright")
def test_a_task_turns_photographs_as_training_does(command: Command, tmp_path: Path) -> None:
    few = ("sampler.steps=50", "task.strength=0.02", "n=1", "save=[npz]", "out=out")
    assert command("sample", "ckpt=run", "task=img2img", "task.image=in/a.jpg", *few).code == 0
    (image,) = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert image[:3].mean() > 200 and image[5:].mean() < 55


@pytest.mark.usefixtures("upright")
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((np.arange(64) >= 32).astype(np.uint8), "nothing would be painted. Its brightest pixel has 1 of 255"),
        (np.zeros(64, np.uint8), "nothing would be painted. Its brightest pixel has 0 of 255"),
        (np.full(64, 255, np.uint8), "white all over: nothing would be kept"),
    ],
)
def test_masks_that_say_nothing_are_refused(command: Command, tmp_path: Path, values: np.ndarray, words: str) -> None:
    inputs.save(tmp_path / "m.png", image=Image.fromarray(values[:, None].repeat(64, 1)))
    answer = command("sample", "ckpt=run", "task=inpaint", "task.image=in/a.jpg", "task.mask=m.png", "n=1", "out=out")
    assert answer.code == 2 and words in answer.err and "task.mask='m.png'" in answer.err
    assert not (tmp_path / "out").exists()


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.random.default_rng(0).random((6, 8), np.float32), "dataset.range=[0,1]"),
        (np.random.default_rng(0).integers(0, 4096, (6, 8), np.uint16), "dataset.range=[0,4095]"),
    ],
)
def test_unknown_ranges_end_the_command_with_what_helps(
    command: Command, tmp_path: Path, values: np.ndarray, words: str
) -> None:
    inputs.save(tmp_path / "in" / "a.tif", image=Image.fromarray(values))
    answer = command("train", *folder(tmp_path / "in", "dataset.channels=1", "run_dir=run"))
    assert answer.code == 3 and words in answer.err and "a.tif" in answer.err
    assert not (tmp_path / "run").exists()
    assert command("train", *folder(tmp_path / "in", "dataset.channels=1", words, "run_dir=run")).code == 0


def test_a_class_that_is_no_text_is_a_matter_of_the_data(command: Command, tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in", ["cat"])
    odd = root / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    inputs.save(tmp_path / "a.png").rename(odd / "a.png")
    answer = command("train", *folder(root, "run_dir=run"))
    assert answer.code == 3 and "has a name that is not UTF-8" in answer.err
