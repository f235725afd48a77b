"""Films in files: every form of the same clips is the same data, and what is left out is counted and said."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin
from rows import dataset
from torch import Tensor

from diffgen.build import make_splits
from diffgen.core.errors import DataError, UsageError
from diffgen.data import base, pictures
from diffgen.data.clips import Clips, _some
from diffgen.data.films import natural
from diffgen.data.videos import Cut, Videos

Write = Callable[[Path, list[Image.Image]], None]


def frames(seed: int, n: int = 4, mode: str = "L", size: tuple[int, int] = (6, 5)) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    channels = {"L": (), "RGB": (3,)}[mode]
    return [Image.fromarray(rng.integers(0, 256, (size[1], size[0], *channels), np.uint8)) for _ in range(n)]


def animate(path: Path, film: list[Image.Image], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    film[0].save(path, save_all=True, append_images=film[1:], **options)


def numbered(path: Path, film: list[Image.Image]) -> None:
    path.mkdir(parents=True)
    for number, frame in enumerate(film):
        frame.save(path / f"{number + 7}.png")  # 7, 8, 9, 10: not in the order of letters


FORMS: dict[str, Write] = {
    "gif": lambda path, film: animate(path.with_suffix(".gif"), film, duration=40),
    "webp": lambda path, film: animate(path.with_suffix(".webp"), film, lossless=True, duration=40),
    "apng": lambda path, film: animate(path.with_suffix(".png"), film),
    "tiff": lambda path, film: animate(path.with_suffix(".tiff"), film),
    "folders": numbered,
}


def folder(root: Path, **settings: Any) -> Any:
    return dataset("video_folder", root=str(root), **{"channels": 1, "frames": 4, "workers": 0, **settings})


def stack(films: list[list[Image.Image]]) -> Tensor:
    return torch.stack([torch.stack([torch.from_numpy(np.array(frame))[None] for frame in film]) for film in films])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_clips_is_the_same_data(tmp_path: Path, form: str) -> None:
    films = [frames(i) for i in range(4)]
    for number, (label, film) in enumerate(zip("abab", films, strict=True)):
        FORMS[form](tmp_path / label / f"film{number}", film)
    source = folder(tmp_path)
    order = [0, 2, 1, 3]
    assert torch.equal(source.stored, stack([films[i] for i in order]))
    assert source.classes == ("a", "b") and source.labels.tolist() == [0, 0, 1, 1]
    assert source.shape.size == (1, 4, 5, 6) and isinstance(source.kind, Clips)
    assert source.found == "4 films give 4 clips of 4 frames; 5x6; none left out"


def test_without_sub_folders_there_are_no_classes_and_a_folder_of_frames_is_no_class(tmp_path: Path) -> None:
    for name in ("one", "two"):
        numbered(tmp_path / name, frames(0))
    source = folder(tmp_path)
    assert source.classes == () and len(source) == 2
    assert folder(tmp_path / "one").stored.shape == (1, 4, 1, 5, 6)


def test_frames_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["f10.png", "f9.png", "f1.png"], key=natural) == ["f1.png", "f9.png", "f10.png"]


def test_a_film_gives_all_clips_that_do_not_overlap_or_some_of_them() -> None:
    assert Cut(4, 1, None).starts(13) == [0, 4, 8]
    assert Cut(4, 2, None).starts(15) == [0, 8] and Cut(4, 2, None).starts(14) == [0]
    assert Cut(4, 1, None).starts(3) == [] and Cut(4, 2, None).starts(7) == [0]
    assert Cut(4, 1, 2).starts(13) == [0, 9] and Cut(4, 1, 1).starts(13) == [0] and Cut(4, 1, 9).starts(13) == [0, 4, 8]


def test_what_is_not_used_is_counted(tmp_path: Path) -> None:
    animate(tmp_path / "long.gif", frames(0, 11))
    animate(tmp_path / "short.gif", frames(1, 3))
    frames(2)[0].save(tmp_path / "one.gif")
    frames(2)[0].save(tmp_path / "still.jpg")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "damaged.gif").write_bytes(b"GIF89a and no more")
    (tmp_path / "empty.webp").write_bytes(b"")
    source = folder(tmp_path, undecodable="skip")
    assert len(source) == 2
    assert dict(source.left_out) == {
        "short.gif": "too short",
        "one.gif": "a single frame among films",
        "still.jpg": "a single frame among films",
        "notes.txt": ".txt",
        "damaged.gif": "cannot be decoded",
        "empty.webp": "cannot be decoded",
    }
    assert source.found.startswith("1 film gives 2 clips of 4 frames; 5x6; 3 of 11 frames are in no clip; 6 left out")


def test_every_second_frame(tmp_path: Path) -> None:
    film = frames(0, 9)
    animate(tmp_path / "a.gif", film, duration=50)
    source = folder(tmp_path, stride=2)
    assert torch.equal(source.stored, stack([film[:8:2]])) and source.kind.fps == pytest.approx(10)


def test_numbers_that_are_missing_are_said(tmp_path: Path) -> None:
    numbered(tmp_path / "a", frames(0, 6))
    (tmp_path / "a" / "9.png").unlink()
    assert "1 number missing between the first frame and the last" in " ".join(folder(tmp_path).notes)


def test_partial_and_transparent_frames_are_seen_as_a_viewer_shows_them(tmp_path: Path) -> None:
    film = [Image.new("RGBA", (4, 4), (0, 0, 0, 255)) for _ in range(3)]
    for number, frame in enumerate(film):
        frame.putpixel((number, 0), (255, 255, 255, 255))
    animate(tmp_path / "a.gif", film, disposal=1, optimize=True)
    pixels = folder(tmp_path, frames=3).stored[0, :, 0]
    assert pixels[:, 0].tolist() == [[255, 0, 0, 0], [0, 255, 0, 0], [0, 0, 255, 0]]


def test_sizes_differ_unless_one_is_asked_for(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", frames(0))
    animate(tmp_path / "b.gif", frames(1, size=(8, 8)))
    with pytest.raises(DataError, match="b.gif is 8x8, others 5x6: set dataset.size"):
        folder(tmp_path)
    assert folder(tmp_path, size=4).stored.shape == (2, 4, 1, 4, 4)


def test_frames_of_several_sizes_in_one_film_are_refused(tmp_path: Path) -> None:
    animate(tmp_path / "a.tiff", [*frames(0, 3), *frames(1, 1, size=(9, 9))])
    with pytest.raises(DataError, match="a.tiff has frames of several sizes: set dataset.size"):
        folder(tmp_path)
    source = folder(tmp_path, size=5)
    assert source.stored.shape == (1, 4, 1, 5, 5)
    assert "5x6 to 9x9 (2 sizes), made 5x5" in source.found


def test_classes_of_one_film_each_are_doubted(tmp_path: Path) -> None:
    for number, name in enumerate("abc"):
        animate(tmp_path / name / "x.gif", frames(number, 12))
    assert "each of the 3 classes holds one film" in " ".join(folder(tmp_path).notes)
    animate(tmp_path / "a" / "y.gif", frames(3, 12))
    assert "holds one film" not in " ".join(folder(tmp_path).notes)


def test_streamed_clips_are_those_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        animate(tmp_path / f"{number}.gif", frames(number, 9))
    known = folder(tmp_path)
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 10)
    source = folder(tmp_path)
    assert isinstance(source, Videos) and isinstance(known, base.InMemory)
    order = [torch.tensor([5, 0, 3]), torch.tensor([2, 1, 4])]
    for examples, wanted in zip(source.batches(iter(order), torch.device("cpu")), order, strict=True):
        assert torch.equal(examples.examples, known.stored[wanted])


def test_films_are_held_out_whole(tmp_path: Path) -> None:
    for number in range(5):
        animate(tmp_path / f"{number}.gif", frames(number, 12))
    config = {"name": "video_folder", "root": str(tmp_path), "frames": 4, "stride": 1, "clips": None, "size": None}
    config |= {"channels": 1, "fps": None, "background": "white", "range": None, "undecodable": "refuse"}
    config |= {"max_pixels": 10**6, "workers": 0, "held_out": 0.2, "held_out_seed": 0}
    splits = make_splits({"dataset": config})
    assert (len(splits.train), len(splits.test or ())) == (12, 3)
    clips = {clip.numpy().tobytes() for clip in splits.test.stored}  # type: ignore[union-attr]
    films = [
        {clip.numpy().tobytes() for clip in stack([film[i : i + 4] for i in (0, 4, 8)])}
        for film in [frames(i, 12) for i in range(5)]
    ]
    assert clips in films


def test_a_long_film_takes_no_more_memory_than_its_clips(tmp_path: Path) -> None:
    animate(tmp_path / "a.gif", [Image.new("L", (2, 2), i % 256) for i in range(600)])
    assert folder(tmp_path, clips=1).stored[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert folder(tmp_path, clips=2).stored[:, 0, 0, 0, 0].tolist() == [0, 596 % 256]


def test_megabytes_of_notes_do_no_harm(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_text("comment", "x" * 3_000_000)
    film = frames(0)
    numbered(tmp_path / "a", film)
    film[1].save(tmp_path / "a" / "8.png", pnginfo=notes)
    animate(tmp_path / "b.gif", film, comment=b"y" * 3_000_000)
    (tmp_path / "c").mkdir()
    (tmp_path / "b.gif").rename(tmp_path / "c" / "b.gif")
    assert torch.equal(folder(tmp_path / "a").stored, stack([film]))
    assert torch.equal(folder(tmp_path / "c").stored, stack([film]))


def truncated(path: Path) -> None:
    animate(path / "a.gif", frames(0, 6, size=(60, 60)))
    data = (path / "a.gif").read_bytes()
    (path / "a.gif").write_bytes(data[: len(data) // 2])


def bomb(path: Path) -> None:
    animate(path / "a.gif", frames(0, size=(400, 300)))


def beside(path: Path) -> None:
    animate(path / "a.gif", frames(0))
    animate(path / "class" / "b.gif", frames(0))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: (path / "a.gif").write_bytes(b""), "a.gif cannot be decoded"),
        (lambda path: (path / "a.gif").write_text("no film"), "a.gif cannot be decoded"),
        (truncated, "a.gif cannot be decoded: it is cut off"),
        (bomb, "a.gif has 300 x 400 pixels, more than 10,000: raise dataset.max_pixels"),
        (beside, "a.gif stands beside sub-folders"),
        (lambda path: None, "holds no films of 4 frames or more (none left out)"),
        (lambda path: numbered(path / "x", frames(0, 2)), "holds no films of 4 frames or more (1 left out: 1 too short)"),
    ],
)  # fmt: skip
def test_bad_films_are_told_in_one_sentence(tmp_path: Path, make: Callable[[Path], object], sentence: str) -> None:
    make(tmp_path)
    with pytest.raises(DataError, match=re.escape(sentence)):
        folder(tmp_path, max_pixels=10_000)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"frames": 1}, "dataset.frames=1 must be in [2, 1024]"),
        ({"stride": 0}, "dataset.stride=0 must be in [1, 1000]"),
        ({"clips": 0}, "dataset.clips=0 must be at least 1"),
        ({"fps": 0.0}, "dataset.fps=0.0 must be in [0.1, 240]"),
        ({"channels": 2}, "dataset.channels=2 must be one of [1, 3, 4]"),
    ],
)
def test_settings_out_of_range_are_told(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        folder(tmp_path, **settings)


def test_sheets_of_long_clips_are_bounded() -> None:
    """Strips show frames from the first to the last, and films fewer clips."""
    clips = torch.arange(4096).remainder(251).to(torch.uint8)[None, :, None, None, None].expand(2, 4096, 1, 4, 4)
    sheet = np.asarray(Clips().show(clips, [-1, -1]))
    gap, cell = 2 * 16, 64 + 2 * 16
    seen = sheet[gap + 32, gap + 32 :: cell]
    assert sheet.shape == (2 * cell + gap, 64 * cell + gap)
    assert seen[:64].tolist() == [round(65 * i) % 251 for i in range(64)]
    short = torch.zeros(100, 2, 1, 64, 64, dtype=torch.uint8)
    long = short[:, :1].expand(-1, 4096, -1, -1, -1)
    assert len(_some(short)) == 64 and len(_some(long)) == 4
    assert len(_some(torch.zeros(2, 1, 1, 1, 1, dtype=torch.uint8).expand(-1, 4096, 3, 256, 256))) == 1


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"\0" * 99)
    with pytest.raises(
        DataError, match=re.escape("a.mp4 needs a library that is not installed: pip install 'diffgen[video]'")
    ):
        folder(tmp_path)


def test_mp4_is_written_and_read(tmp_path: Path) -> None:
    pytest.importorskip("av")
    clip = torch.zeros(1, 6, 3, 32, 48, dtype=torch.uint8)
    for t in range(6):
        clip[0, t, :, :, 8 * t : 8 * t + 8] = 200
    (tmp_path / "a.mp4").write_bytes(Clips(fps=12).write("mp4", clip, [-1], ()))
    source = folder(tmp_path, frames=6, channels=3)
    assert source.kind.fps == pytest.approx(12)
    height, width = source.shape.size[2:]
    scale, gap = width // 48, width % 48 // 2  # of the paper around it
    sheet = torch.nn.functional.interpolate(clip[0].float(), scale_factor=scale)
    inside = source.stored[0, :, :, gap : gap + 32 * scale, gap : gap + 48 * scale]
    assert (inside.float() - sheet).abs().mean() < 8 and height == 32 * scale + 2 * gap
