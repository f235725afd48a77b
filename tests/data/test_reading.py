"""The one reader of pictures: the right values, or a sentence that names the picture."""

from pathlib import Path

import inputs
import numpy as np
import pytest
import torch
from PIL import Image

from diffgen.core.errors import DataError, UsageError
from diffgen.data.kinds import Pixels
from diffgen.data.reading import Reading, Seen, UndecodableError, is_picture, suffixes


def read(path: Path, channels: int = 3, **settings: object) -> torch.Tensor:
    """The pixels of a picture, [C, H, W]."""
    return Reading(channels, **settings).read(path, str(path), None)[0]  # type: ignore[arg-type]


def seen(path: Path, channels: int = 3) -> Seen:
    return Reading(channels).read(path, str(path), None)[1]


def told(path: Path, channels: int = 3, **settings: object) -> str:
    """The one sentence of what is refused."""
    with pytest.raises(DataError) as caught:
        read(path, channels, **settings)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


# --- upright, for training and for tasks ------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_photographs_are_upright_wherever_they_are_read(tmp_path: Path, orientation: int) -> None:
    path = inputs.turned(tmp_path / "a.jpg", orientation)
    pixels = read(path)
    assert pixels[:, :14].min() > 240 and pixels[:, 18:].max() < 15
    task = Pixels().read(str(path), (3, 32, 32))
    assert task[:, :14].min() > 0.9 and task[:, 18:].max() < -0.9


def test_a_note_that_cannot_be_read_turns_nothing(tmp_path: Path) -> None:
    """Pixels count."""
    path = inputs.save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xff" * 40)
    assert read(path).shape == (3, inputs.HEIGHT, inputs.WIDTH)


# --- ranges -------------------------------------------------------------------------------------------------------


def test_floats_want_a_range(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    path = inputs.save(tmp_path / "a.tif", image=Image.fromarray(values))
    sentence = told(path, 1)
    assert "float32 values from 0 to 1: dataset.range=[0,1]" in sentence
    assert read(path, 1, range=(0, 1))[0].tolist() == np.rint(values * 255).tolist()
    assert read(path, 3, range=(0, 2)).max() == 128
    assert "outside dataset.range=[0,0.5]" in told(path, 1, range=(0, 0.5))


@pytest.mark.parametrize(("bits", "suggested"), [(8, 255), (10, 1023), (12, 4095), (14, 16383), (15, 65535)])
def test_few_bits_in_sixteen_want_a_range(tmp_path: Path, bits: int, suggested: int) -> None:
    values = np.linspace(0, 2**bits - 1, 48).astype(np.uint16).reshape(6, 8)
    path = inputs.save(tmp_path / "a.png", image=Image.fromarray(values))
    assert f"dataset.range=[0,{suggested}]" in told(path, 1)
    scaled = read(path, 1, range=(0, 2**bits - 1))[0]
    assert scaled.tolist() == np.rint(values * (255 / (2**bits - 1))).tolist()


def test_sixteen_bits_that_are_used_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [65535, 257 * 7]], np.uint16)
    assert read(inputs.save(tmp_path / "a.png", image=Image.fromarray(values)), 1)[0].tolist() == [[0, 100], [255, 7]]
    black = inputs.save(tmp_path / "b.png", image=Image.fromarray(np.zeros((2, 2), np.uint16)))
    assert read(black, 1).max() == 0, "black is black in any range"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0, 255]], np.int32), "int32 values from 0 to 255: dataset.range=[0,255]"),
        (np.array([[-1000, 3000]], np.int32), "int32 values from -1000 to 3000: dataset.range=[-1000,3000]"),
        (np.array([[-1, 1]], np.float32), "float32 values from -1 to 1: dataset.range=[-1,1]"),
        (np.array([[0, np.nan]], np.float32), "holds values that are not finite"),
    ],
)
def test_numbers_without_a_range_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    assert words in told(inputs.save(tmp_path / "a.tif", image=Image.fromarray(values)), 1)


def test_a_format_that_states_its_white_needs_no_range(tmp_path: Path) -> None:
    values = np.array([[0, 100], [200, 300]], ">u2")
    (tmp_path / "a.pgm").write_bytes(b"P5 2 2 1023\n" + values.tobytes())
    assert read(tmp_path / "a.pgm", 1)[0].tolist() == np.rint(values * (255 / 1023)).astype(int).tolist()


