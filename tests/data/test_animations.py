"""Films that are written: every frame is there, and plays when it should."""

import io
from pathlib import Path

import inputs
import numpy as np
import pytest
import torch
from PIL import Image

from diffgen.data.animations import FASTEST, animation, lasting
from diffgen.data.clips import Clips
from diffgen.data.film import Film
from diffgen.data.reading import Reading


def read(data: bytes, mode: str) -> tuple[list[np.ndarray], list[float]]:
    """The frames of a file, and how many milliseconds each lasts."""
    found, lasts = [], []
    with Image.open(io.BytesIO(data)) as film:
        assert film.info["loop"] == 0
        for number in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(number)
            film.load()
            found.append(np.asarray(film.convert(mode)))
            lasts.append(film.info["duration"])
    return found, lasts


@pytest.mark.parametrize("name", ["gif", "webp"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_frames_that_are_alike_are_frames(name: str, mode: str) -> None:
    """Pillow would write the first of them, and let it stay."""
    a, b, c = inputs.frames(3, mode=mode)
    film = [a, a, b, b, b, c, a]
    found, _ = read(animation(film, name, 8), mode)
    assert np.array_equal(np.stack(found), np.stack([np.asarray(frame) for frame in film]))


@pytest.mark.parametrize("name", ["gif", "webp"])
def test_what_does_not_change_is_not_written_again(name: str) -> None:
    film = [inputs.picture(0, "L", (65, 43)) for _ in range(9)]
    for number, frame in enumerate(film):
        frame.paste(255, (3 * number, 5, 3 * number + 3, 8))
    data = animation(film, name, 8)
    found, _ = read(data, "L")
    assert np.array_equal(np.stack(found), np.stack([np.asarray(frame) for frame in film]))
    assert len(data) < 4 * len(animation(film[:1], name, 8)) + 8 * 900


@pytest.mark.parametrize("fps", [0.1, 7.0, 24.0, 29.97, 30.0, 60.0, 240.0])
@pytest.mark.parametrize("name", ["gif", "webp"])
def test_films_play_as_fast_as_they_should(name: str, fps: float) -> None:
    film = [Image.new("L", (4, 4), 3 * number) for number in range(60)]
    _, lasts = read(animation(film, name, fps), "L")
    played = min(fps, FASTEST) if name == "gif" else fps
    assert sum(lasts) == pytest.approx(1000 * 60 / played, abs=5) and max(lasts) - min(lasts) <= 10
    assert min(lasts) >= (20 if name == "gif" else 4)


def test_rounded_times_are_right_in_the_sum() -> None:
    assert lasting(6, 24, 100) == [4, 4, 4, 5, 4, 4] and sum(lasting(240, 24, 100)) == 1000


@pytest.mark.parametrize("fps", [8.0, 24.0, 30.0, 12.5])
@pytest.mark.parametrize("name", ["gif", "webp"])
def test_how_fast_a_film_is_can_be_read_again(tmp_path: Path, name: str, fps: float) -> None:
    clip = torch.arange(48, dtype=torch.uint8).reshape(1, 48, 1, 1, 1).expand(1, 48, 1, 4, 4)
    (tmp_path / "a").write_bytes(Clips(fps=fps).write(name, clip, [-1], ()))
    assert Film("a", (tmp_path / "a",)).fps(Reading(1)) == pytest.approx(fps, rel=0.005)
