"""Frames of films: the right ones in the right order, whoever reads them, or a sentence that names the film."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from rows import row

from diffgen.build import make_splits
from diffgen.core.errors import DataError, UsageError
from diffgen.data import Source, films, pictures
from diffgen.data import clips as clips_module
from diffgen.data.clips import Clips
from diffgen.data.film import Film
from diffgen.data.films import natural
from diffgen.data.reading import Reading, UndecodableError
from diffgen.data.splits import Splits
from diffgen.data.videos import Cut, Reader


def splits(root: Path | None, name: str = "video_folder", **changes: Any) -> Splits:
    """A data set with the settings of its YAML file; clips of 4 grey frames."""
    place = root and str(root)
    own = {"root": place, "frames": 4, "channels": 1} if name == "video_folder" else {"path": place}
    settings = row("dataset", name, **{**own, "workers": 0, **changes})
    del settings["defaults"]
    return make_splits({"dataset": settings})


def load(root: Path | None, name: str = "video_folder", **changes: Any) -> Any:
    return splits(root, name, **changes).train


def told(root: Path, name: str = "video_folder", **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(root, name, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reasons(source: Source) -> dict[str, str]:
    return {each.name: each.reason for each in source.left_out}


def frames(path: Path, channels: int = 1, **settings: Any) -> torch.Tensor:
    """All frames of a file, uint8 [T, C, H, W]."""
    found = Film(str(path), (path,)).frames(Reading(channels, **settings), None)
    return torch.stack([frame()[0] for frame in found])


def examples(source: Source) -> torch.Tensor:
    """All of them, in their order."""
    (batch,) = source.batches(iter([torch.arange(len(source))]), torch.device("cpu"))
    return batch.examples


# --- what a viewer shows ------------------------------------------------------------------------------------------


def test_a_picture_for_those_who_know_of_no_films_is_no_frame(tmp_path: Path) -> None:
    film = inputs.frames(6)
    path = inputs.film(tmp_path / "a.png", [Image.new("L", film[0].size, 77), *film], default_image=True)
    assert torch.equal(frames(path), inputs.stacked(film))
    assert len(load(tmp_path, frames=6)) == 1 and Film("a", (path,)).count() == 6


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_parts_of_frames_are_laid_on_what_is_there(tmp_path: Path, disposal: int) -> None:
    """A square that moves: what is written holds no more than what changes."""
    film = [Image.new("RGB", (12, 10), (10, 20, 30)) for _ in range(5)]
    for number, frame in enumerate(film):
        frame.paste((200, 100, 0), (2 * number, 3, 2 * number + 3, 6))
    path = inputs.film(tmp_path / "a.gif", film, disposal=disposal)
    assert torch.equal(frames(path, 3), inputs.stacked(film))


def test_transparent_frames_are_laid_on_the_background_and_counted(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 6), (0, 0, 0, 0))
    film = [Image.new("RGBA", (8, 6), (9 * i, 0, 0, 255)) for i in range(3)]
    inputs.film(tmp_path / "a.webp", [*film, clear], lossless=True)
    data = load(tmp_path, channels=3, background="#102030")
    assert data.stored[0, 3, :, 0, 0].tolist() == [16, 32, 48] and data.stored[0, 2, :, 0, 0].tolist() == [18, 0, 0]
    assert "1 with transparent pixels, laid on #102030" in data.found
    assert load(tmp_path, channels=4).stored[0, :, 3, 0, 0].tolist() == [255, 255, 255, 0]


@pytest.mark.parametrize("form", ["gif", "webp", "png"])
@pytest.mark.parametrize("stride", [1, 2])
def test_films_are_as_fast_as_their_file_says(tmp_path: Path, form: str, stride: int) -> None:
    inputs.film(tmp_path / f"a.{form}", inputs.frames(8), duration=40)
    assert load(tmp_path, stride=stride).kind.fps == pytest.approx(25 / stride)
    assert load(tmp_path, stride=stride, fps=3.0).kind.fps == 3


def test_the_picture_for_those_who_know_of_no_films_does_not_say_how_fast_one_is(tmp_path: Path) -> None:
    film = inputs.frames(6)
    inputs.film(tmp_path / "a.png", [inputs.picture(9, "L"), *film], default_image=True, duration=40)
    assert load(tmp_path).kind.fps == pytest.approx(25)


def test_the_first_frames_of_a_damaged_film_say_how_fast_it_is(tmp_path: Path) -> None:
    path = inputs.film(tmp_path / "a.png", inputs.frames(12), duration=40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert load(tmp_path, undecodable="skip").kind.fps == pytest.approx(25)


# --- names of frames ----------------------------------------------------------------------------------------------


def test_frames_stand_in_the_order_of_their_numbers() -> None:
    names = ["f10.png", "f9.png", "²1.png", "f01.png", "f1.png", "a2b10.png", "a2b9.png", "a10b1.png"]
    found = sorted(names, key=natural)
    assert found == ["a2b9.png", "a2b10.png", "a10b1.png", "f01.png", "f1.png", "f9.png", "f10.png", "²1.png"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["1", "2", "10", "11"], "7 numbers missing between the first frame and the last"),
        (["01", "1", "2", "3"], "two frames have one number"),
        (["a", "b", "3", "4"], "2 of 4 frames have no number"),
        (["cam2_8", "cam2_9", "cam2_10", "cam2_11"], ""),
    ],
)
def test_odd_numbers_are_said(tmp_path: Path, names: list[str], words: str) -> None:
    for folder in ("x", "y"):
        inputs.fill(tmp_path / folder, [f"{name}.png" for name in names])
    notes = [note for note in load(tmp_path).notes if "grey" not in note]
    assert (words in notes[0] and "and the like in 1 folder more" in notes[0]) if words else not notes


# --- what is left out, or refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize("end", [30, 0.3, 0.6, -40, -1])
def test_a_gif_that_is_cut_off_is_not_taken_for_a_short_one(tmp_path: Path, end: float) -> None:
    inputs.film(tmp_path / "ok.gif", inputs.frames(6))
    path = inputs.film(tmp_path / "cut.gif", inputs.frames(12, seed=1))
    data = path.read_bytes()
    path.write_bytes(data[: int(end * len(data)) if 0 < end < 1 else int(end)])
    assert "cut.gif cannot be decoded" in told(tmp_path)
    assert reasons(load(tmp_path, undecodable="skip")) == {"cut.gif": "cannot be decoded"}
    with pytest.raises(DataError, match=r"cut.gif' cannot be decoded|cut.gif cannot be decoded"):
        Clips().read(str(path), (1, 2, 6, 8))


@pytest.mark.parametrize("form", ["webp", "tiff"])
def test_other_files_that_are_cut_off_are_refused(tmp_path: Path, form: str) -> None:
    path = inputs.film(tmp_path / f"a.{form}", inputs.frames(12))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert f"a.{form} cannot be decoded" in told(tmp_path)


def test_of_a_damaged_film_the_clips_that_are_whole_are_kept(tmp_path: Path) -> None:
    film = inputs.frames(12)
    path = inputs.film(tmp_path / "a.png", film)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "a.png cannot be decoded" in told(tmp_path)
    data = load(tmp_path, undecodable="skip")
    assert torch.equal(data.stored[0], inputs.stacked(film[:4])) and 1 <= len(data) < 3
    assert reasons(data)["a.png from frame 8"] == "cannot be decoded"
    assert data.found.startswith(f"1 film gives {len(data)} clip")


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.tif", "a.avif"])
@pytest.mark.parametrize("content", [b"", b"no film, but text"])
def test_what_is_no_film_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    inputs.film(tmp_path / "ok.gif", inputs.frames(4))
    (tmp_path / name).write_bytes(content)
    assert f"{name} cannot be decoded" in told(tmp_path)
    assert reasons(load(tmp_path, undecodable="skip")) == {name: "cannot be decoded"}


def test_a_single_frame_is_counted_by_its_name(tmp_path: Path) -> None:
    inputs.film(tmp_path / "cat" / "a.gif", inputs.frames(4))
    inputs.save(tmp_path / "cat" / "b.gif", image=inputs.frames(1)[0])
    inputs.save(tmp_path / "cover.png")
    data = load(tmp_path)
    assert reasons(data) == {"cat/b.gif": "a single frame among films", "cover.png": "a single frame"}
    assert data.classes == ("cat",) and data.found.startswith("1 film gives 1 clip of 4 frames; 6x8")


def test_films_are_known_by_what_they_hold(tmp_path: Path) -> None:
    inputs.save(tmp_path / "a.png")
    inputs.film(tmp_path / "b.png", inputs.frames(4))
    inputs.film(tmp_path / "c.gif", inputs.frames(4, seed=1))
    inputs.film(tmp_path / "d.gif", inputs.frames(4, seed=2)).rename(tmp_path / "d")
    inputs.film(tmp_path / "e.gif", inputs.frames(4, seed=3)).rename(tmp_path / "e.jpg")
    data = load(tmp_path)
    assert reasons(data) == {"a.png": "a single frame among films"}
    assert torch.equal(data.stored, torch.stack([inputs.stacked(inputs.frames(4, seed=seed)) for seed in range(4)]))


def test_what_cannot_be_read_goes_with_the_others(tmp_path: Path) -> None:
    """Among films it is one, and among frames a frame."""
    for seed in range(1, 3):
        inputs.film(tmp_path / "films" / f"{seed}.png", inputs.frames(4, seed=seed))
    (tmp_path / "films" / "0.png").write_bytes(b"no picture")
    data = load(tmp_path / "films", undecodable="skip")
    assert len(data) == 2 and reasons(data) == {"0.png": "cannot be decoded"}
    for place, name in (("png", "3.png"), ("webp", "3.webp")):
        folder = inputs.numbered(tmp_path / place, inputs.frames(7))
        (folder / name).write_bytes(b"")
        data = load(folder, undecodable="skip")
        assert torch.equal(data.stored[0], inputs.stacked(inputs.frames(7)[3:]))
        assert reasons(data) == {". from frame 0": "cannot be decoded"}


def test_a_telephone_s_second_picture_is_no_frame(tmp_path: Path) -> None:
    for number in range(4):
        inputs.film(tmp_path / f"{number}.mpo", inputs.frames(2, seed=number)).rename(tmp_path / f"{number}.jpg")
    assert len(load(tmp_path)) == 1


def test_a_folder_to_which_two_links_lead_is_one_film(tmp_path: Path) -> None:
    inputs.numbered(tmp_path / "a", inputs.frames(4))
    (tmp_path / "b").symlink_to("a")
    data = load(tmp_path)
    assert len(data) == 1 and reasons(data) == {"b": "a folder that was there before"}


def test_what_systems_leave_is_left_out(tmp_path: Path) -> None:
    for name in ("a.gif", ".b.gif", ".hidden/c.gif", "__MACOSX/d.gif", os.fsdecode(b"caf\xe9\n'\".gif")):
        inputs.film(tmp_path / name, inputs.frames(4))
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "itself").symlink_to("itself")
    (tmp_path / "empty").mkdir()
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    data = load(tmp_path)
    assert len(data) == 2 and len(data.left_out) == 7
    assert not any("labels" in note for note in data.notes), "films have no file of labels"


@pytest.mark.parametrize("root", [None, "nowhere", "a.gif"])
def test_a_root_that_is_no_folder_is_told(tmp_path: Path, root: str | None) -> None:
    inputs.film(tmp_path / "a.gif", inputs.frames(4))
    with pytest.raises((DataError, UsageError), match=r"root is missing|is not a folder; it must hold films"):
        load(tmp_path / root if root else None)


def test_a_bomb_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    path = inputs.film(tmp_path / "a.gif", inputs.frames(4))
    data = bytearray(path.read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    for size in (None, 8):
        assert "a.gif has 65,535 x 65,535 pixels, more than" in told(tmp_path, size=size)


def test_pillow_s_own_limit_is_put_back_while_a_film_is_open(tmp_path: Path) -> None:
    before = Image.MAX_IMAGE_PIXELS
    found = Film("a", (inputs.film(tmp_path / "a.gif", inputs.frames(4)),)).frames(Reading(1), None)
    next(found)()
    assert before == Image.MAX_IMAGE_PIXELS and before is not None


@pytest.mark.parametrize("zipped", [True, False])
def test_megabytes_of_notes_are_no_reason_to_refuse_frames(tmp_path: Path, zipped: bool) -> None:
    notes, film = PngImagePlugin.PngInfo(), inputs.frames(4)
    notes.add_text("note", "x" * 3_000_000, zip=zipped)
    inputs.film(tmp_path / "a.png", film, pnginfo=notes)
    for number, frame in enumerate(film):
        inputs.save(tmp_path / "b" / f"{number}.png", image=frame, pnginfo=notes)
    inputs.film(tmp_path / "c" / "c.tiff", inputs.frames(4), tiffinfo={270: "x" * 3_000_000})
    assert torch.equal(frames(tmp_path / "a.png"), inputs.stacked(film))
    assert torch.equal(load(tmp_path / "b").stored[0], inputs.stacked(film))
    assert torch.equal(load(tmp_path / "c").stored[0], inputs.stacked(film))


def test_of_a_long_film_what_no_clip_needs_is_neither_kept_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        inputs.save(tmp_path / f"{number}.png", number)
    read, seen = Reading.read, list[str]()
    monkeypatch.setattr(Reading, "read", lambda self, file, *rest: seen.append(file.stem) or read(self, file, *rest))
    data = load(tmp_path, clips=2)
    assert len(data) == 2 and set(seen) == set(map(str, [*range(4), *range(36, 40)]))


# --- clips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stride", [1, 2])
def test_streamed_clips_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, stride: int
) -> None:
    for number, form in enumerate(("gif", "webp", "tiff")):
        inputs.film(tmp_path / f"{number}.{form}", inputs.frames(40, seed=100 * number), lossless=True)
    known = examples(load(tmp_path, stride=stride))
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(pictures, "FEW", 0)
    monkeypatch.setattr(pictures, "CHUNK", 5 * 4 * 48)
    source = load(tmp_path, stride=stride, workers=workers)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(0))
    for batch, chosen in zip(source.batches(iter(order.split(3)), torch.device("cpu")), order.split(3), strict=True):
        assert torch.equal(batch.examples, known[chosen])


def test_a_process_that_is_forked_leaves_a_film_that_is_open_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would go on from one place in the file."""
    film = inputs.frames(12)
    file, reader = Film("a", (inputs.film(tmp_path / "a.gif", film),)), Reader(Cut(4, 1, None))
    reader.read(file, 0, Reading(1), None)
    opened = reader.opened
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert torch.equal(reader.read(file, 8, Reading(1), None)[0], inputs.stacked(film[8:]))
    assert opened and torch.equal(next(opened.frames)()[0], inputs.stacked(film)[4])