def test_deep_colours_are_read_where_they_use_their_bits(tmp_path: Path) -> None:
    whole = inputs.deep_rgb(tmp_path / "a.png", 65535)
    assert read(whole).max() > 200
    dim = inputs.deep_rgb(tmp_path / "b.png", 4095)
    assert "16-bit colours that reach 15 of 255" in told(dim)
    assert read(dim, range=(0, 65535)).max() == 15, "as the user says"


def test_a_range_inside_bytes_is_followed_and_one_beyond_is_not_meant_for_them(tmp_path: Path) -> None:
    path = inputs.save(tmp_path / "a.png", image=Image.fromarray(np.array([[0, 1]], np.uint8)))
    assert read(path, 1)[0].tolist() == [[0, 1]]
    assert read(path, 1, range=(0, 1))[0].tolist() == [[0, 255]]
    assert read(path, 1, range=(0, 4095))[0].tolist() == [[0, 1]], "a byte among pictures of 12 bits"


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "RGBA"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_range_is_that_of_every_picture_of_bytes(tmp_path: Path, mode: str, channels: int) -> None:
    """Else a folder of several modes would be bright here and dark there."""
    grey = np.array([[0, 15], [3, 9]], np.uint8)
    image = Image.fromarray(np.stack([grey] * 3, 2))
    image = image.quantize() if mode == "P" else image.convert("L" if mode == "LA" else mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(255)
    pixels = read(inputs.save(tmp_path / "a.png", image=image), channels, range=(0, 15))
    assert pixels[0].tolist() == [[0, 255], [51, 153]]
    assert channels < 4 or (pixels[3] == 255).all()


def test_what_nobody_sees_need_not_be_in_the_range(tmp_path: Path) -> None:
    values = np.zeros((2, 2, 4), np.uint8)
    values[..., 0], values[0, 0] = 15, (200, 200, 200, 0)
    values[..., 3] = [[0, 255], [255, 255]]
    pixels = read(inputs.save(tmp_path / "a.png", image=Image.fromarray(values)), range=(0, 15))
    assert pixels[:, 0, 0].tolist() == [255] * 3 and pixels[:, 1, 1].tolist() == [255, 0, 0]
    grey = Image.fromarray(np.array([[7, 15]], np.uint8))
    pixels = read(inputs.save(tmp_path / "b.png", image=grey, transparency=7), 1, range=(0, 15), background="black")
    assert pixels[0].tolist() == [[0, 255]]


def test_one_transparent_number_among_many_bits_is_refused(tmp_path: Path) -> None:
    values = Image.fromarray(np.array([[0, 65535]], np.uint16))
    path = inputs.save(tmp_path / "a.png", image=values, transparency=0)
    with Image.open(path) as saved:
        if not saved.has_transparency_data:
            pytest.skip("this Pillow does not write it")
    assert "one of which is transparent: save it with alpha" in told(path, 1)


@pytest.mark.parametrize("given", [(1, 0), (0, 0), (1,), (0, 1, 2)])
def test_a_range_is_two_numbers_that_rise(given: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match=r"range=\[.*\] must be \[black, white\]"):
        Reading(1, range=given)


def test_a_task_reads_ranges_as_training_did(tmp_path: Path) -> None:
    path = inputs.save(tmp_path / "a.tif", image=Image.fromarray(np.array([[0.0, 1.0]], np.float32)))
    assert Pixels(range=(0, 1)).read(str(path), (1, 1, 2)).flatten().tolist() == [-1, 1]
    with pytest.raises(DataError) as caught:
        Pixels().read(str(path), (1, 1, 2))
    assert "dataset." not in str(caught.value), "a task has no data set"


# --- colours ------------------------------------------------------------------------------------------------------


def sprite(mode: str = "RGBA") -> Image.Image:
    """Red in the middle; what is hidden around it is green."""
    array = np.zeros((6, 8, 4), np.uint8)
    array[..., 1] = 200
    array[2:4, 2:6] = (255, 0, 0, 255)
    image = Image.fromarray(array)
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize(
    ("background", "colour"), [("white", [255] * 3), ("black", [0] * 3), ("#102030", [16, 32, 48])]
)
def test_hidden_colours_are_never_seen(tmp_path: Path, background: str, colour: list[int]) -> None:
    path = inputs.save(tmp_path / "a.png", image=sprite())
    pixels = read(path, background=background)
    assert pixels[:, 0, 0].tolist() == colour
    assert pixels[:, 2, 2].tolist() == [255, 0, 0]
    assert Reading(3).read(path, "a", None)[1].transparent
    task = Pixels(background=background).read(str(path), (3, 6, 8))
    assert torch.allclose((task[:, 0, 0] + 1) * 127.5, torch.tensor(colour, dtype=torch.float32), atol=1e-3)


def test_alpha_is_kept_where_it_is_asked_for(tmp_path: Path) -> None:
    pixels = read(inputs.save(tmp_path / "a.png", image=sprite()), 4)
    assert pixels[3].unique().tolist() == [0, 255]


def test_transparent_colours_of_palettes_and_greys(tmp_path: Path) -> None:
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    palette.putpalette([10, 20, 30, 1, 2, 3])
    palette.putpixel((1, 1), 1)
    path = inputs.save(tmp_path / "a.png", image=palette, transparency=0)
    pixels = read(path)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255] and pixels[:, 1, 1].tolist() == [1, 2, 3]
    grey = inputs.save(tmp_path / "b.png", image=sprite("LA"))
    assert read(grey, 1)[0, 0, 0] == 255 and seen(grey, 1).transparent
    opaque = inputs.save(tmp_path / "c.png", image=Image.new("RGBA", (4, 4), (1, 2, 3, 255)))
    assert not seen(opaque).transparent


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_bytes_is_read(tmp_path: Path, mode: str) -> None:
    image = inputs.picture(mode="RGB").convert(mode)
    path = inputs.save(tmp_path / "a.tif", image=image)
    assert read(path).shape == (3, inputs.HEIGHT, inputs.WIDTH)
    assert seen(path).mode == mode


