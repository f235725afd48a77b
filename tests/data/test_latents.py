"""Latents of pictures: scaled there and back, encoded once for all runs, and encoded anew where they would differ."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from inputs import as_parquet, classes, save, zipped
from rows import dataset, row
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffgen.build import make_autoencoder
from diffgen.core.console import Reporter
from diffgen.core.errors import DataError, UsageError
from diffgen.core.processes import accelerated
from diffgen.core.registry import build
from diffgen.core.settings import LatentSettings
from diffgen.core.signals import StopRequest
from diffgen.data import Images, pictures
from diffgen.data.base import Part
from diffgen.data.kinds import Pixels
from diffgen.data.latents import Encoded, Latents
from diffgen.nets import MODELS, DataShape
from diffgen.nets.autoencoder import Autoencoder
from diffgen.storage.autoencoder_file import Found
from diffgen.storage.tensor_file import digest, write_tensors
from diffgen.training import encoding, latent_cache

CONFIG = row("model", "vae_tiny", channels=8, latent_channels=2, patch=2)
Encode = Callable[..., Encoded]


def found(seed: int = 0, *, wide: float = 1.0) -> Found:
    """An autoencoder of pictures [1, 8, 8] that was never trained, and whose posterior is so much wider."""
    torch.manual_seed(seed)
    network = build(MODELS, CONFIG, DataShape((1, 8, 8)))
    with torch.no_grad():
        network.encoder[-1].bias[2:] += 2 * torch.tensor(wide).log()
    return Found(CONFIG, network.state_dict(), (1, 8, 8), "logistic")


def some(count: int = 20, seed: int = 0, dark: int = 0) -> Images:
    """Random pictures, the first of them dark."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=rng)
    pixels[:dark] //= 16
    return Images(pixels, torch.arange(count) % 3, ("a", "b", "c"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of an encoder was given."""
    seen: list[int] = []
    encode = Autoencoder.encode

    def counting(self: Autoencoder, x: Tensor) -> Any:
        seen.append(len(x))
        return encode(self, x)

    monkeypatch.setattr(Autoencoder, "encode", counting)
    return seen


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    with accelerated("no") as one:
        yield one


@pytest.fixture
def encode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: Accelerator) -> Encode:
    """`encode(source, found, posterior="mean", mirrored=False)`, in pieces of eight pictures."""
    monkeypatch.setattr(latent_cache, "PIECE", 8)

    def run(source: Any, which: Found, *, posterior: Any = "mean", mirrored: bool = False) -> Encoded:
        monkeypatch.setattr(encoding, "find", lambda path, key: which)
        settings = LatentSettings(path="A", posterior=posterior, embed=True, cache=str(tmp_path / "cache"))
        reporter = Reporter(speaks=False)
        return encoding.encoded(
            source,
            settings,
            mirrored=mirrored,
            before=None,
            accelerator=accelerator,
            reporter=reporter,
            request=StopRequest(),
            fits=lambda shape: None,
        )[0]

    return run


def folders(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def by_itself(which: Found, pixels: Tensor) -> Any:
    network = make_autoencoder(which.config, (1, 8, 8), which.weights, Path())
    with torch.no_grad():
        return network.encode(pixels / 127.5 - 1)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_latents_are_those_of_each_picture_in_its_place(encode: Encode) -> None:
    data, which = some(), found()
    made = encode(data, which)
    expected = by_itself(which, data.pixels).mean
    assert len(made) == 20 and made.shape == DataShape((2, 4, 4), 3) and made.classes == data.classes
    torch.testing.assert_close(made.latents[:, 0], expected)
    assert torch.equal(made.labels, data.labels)
    (batch,) = made.batches(iter([torch.tensor([17, 3])]), torch.device("cpu"))
    assert torch.equal(batch.examples, made.latents[[17, 3]]) and batch.labels.tolist() == [2, 0]


def test_the_scale_is_that_of_all_pictures(encode: Encode) -> None:
    """Not of the first piece, nor the mean of those of the pieces, of which the last is smaller."""
    data, which = some(dark=8), found()
    made = encode(data, which)
    z = by_itself(which, data.pixels).mean.double().transpose(0, 1).flatten(1)
    assert isinstance(made.kind, Latents)
    assert made.kind.mean == pytest.approx(z.mean(1).tolist(), rel=1e-3, abs=1e-6)
    assert made.kind.std == pytest.approx(z.std(1, correction=0).tolist(), rel=1e-3)
    first = by_itself(which, data.pixels[:8]).mean.double().transpose(0, 1).flatten(1)
    assert made.kind.std != pytest.approx(first.std(1, correction=0).tolist(), rel=0.02), "so that the test can fail"
    x0 = made.x0(made.latents, None).transpose(0, 1).flatten(1)
    torch.testing.assert_close(x0.mean(1), torch.zeros(2), atol=2e-3, rtol=0)
    torch.testing.assert_close(x0.std(1, correction=0), torch.ones(2), atol=2e-3, rtol=0)


def test_what_is_learned_from_is_decoded_to_pictures(encode: Encode) -> None:
    """The scale is taken off again: the decoder sees the autoencoder's own latents."""
    data, which = some(), found()
    made = encode(data, which)
    kind = made.kind
    x0 = made.x0(made.latents, None)
    torch.testing.assert_close(kind.encode(data.pixels), x0)
    network = make_autoencoder(which.config, (1, 8, 8), which.weights, Path())
    with torch.no_grad():
        expected = network.decode(by_itself(which, data.pixels).mean)
    pixels = kind.decode(x0)
    assert pixels.dtype == torch.uint8 and pixels.shape == data.pixels.shape
    assert (pixels.float() - (expected.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.51
    assert torch.equal(kind.decode(x0.double()), pixels)


def test_many_pictures_are_decoded_a_few_at_a_time(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    made = encode(some(), found())
    x0 = made.x0(made.latents, None)
    at_once, sizes = made.kind.decode(x0), list[int]()
    decode = Autoencoder.decode
    monkeypatch.setattr(Autoencoder, "decode", lambda self, z: sizes.append(len(z)) or decode(self, z))
    monkeypatch.setattr("diffgen.data.latents.AT_ONCE", 64 * 3)
    assert (made.kind.decode(x0).int() - at_once.int()).abs().max() <= 1
    assert sizes == [3] * 6 + [2]


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_mirrored_picture_has_latents_of_its_own(encode: Encode, calls: list[int], mirrored: bool) -> None:
    """Which are not its latents mirrored; they are used where a picture is to be mirrored, and count for the scale."""
    data, which = some(), found()
    made = encode(data, which, mirrored=mirrored)
    assert made.latents.shape == (20, 2 if mirrored else 1, 2, 4, 4) and sum(calls) == (40 if mirrored else 20)
    if not mirrored:
        return
    other = by_itself(which, data.pixels.flip(-1)).mean
    torch.testing.assert_close(made.latents[:, 1], other)
    assert not torch.allclose(other, made.latents[:, 0].flip(-1), atol=1e-3)
    chosen = torch.arange(20) % 3 == 0
    x0, kind = made.x0(made.latents, chosen), made.kind
    assert isinstance(kind, Latents)
    torch.testing.assert_close(x0[chosen], kind.scaled(other)[chosen])
    torch.testing.assert_close(x0[~chosen], kind.scaled(made.latents[:, 0])[~chosen])
    both = made.latents.double().movedim(2, 0).flatten(1)
    assert kind.mean == pytest.approx(both.mean(1).tolist(), rel=1e-3, abs=1e-6)


def test_a_draw_is_of_the_picture_and_its_number_alone(encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    data, which = some(), found(wide=3.0)
    drawn, mean = encode(data, which, posterior="sample").latents[:, 0], encode(data, which).latents[:, 0]
    posterior = by_itself(which, data.pixels)
    noise = (drawn - mean) / (0.5 * posterior.log_var).exp()
    assert abs(float(noise.mean())) < 0.15 and float(noise.std()) == pytest.approx(1, abs=0.1)
    assert len(noise.flatten().unique()) > 0.9 * noise.numel(), "each has noise of its own"
    monkeypatch.setattr(latent_cache, "PIECE", 5)
    turned = Images(data.pixels.flip(0), data.labels, data.classes)
    other = encode(turned, which, posterior="sample").latents[:, 0]
    expected = by_itself(which, turned.pixels)
    torch.testing.assert_close(other, expected.mean + (0.5 * expected.log_var).exp() * noise, atol=1e-4, rtol=1e-4)


def test_a_collapsed_channel_is_told(encode: Encode) -> None:
    which = found()
    which.weights[last(which)][1] = 0
    with pytest.raises(
        DataError, match="channel 1 of the latents is the same for all pictures: the autoencoder has coll"
    ):
        encode(some(), which)


def last(which: Found) -> str:
    """The weight of the encoder's last layer."""
    return [name for name in which.weights if name.startswith("encoder.") and name.endswith(".weight")][-1]


def test_pictures_of_another_size_and_other_data_are_refused(encode: Encode) -> None:
    other = Images(torch.zeros(4, 1, 16, 16, dtype=torch.uint8), torch.zeros(4).long(), ("a",))
    with pytest.raises(UsageError, match=r"latent.path='A' is an autoencoder of pictures of \(1, 8, 8\), and the data"):
        encode(other, found())
    with pytest.raises(UsageError, match="latent.path='A' is of pictures, and the data is vectors"):
        encode(dataset("points"), found())


@pytest.mark.parametrize(
    ("mean", "std"), [((0.0,), (0.0,)), ((0.0,), (-1.0,)), ((), ()), ((0.0, 1.0), (1.0,)), ((0.0,), (1.0, 1.0))]
)
def test_a_scale_that_is_none_is_refused(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="must be one of each, std above 0"):
        Latents(size=(1, 8, 8), autoencoder={}, hash="", likelihood=None, mean=mean, std=std)
    kind = Latents(size=(1, 8, 8), autoencoder={}, hash="", likelihood=None, mean=(0.0,), std=(1.0,))
    with pytest.raises(UsageError, match=r"data.size=\[2, 4, 4\] has 2 channels, and data.kind.mean 1"):
        kind.check((2, 4, 4))


# --- the cache ----------------------------------------------------------------------------------------------------


def test_a_second_run_encodes_nothing(encode: Encode, calls: list[int], tmp_path: Path) -> None:
    first = encode(some(), found())
    assert "encoded now" in first.home and sum(calls) == 20
    del calls[:]
    again = encode(some(), found())
    assert not calls and "found in" in again.home and again.kind == first.kind
    assert torch.equal(again.latents, first.latents) and torch.equal(again.labels, first.labels)


def test_what_was_interrupted_goes_on(encode: Encode, calls: list[int], tmp_path: Path) -> None:
    first = encode(some(), found())
    (folder,) = (tmp_path / "cache").iterdir()
    pieces = sorted(folder.iterdir())
    assert [piece.name for piece in pieces] == [f"{n:09d}.safetensors" for n in (0, 8, 16)]
    times = pieces[2].stat().st_mtime_ns
    for piece in pieces[:2]:
        piece.unlink()
    del calls[:]
    again = encode(some(), found())
    assert sum(calls) == 16 and pieces[2].stat().st_mtime_ns == times
    assert torch.equal(again.latents, first.latents) and "encoded now" in again.home


def rewritten(path: Path, **tensors: Tensor) -> None:
    """A piece of other tensors, whose checksum is right."""
    write_tensors(tensors, path, {"sha256": digest(tensors, "")})


def with_a_byte_turned(path: Path) -> None:
    """Of a latent: as finite as before."""
    held = bytearray(path.read_bytes())
    held[-9 * 8] ^= 1
    path.write_bytes(held)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda p: p.write_bytes(p.read_bytes()[:-5]),
    "empty": lambda p: p.write_bytes(b""),
    "a byte turned": with_a_byte_turned,
    "no checksum": lambda p: save_file(load_file(p), p, {"library": "diffgen"}),
    "other tensors": lambda p: rewritten(p, x=torch.zeros(1)),
    "too few": lambda p: rewritten(p, **{key: value[:-1] for key, value in load_file(p).items()}),
    "not a number": lambda p: rewritten(p, **{**load_file(p), "latents": torch.full((8, 1, 2, 4, 4), float("nan"))}),
    "of another size": lambda p: rewritten(p, **{**load_file(p), "latents": torch.zeros(8, 1, 2, 3, 3)}),
    "of whole numbers": lambda p: rewritten(p, **{**load_file(p), "latents": torch.zeros(8, 1, 2, 4, 4).long()}),
    "labels of real numbers": lambda p: rewritten(p, **{**load_file(p), "labels": torch.zeros(8)}),
}


@pytest.mark.fault(
    "a damaged file of latents",
    "exit 3: the file, and that its pictures are encoded again once it is deleted",
)
@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_piece_is_named(encode: Encode, tmp_path: Path, case: str) -> None:
    encode(some(), found())
    piece = next((tmp_path / "cache").glob("*/000000008.safetensors"))
    DAMAGE[case](piece)
    with pytest.raises(DataError) as caught:
        encode(some(), found())
    assert str(caught.value) == f"{piece} is damaged: delete it, and its pictures are encoded again"


def test_a_rewritten_piece_is_read(encode: Encode, tmp_path: Path) -> None:
    """So that the cases above are refused for what they hold."""
    first = encode(some(), found())
    piece = next((tmp_path / "cache").glob("*/000000008.safetensors"))
    rewritten(piece, **load_file(piece))
    assert torch.equal(encode(some(), found()).latents, first.latents)


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"background": "white", "range": None}, ""),
        ({"background": "black", "range": None}, "read with dataset.background=black, and these are with white"),
        ({"background": "white", "range": (0.0, 1.0)}, ""),
        ({}, ""),
    ],
)
def test_pictures_that_are_read_otherwise_are_told_of(
    encode: Encode, monkeypatch: pytest.MonkeyPatch, there: dict[str, Any], told: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Reporter, "warn", lambda self, text: said.append(text))
    encode(some(), replace(found(), read_as=there))
    assert [text.partition("learned from pictures ")[2] for text in said] == ([told] if told else [])


OTHERS: dict[str, Callable[[Encode], object]] = {
    "other pictures": lambda encode: encode(some(seed=1), found()),
    "one picture less": lambda encode: encode(some(19), found()),
    "other labels": lambda encode: encode(Images(some().pixels, 2 - some().labels, some().classes), found()),
    "another autoencoder": lambda encode: encode(some(), found(1)),
    "another posterior": lambda encode: encode(some(), found(), posterior="sample"),
    "mirrored": lambda encode: encode(some(), found(), mirrored=True),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_latents_have_a_folder_of_their_own(encode: Encode, tmp_path: Path, case: str) -> None:
    encode(some(), found())
    before = folders(tmp_path)
    OTHERS[case](encode)
    assert len(folders(tmp_path)) == 2 and before[0] in folders(tmp_path)


# --- pictures that are not in memory ------------------------------------------------------------------------------


def streamed(root: Path, **settings: Any) -> Any:
    return dataset("image_folder", root=str(root), size=8, workers=0, **settings)


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """No memory for pictures, and a few examples tell little of them."""
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(latent_cache, "identity", lambda source: "the same")


def touch(path: Path) -> None:
    """As if it had been written a second later."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.usefixtures("large")
def test_a_changed_file_is_told_from_what_it_was(tmp_path: Path) -> None:
    root = classes(tmp_path / "in")
    first = latent_cache.fingerprint(streamed(root))
    assert latent_cache.fingerprint(streamed(root)) == first
    half = Part(streamed(root), torch.tensor([0, 1, 2]))
    assert (
        len(
            {
                first,
                latent_cache.fingerprint(half),
                latent_cache.fingerprint(Part(streamed(root), torch.tensor([0, 1, 3]))),
            }
        )
        == 3
    )
    touch(root / "dog" / "1.png")
    second = latent_cache.fingerprint(streamed(root))
    assert second != first and latent_cache.fingerprint(half) != second
    save(root / "dog" / "1.png", 999)
    (root / "cat" / "0.png").rename(root / "cat" / "9.png")
    assert latent_cache.fingerprint(streamed(root)) not in (first, second)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("form", ["zip", "parquet"])
def test_a_changed_archive_is_told_from_what_it_was(tmp_path: Path, form: str) -> None:
    root = classes(tmp_path / "in")
    path = (zipped if form == "zip" else as_parquet)(root, tmp_path / f"a.{form}")

    def source() -> Any:
        if form == "zip":
            return streamed(path)
        return dataset("parquet", path=str(path), size=8, workers=0)

    first = latent_cache.fingerprint(source())
    assert latent_cache.fingerprint(source()) == first
    touch(path)
    assert latent_cache.fingerprint(source()) != first


@pytest.mark.usefixtures("large")
def test_labels_and_settings_are_told_from_others(tmp_path: Path) -> None:
    """A piece holds labels, too; and what transparent pixels are laid on is part of a picture."""
    root = classes(tmp_path / "in", ["all"], each=4)
    found = []
    for names in ("xyxy", "yxxy"):
        (tmp_path / "labels.csv").write_text("".join(f"all/{i}.png,{name}\n" for i, name in enumerate(names)))
        source = streamed(root, labels=str(tmp_path / "labels.csv"))
        assert isinstance(source.kind, Pixels)
        found.append(latent_cache.fingerprint(source))
    found += [latent_cache.fingerprint(streamed(root, background=colour)) for colour in ("white", "black")]
    assert len(set(found)) == 4


@pytest.mark.usefixtures("large")
def test_a_part_of_a_large_array_is_known_by_all_of_it() -> None:
    one, other = some(), some()
    other.stored = other.stored.clone()
    other.stored[7] += 1
    keep = torch.arange(0, 20, 2)
    assert latent_cache.fingerprint(Part(one, keep)) != latent_cache.fingerprint(Part(other, keep))