def test_a_first_film_that_is_damaged_is_left_out_whole(tmp_path: Path) -> None:
    """Each film gives several clips, and none of the first one's can be decoded."""
    path = inputs.film(tmp_path / "a.png", inputs.frames(12))
    path.write_bytes(path.read_bytes()[:200])
    inputs.film(tmp_path / "b.png", inputs.frames(4, seed=1))
    data = load(tmp_path, undecodable="skip")
    assert torch.equal(data.stored[0], inputs.stacked(inputs.frames(4, seed=1))) and len(data) == 1


@pytest.mark.parametrize("resident", [True, False])
def test_films_are_held_out_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    for number in range(5):
        inputs.film(tmp_path / f"{number}.gif", [Image.new("L", (4, 4), 40 * number + i) for i in range(12)])
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 2**31 if resident else 0)
    parts = splits(tmp_path, held_out=0.4)
    assert parts.test is not None and (len(parts.train), len(parts.test)) == (9, 6)
    kept, apart = ({int(v) // 40 for v in examples(part).unique()} for part in (parts.train, parts.test))
    assert len(kept) == 3 and len(apart) == 2 and not kept & apart
    with pytest.raises(DataError, match=r"dataset.held_out=0.99 of 5 films leaves none"):
        splits(tmp_path, held_out=0.99)


def test_of_a_single_film_nothing_can_be_held_out(tmp_path: Path) -> None:
    """Its clips are of one film, however many they are."""
    inputs.film(tmp_path / "a.gif", inputs.frames(12))
    with pytest.raises(DataError, match=r"dataset.held_out=0.5 of 1 film leaves none"):
        splits(tmp_path, held_out=0.5)


def test_a_second_folder_of_films_is_told_by_the_first_one_s_classes(tmp_path: Path) -> None:
    for place, names in (("train", "abc"), ("val", "bc")):
        for seed, name in enumerate(names):
            inputs.film(tmp_path / place / name / "x.gif", inputs.frames(8, seed=10 * seed + len(names)))
    parts = splits(tmp_path / "train", held_out=str(tmp_path / "val"))
    assert parts.test is not None and parts.test.classes == ("a", "b", "c")
    (batch,) = parts.test.batches(iter([torch.arange(4)]), torch.device("cpu"))
    assert batch.labels.tolist() == [1, 1, 2, 2]


# --- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ["arr_0", "clips", "videos", "video"])
def test_arrays_of_five_axes_are_clips(tmp_path: Path, first: bool, name: str) -> None:
    clips = torch.stack([inputs.stacked(inputs.frames(4, seed=seed, mode="RGB")) for seed in range(3)])
    values = clips if first else clips.movedim(2, -1)
    np.savez(tmp_path / "a.npz", **{name: values.numpy(), "labels": ["x", "y", "x"]})
    data = load(tmp_path / "a.npz", "arrays")
    assert torch.equal(data.stored, clips) and data.classes == ("x", "y") and data.labels.tolist() == [0, 1, 0]
    assert isinstance(data.kind, Clips) and data.shape.size == (3, 4, 6, 8)
    assert load(tmp_path / "a.npz", "arrays", size=4).stored.shape == (3, 4, 3, 4, 4)


def test_what_is_sampled_is_read_back(tmp_path: Path) -> None:
    clips = torch.stack([inputs.stacked(inputs.frames(4, seed=seed)) for seed in range(3)])
    (tmp_path / "samples.npz").write_bytes(Clips().write("npz", clips, [1, -1, 0], ("cat", "dog")))
    data = load(tmp_path / "samples.npz", "arrays")
    assert torch.equal(data.stored, clips) and data.labels.tolist() == [1, -1, 0] and data.classes == ("cat", "dog")


def test_what_is_sampled_without_labels_is_read_back_without(tmp_path: Path) -> None:
    clips = torch.stack([inputs.stacked(inputs.frames(4, seed=seed)) for seed in range(3)])
    (tmp_path / "samples.npz").write_bytes(Clips().write("npz", clips, [-1, -1, -1], ()))
    data = load(tmp_path / "samples.npz", "arrays")
    assert data.classes == () and data.labels.tolist() == [-1, -1, -1]


def test_the_order_of_torch_is_not_taken_for_another(tmp_path: Path) -> None:
    """[N, C, T, H, W] of three channels looks like three frames of as many channels as there are frames."""
    for frames in (4, 5, 7):
        np.savez(tmp_path / "a.npz", arr_0=np.arange(2 * 3 * frames * 80, dtype=np.uint8).reshape(2, 3, frames, 8, 10))
        assert f"[2, 3, {frames}, 8, 10]: clips are [N, T, H, W, C] or [N, T, C, H, W]" in told(
            tmp_path / "a.npz", "arrays"
        )
        data = load(tmp_path / "a.npz", "arrays", layout="channels_first")
        assert data.shape.size == (frames, 3, 8, 10)


@pytest.mark.parametrize("name", ["clips", "Videos", "video"])
@pytest.mark.parametrize("shape", [(4, 8, 8, 3), (4, 8, 8)])
def test_what_is_called_clips_has_five_axes(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    np.savez(tmp_path / "a.npz", **{name: np.zeros(shape, np.uint8)})
    assert f"array {name!r} has the shape {list(shape)}: clips are [N, T, H, W, C] or" in told(
        tmp_path / "a.npz", "arrays"
    )


def test_arrays_that_are_no_clips_are_told(tmp_path: Path) -> None:
    def answer(shape: tuple[int, ...], dtype: str = "uint8", **changes: Any) -> str:
        np.save(tmp_path / "a.npy", np.arange(np.prod(shape), dtype=dtype).reshape(shape))
        return told(tmp_path / "a.npy", "arrays", **changes)

    assert "has the shape [3, 1, 8, 8, 1]: clips have two frames or more" in answer((3, 1, 8, 8, 1))
    assert "has the shape [3, 4, 0, 8, 1]" in answer((3, 4, 0, 8, 1))
    assert "has the shape [2, 3, 8, 8, 8]: dataset.layout=" in answer((2, 3, 8, 8, 8))
    assert "dataset.range=[" in answer((2, 3, 8, 8, 1), "float32")


# --- a film that a task names -------------------------------------------------------------------------------------


FORMS: dict[str, Callable[[Path, list[Image.Image]], Path]] = {
    "gif": lambda root, film: inputs.film(root / "a.gif", film),
    "webp": lambda root, film: inputs.film(root / "a.webp", film, lossless=True),
    "png": lambda root, film: inputs.film(root / "a.png", film),
    "tiff": lambda root, film: inputs.film(root / "a.tiff", film),
    "frames": lambda root, film: inputs.numbered(root / "a", film),
    "npy": lambda root, film: saved(root / "a.npy", inputs.stacked(film).movedim(1, -1)),
    "npy of [T, H, W]": lambda root, film: saved(root / "a.npy", inputs.stacked(film)[:, 0]),
    "npy of [T, C, H, W]": lambda root, film: saved(root / "a.npy", inputs.stacked(film)),
    "npy of one": lambda root, film: saved(root / "a.npy", inputs.stacked(film).movedim(1, -1)[None]),
}


def saved(path: Path, values: torch.Tensor) -> Path:
    np.save(path, values.numpy())
    return path


@pytest.mark.parametrize("form", FORMS)
def test_a_task_reads_films_of_every_form(tmp_path: Path, form: str) -> None:
    film = inputs.frames(12)
    path = FORMS[form](tmp_path, film)
    assert torch.equal(films.read(str(path), Reading(1), (6, 8), 11), inputs.stacked(film)[:11])
    assert films.read(str(path), Reading(1), (4, 4), 12).shape == (12, 1, 4, 4)
    x0 = Clips().read(str(path), (1, 4, 6, 8))
    assert torch.equal(Clips().decode(x0[None])[0], inputs.stacked(film)[:4])


def test_a_task_finds_a_clip_among_arrays_as_training_does(tmp_path: Path) -> None:
    clip = inputs.stacked(inputs.frames(4, mode="RGB"))
    np.savez(tmp_path / "a.npz", mask=np.zeros((4, 6, 8), np.uint8), video=clip.numpy())
    assert torch.equal(films.read(str(tmp_path / "a.npz"), Reading(3), (6, 8), 9), clip)


def test_a_task_reads_numbers_by_the_range_of_training(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.linspace(0, 1, 96, dtype=np.float32).reshape(2, 6, 8))
    assert films.read(str(tmp_path / "a.npy"), Reading(1, range=(0, 1)), (6, 8), 9).flatten()[[0, -1]].tolist() == [
        0,
        255,
    ]
    with pytest.raises(DataError, match=r"a.npy' holds float32 values from 0 to 1$"):
        films.read(str(tmp_path / "a.npy"), Reading(1), (6, 8), 9)


def test_of_a_film_that_is_too_long_the_last_frame_is_not_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips_module, "LONGEST", 5)
    whole, path = inputs.frames(6), tmp_path / "a.npy"
    saved(path, inputs.stacked(whole))
    assert Clips().film(str(path), (1, 4, 6, 8), 3).shape == (1, 3, 6, 8)
    assert Clips().read(str(path), (1, 4, 6, 8)).shape == (1, 4, 6, 8)
    with pytest.raises(DataError, match=r"a.npy' has more than the 5 frames that are read of a film"):
        Clips().film(str(path), (1, 4, 6, 8))
    saved(path, inputs.stacked(whole[:5]))
    assert Clips().film(str(path), (1, 4, 6, 8)).shape == (1, 5, 6, 8)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.gif", "does not exist: it must be a film, a folder of frames, an .npy or .npz"),
        ("nowhere.npz", "does not exist"),
        ("films", "is no folder of numbered frames: name one film in it"),
        ("empty", "is no folder of numbered frames"),
        ("text.gif", "cannot be decoded"),
        ("one.gif", "has 1 frames, and this model's clips have 4"),
        ("none.npy", r"must hold one clip, \[T, H, W, 1\] or \[T, 1, H, W\], and has \[0, 6, 8, 1\]"),
        ("two.npy", r"must hold one clip, .*, and has \[2, 4, 6, 8, 1\]"),
        ("labels.npy", r"must hold one clip, .*, and has \[4\]"),
        ("picture.npy", r"must hold one clip, .*, and has \[32, 32, 3\]"),
        ("coloured.npy", r"must hold one clip, .*, and has \[4, 6, 8, 3\]"),
        ("cube.npy", r"it cannot be told which of them has \[8, 8, 8, 8\]"),
        ("several.npz", r"holds the arrays \[mask, depth\]: call"),
        ("text.npy", "is no .npy or .npz of numbers that can be read"),
    ],
)
def test_what_a_task_cannot_read_is_told(tmp_path: Path, name: str, words: str) -> None:
    inputs.film(tmp_path / "films" / "a.gif", inputs.frames(4))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gif").write_text("x")
    (tmp_path / "text.npy").write_text("x")
    inputs.save(tmp_path / "one.gif", image=inputs.frames(1)[0])
    saved(tmp_path / "none.npy", torch.zeros(0, 6, 8, 1, dtype=torch.uint8))
    saved(tmp_path / "two.npy", torch.zeros(2, 4, 6, 8, 1, dtype=torch.uint8))
    saved(tmp_path / "labels.npy", torch.zeros(4))
    saved(tmp_path / "picture.npy", torch.zeros(32, 32, 3, dtype=torch.uint8))
    saved(tmp_path / "coloured.npy", torch.zeros(4, 6, 8, 3, dtype=torch.uint8))
    saved(tmp_path / "cube.npy", torch.zeros(8, 8, 8, 8, dtype=torch.uint8))
    np.savez(tmp_path / "several.npz", mask=np.zeros((4, 6, 8)), depth=np.zeros((4, 6, 8)))
    with pytest.raises((DataError, UsageError), match=words) as caught:
        Clips().read(str(tmp_path / name), (1, 4, 6, 8))
    assert "\n" not in str(caught.value) and "dataset." not in str(caught.value)