def test_colours_that_are_no_colours_are_refused() -> None:
    with pytest.raises(UsageError, match="background='blak' must be a colour"):
        Reading(3, background="blak")


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("megabytes", "zipped"), [(3, False), (3, True), (0.1, True)])
@pytest.mark.parametrize("international", [False, True])
def test_metadata_is_no_reason_to_refuse_pixels(
    tmp_path: Path, megabytes: float, zipped: bool, international: bool
) -> None:
    path = inputs.noted(tmp_path / "a.png", megabytes, zipped=zipped, international=international)
    assert torch.equal(read(path), read(inputs.save(tmp_path / "b.png")))


def test_a_large_profile_is_no_reason_either(tmp_path: Path) -> None:
    profile = np.random.default_rng(0).integers(0, 256, 2_000_000, np.uint8).tobytes()
    path = inputs.save(tmp_path / "a.png", icc_profile=profile)
    assert torch.equal(read(path), read(inputs.save(tmp_path / "b.png")))


def test_a_limit_that_refuses_has_a_name(tmp_path: Path) -> None:
    path = inputs.save(tmp_path / "a.png", image=Image.new("L", (100, 50)))
    assert "has 50 x 100 pixels, more than 4,999: raise dataset.max_pixels" in told(path, max_pixels=4999)
    assert read(path, max_pixels=5000).shape == (3, 50, 100)


def test_of_several_frames_the_first_is_read_and_that_is_seen(tmp_path: Path) -> None:
    frames = [inputs.picture(seed).quantize() for seed in range(3)]
    path = inputs.save(tmp_path / "a.gif", image=frames[0], save_all=True, append_images=frames[1:])
    assert seen(path).frames
    assert not seen(inputs.save(tmp_path / "b.gif", image=frames[0])).frames


def test_what_is_no_picture_is_undecodable_and_the_rest_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(UndecodableError, match=r"a.png cannot be decoded"):
        read(tmp_path / "a.png")
    (tmp_path / "b.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(UndecodableError):
        read(tmp_path / "b.eps")  # Ghostscript is never started
    assert ".eps" not in suffixes() and {".jfif", ".png", ".webp", ".tif"} <= suffixes()


def test_a_disk_that_fails_is_no_broken_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else undecodable=skip would leave out pictures that are whole."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    path = inputs.save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DataError, match=r"a.png cannot be read: Input/output error") as caught:
        read(path)
    assert not isinstance(caught.value, UndecodableError)


def test_pillow_s_own_limit_is_put_back_whatever_threads_do(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    path, before = inputs.save(tmp_path / "a.png"), Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: read(path), range(200)))
    assert before == Image.MAX_IMAGE_PIXELS and before is not None


def test_pictures_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    inputs.save(tmp_path / "a.png").rename(tmp_path / "a")
    (tmp_path / "b").write_text("P1 is how a text may begin")
    assert is_picture(tmp_path / "a") and not is_picture(tmp_path / "b")