# --- videos -------------------------------------------------------------------------------------------------------


def video(path: Path, film: list[Image.Image], fps: float = 8) -> Path:
    pytest.importorskip("av")
    from diffgen.data.film import mp4 as encoded

    path.write_bytes(encoded(film, fps))
    return path


def moving(n: int) -> list[Image.Image]:
    """A white square on grey that goes to the right, of even sides: H.264 wants them."""
    film = [Image.new("L", (48, 32), 100) for _ in range(n)]
    for number, frame in enumerate(film):
        frame.paste(255, (4 * number, 0, 4 * number + 8, 8))
    return film


def test_videos_are_read(tmp_path: Path) -> None:
    film = moving(8)
    path = video(tmp_path / "a.mp4", film, 12)
    data = load(tmp_path)
    assert data.stored.shape == (2, 4, 1, 32, 48) and data.kind.fps == 12
    assert (data.stored.flatten(0, 1).float() - inputs.stacked(film).float()).abs().max() < 40
    assert Clips().read(str(path), (1, 8, 32, 48)).shape == (1, 8, 32, 48)
    assert Film("a", (path,)).count() == 8


def test_a_video_is_turned_as_its_camera_was(tmp_path: Path) -> None:
    """The matrix of the track says so, as telephones write it; here a quarter to the right."""
    path = video(tmp_path / "a.mp4", moving(4))
    data, upright = bytearray(path.read_bytes()), frames(path)
    at = data.index(b"tkhd") + 44
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)
    assert torch.equal(frames(path), upright.rot90(-1, (2, 3)))


@pytest.mark.timeout(120)
@pytest.mark.parametrize("resident", [True, False])
def test_workers_are_forked_while_no_video_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool
) -> None:
    """The size of the first film is looked at before; a worker that closed it would wait for threads for ever."""
    for number in range(3):
        video(tmp_path / f"{number}.mp4", moving(12))
    monkeypatch.setattr(pictures, "FEW", 0)
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 2**31 if resident else 0)
    data = load(tmp_path, size=None, workers=2)
    assert len(data) == 9
    assert torch.equal(examples(data)[:3].flatten(0, 1), frames(tmp_path / "0.mp4"))


def test_a_film_is_closed_where_a_clip_cannot_be_read(tmp_path: Path) -> None:
    film = Film(
        "a", (inputs.film(tmp_path / "a.tiff", [*inputs.frames(3), Image.new("L", (9, 9)), *inputs.frames(4)]),)
    )
    reader = Reader(Cut(4, 1, None))
    with pytest.raises(DataError, match="frames of several sizes"):
        reader.read(film, 0, Reading(1), None)
    assert reader.opened is None
    reader.read(film, 4, Reading(1), None)
    opened = reader.opened
    reader.close()
    assert opened and reader.opened is None and next(opened.frames, None) is None


@pytest.mark.parametrize("content", [b"", b"no film, but text"])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("av")
    (tmp_path / "a.mp4").write_bytes(content)
    assert told(tmp_path) == f"{tmp_path / 'a.mp4'} cannot be decoded: Invalid data found when processing input"


def test_a_video_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = video(tmp_path / "a.mp4", moving(8))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UndecodableError):
        load(tmp_path)


@pytest.mark.parametrize(("form", "codec"), [("matroska", "libx264"), ("webm", "libvpx")])
def test_a_video_whose_header_knows_no_number_of_frames_is_refused_where_it_is_cut_off(
    tmp_path: Path, form: str, codec: str
) -> None:
    av = pytest.importorskip("av")
    rng, path = np.random.default_rng(0), tmp_path / "a.mkv"
    with av.open(str(path), "w", format=form) as file:
        stream = file.add_stream(codec, rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(48):
            noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), np.uint8))
            file.mux(stream.encode(av.VideoFrame.from_image(noise)))
        file.mux(stream.encode())
    assert Film("a", (path,)).count() == 48
    data = path.read_bytes()
    for share in (0.1, 0.5, 0.8):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(UndecodableError, match="a cannot be decoded: it is cut off"):
            Film("a", (path,)).count()


def test_a_library_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    for undecodable in ("refuse", "skip"):
        assert told(tmp_path, undecodable=undecodable).endswith("not installed: pip install 'diffgen[video]'")


# --- to the same weights ------------------------------------------------------------------------------------------


def test_every_form_of_the_same_clips_trains_to_the_same_weights(tmp_path: Path, fit: Callable[..., Path]) -> None:
    """Films are in the order of their numbers, as who fills an array has them."""
    made = {f"{label}/{i}": inputs.frames(4, seed=100 * i + ord(label)) for label in "ab" for i in range(11)}
    clips = np.stack([inputs.stacked(film).movedim(1, -1).numpy() for film in made.values()])
    np.savez(tmp_path / "clips.npz", clips=clips, labels=[name[0] for name in made])
    for name, film in made.items():
        inputs.film(tmp_path / "gifs" / f"{name}.gif", film, duration=125)
        inputs.numbered(tmp_path / "frames" / name, film)
    own = ["train.images=32", "train.batch_size=4", "train.checkpoint_every=32"]
    folder = [*own, "dataset=video_folder", "dataset.frames=4", "dataset.channels=1", "dataset.workers=0"]
    runs = [
        fit(tmp_path / "1", *folder, f"dataset.root={tmp_path / 'gifs'}"),
        fit(tmp_path / "2", *folder, f"dataset.root={tmp_path / 'frames'}"),
        fit(tmp_path / "3", *own, "dataset=arrays", f"dataset.path={tmp_path / 'clips.npz'}"),
    ]
    assert len({weights(run) for run in runs}) == 1


def weights(run: Path) -> bytes:
    from safetensors.torch import load_file

    (path,) = run.glob("checkpoints/*/model.safetensors")
    return b"".join(value.numpy().tobytes() for _, value in sorted(load_file(path).items()))
