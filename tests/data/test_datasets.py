"""Data sets from tiny files in the official formats, whose checksums are put in the place of the official ones."""

import gzip
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rows import row

from diffgen.core.errors import DataError, UsageError
from diffgen.data import Images, Source, cifar, mnist, pictures
from diffgen.data.cifar import cifar10
from diffgen.data.digits import digits
from diffgen.data.download import download_with_progress, fetch
from diffgen.data.mnist import IdxFile, parse_idx
from diffgen.data.pictures import Pictures
from diffgen.nets import DataShape

Patch = pytest.MonkeyPatch


def md5(data: bytes) -> str:
    return hashlib.md5(data).hexdigest()


def told(call: Callable[[], object]) -> str:
    """The one sentence of a DataError."""
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def take(data: object, entries: list[list[int]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of the given entries."""
    return list(data.batches(iter(torch.tensor(part) for part in entries), torch.device("cpu")))  # type: ignore[attr-defined]


# --- digits -------------------------------------------------------------------------------------------------


def test_every_fifth_digit_is_held_out() -> None:
    everything, train, test = (digits(split=split) for split in ("all", "train", "test"))  # type: ignore[arg-type]
    assert (len(everything), len(train), len(test)) == (1797, 1437, 360)
    assert torch.equal(test.pixels, everything.pixels[::5])
    kept = torch.tensor([i for i in range(1797) if i % 5])
    assert torch.equal(train.pixels, everything.pixels[kept])
    assert torch.equal(train.labels, everything.labels[kept])


def test_digits_are_stretched_to_eight_bits() -> None:
    from sklearn.datasets import load_digits

    data = digits(split="all")
    assert data.shape == DataShape((1, 8, 8), 10)
    assert data.pixels.dtype == torch.uint8
    grey = torch.from_numpy(load_digits().images)[:, None]
    assert (data.pixels.double() - grey * 255 / 16).abs().max() <= 0.5
    assert (data.pixels.min(), data.pixels.max()) == (0, 255)
    assert min(Counter(data.labels.tolist()).values()) > 170


def test_images_in_memory_are_gathered() -> None:
    data = Images(torch.arange(12, dtype=torch.uint8).reshape(3, 1, 2, 2), torch.tensor([5, 6, 7]), ())
    (pixels, labels), (more, _) = take(data, [[2, 0], [1]])
    assert torch.equal(pixels, data.pixels[[2, 0]])
    assert labels.tolist() == [7, 5]
    assert torch.equal(more, data.pixels[[1]])


# --- idx files ----------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An array of bytes in the idx format."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


PIXELS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9], np.uint8)


@pytest.fixture
def idx_files(tmp_path: Path, monkeypatch: Patch) -> dict[str, bytes]:
    """Six images in the official format, with their checksums in the place of the official ones; nothing on disk."""
    files = {"train-images-idx3-ubyte": idx(PIXELS), "train-labels-idx1-ubyte": idx(LABELS)}
    packed = {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in files.items()}
    sums = tuple(IdxFile(name, md5(packed[f"{name}.gz"]), md5(data)) for name, data in files.items())
    monkeypatch.setitem(mnist.MNIST, "train", sums)
    monkeypatch.setitem(mnist.FASHION, "train", tuple(file._replace(unpacked="") for file in sums))
    monkeypatch.setattr(mnist, "download_with_progress", no_network)
    return {**files, **packed}


def no_network(url: str, path: Path) -> None:
    raise OSError("no route to host")


def put(folder: Path, files: dict[str, bytes], ending: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        if name.endswith(ending):
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("ending", [".gz", "ubyte", ""])
@pytest.mark.parametrize(("row", "name"), [(mnist.mnist, "MNIST"), (mnist.fashion_mnist, "FashionMNIST")])
def test_idx_files_packed_or_unpacked(
    tmp_path: Path, idx_files: dict[str, bytes], row: Callable[..., Images], name: str, ending: str
) -> None:
    raw = put(tmp_path / name / "raw", idx_files, ending)
    before = sorted(raw.iterdir())
    data = row(root=str(tmp_path), split="train")
    assert data.shape == DataShape((1, 28, 28), 10)
    assert np.array_equal(data.pixels.numpy()[:, 0], PIXELS)
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == LABELS.tolist()
    assert sorted(raw.iterdir()) == before, "reading must not write"


def test_classes_have_names() -> None:
    assert len(mnist.CLOTHES) == 10
    assert mnist.CLOTHES[9] == "ankle boot"


@pytest.mark.fault("a data file with a wrong checksum (MNIST)", "exit 3, the file is named and not used")
@pytest.mark.parametrize("ending", [".gz", "ubyte"])
def test_a_damaged_idx_file_is_named(tmp_path: Path, idx_files: dict[str, bytes], ending: str) -> None:
    raw = put(tmp_path / "MNIST" / "raw", idx_files, ending)
    file = next(p for p in raw.iterdir() if "labels" in p.name)
    file.write_bytes(file.read_bytes()[:-1] + b"\x07")
    sentence = told(lambda: mnist.mnist(root=str(tmp_path), split="train"))
    assert str(file) in sentence
    assert "is damaged" in sentence
    assert file.exists(), "the user's file is not deleted"


def test_unpacked_files_without_a_published_checksum_are_checked_by_structure(
    tmp_path: Path, idx_files: dict[str, bytes]
) -> None:
    raw = put(tmp_path / "FashionMNIST" / "raw", idx_files, "ubyte")
    for damaged in (idx(LABELS)[:-1], idx(LABELS[:5]), idx(PIXELS), idx(LABELS.reshape(2, 3)), b""):
        (raw / "train-labels-idx1-ubyte").write_bytes(damaged)
        assert "train-labels-idx1-ubyte" in told(lambda: mnist.fashion_mnist(root=str(tmp_path), split="train"))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\0\0\x08", b"\0\0\x08\x01", b"\0\0\x08\x03\0\0\0\x01", idx(LABELS)[:-1], idx(LABELS) + b"\0",
        b"\0\0\x0d" + idx(LABELS)[3:], b"\x01" + idx(LABELS)[1:], bytes([0, 0, 8, 0]), bytes([0, 0, 8, 255]) + bytes(40),
        bytes([0, 0, 8, 2]) + struct.pack(">2i", -2, -3) + bytes(6), bytes([0, 0, 8, 1]) + struct.pack(">i", 2**31 - 1),
    ],
)  # fmt: skip
def test_malformed_idx_is_refused(data: bytes) -> None:
    assert "a/b is not a whole idx file of bytes" in told(lambda: parse_idx(data, Path("a/b")))


@pytest.mark.fault("a data set that is missing, with no network", "exit 3: the file and where it belongs")
def test_missing_files_say_where_they_belong(tmp_path: Path, idx_files: dict[str, bytes]) -> None:
    sentence = told(lambda: mnist.mnist(root=str(tmp_path), split="train"))
    assert str(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte.gz") in sentence
    assert "no route to host" in sentence
    assert "dataset.root" in sentence
    assert "dataset=digits needs no download" in sentence
    assert not list(tmp_path.iterdir()), "nothing is left behind, not even folders"


# --- downloads ----------------------------------------------------------------------------------------------


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `files`; each path may fail a few times first."""

    files: dict[str, bytes]
    failures: dict[str, int]
    asked: list[str]

    def do_GET(self) -> None:
        """Answer one request."""
        type(self).asked.append(self.path)
        if self.failures.get(self.path, 0) > 0:
            self.failures[self.path] -= 1
            return self.send_error(503)
        if self.path not in self.files:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.files[self.path]) + 10 * self.path.endswith("cut")))
        self.end_headers()
        self.wfile.write(self.files[self.path])

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def mirror(monkeypatch: Patch) -> Iterator[tuple[str, type[Mirror]]]:
    """A server on this machine and the class that holds its files."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    handler = type("Handler", (Mirror,), {"files": {}, "failures": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()


def get(address: str, path: Path, names: list[str], data: bytes) -> None:
    fetch([f"{address}/{name}" for name in names], path, md5(data), download_with_progress)


def test_fetch_downloads_checks_and_keeps(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    handler.files["/a"] = b"right"
    path = tmp_path / "deep" / "a"
    get(address, path, ["a"], b"right")
    assert path.read_bytes() == b"right"
    asked = len(handler.asked)
    get(address, path, ["a"], b"right")
    assert len(handler.asked) == asked, "a file that is there is not fetched again"
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_fetch_goes_on_to_the_next_mirror(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    handler.files.update({"/wrong": b"other bytes", "/right": b"right"})
    get(address, tmp_path / "a", ["missing", "wrong", "right"], b"right")
    assert (tmp_path / "a").read_bytes() == b"right"


def test_fetch_tries_again(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    handler.files["/a"] = b"right"
    handler.failures["/a"] = 1
    get(address, tmp_path / "a", ["a"], b"right")
    assert (tmp_path / "a").read_bytes() == b"right"


@pytest.mark.fault("a mirror that sends other bytes", "nothing of it is kept")
@pytest.mark.parametrize(
    ("served", "words"), [(b"other bytes", "sent other bytes"), (b"", "sent other bytes"), (None, "404")]
)
def test_fetch_keeps_nothing_wrong(
    tmp_path: Path, mirror: tuple[str, type[Mirror]], served: bytes | None, words: str
) -> None:
    address, handler = mirror
    if served is not None:
        handler.files["/a"] = served
    sentence = told(lambda: get(address, tmp_path / "a", ["a"], b"right"))
    assert words in sentence
    assert "put the official file there" in sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("a connection that breaks", "it is tried again")
def test_a_connection_that_breaks_is_tried_again(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    handler.files.update({"/cut": b"ri", "/whole": b"right"})
    get(address, tmp_path / "a", ["cut", "whole"], b"right")
    assert (tmp_path / "a").read_bytes() == b"right"


def test_fetch_without_a_network(tmp_path: Path, mirror: tuple[str, type[Mirror]]) -> None:
    sentence = told(lambda: get("http://127.0.0.1:9", tmp_path / "a", ["a"], b"right"))
    assert "cannot be downloaded" in sentence
    assert "refused" in sentence


@pytest.mark.fault("a download that was interrupted", "what came is not taken for the whole")
def test_a_partial_file_of_an_interrupted_download_is_not_taken(
    tmp_path: Path, mirror: tuple[str, type[Mirror]]
) -> None:
    address, handler = mirror
    handler.files["/a"] = b"right"
    (tmp_path / "a.part").write_bytes(b"ri")
    get(address, tmp_path / "a", ["a"], b"right")
    assert (tmp_path / "a").read_bytes() == b"right"
    assert handler.asked.count("/a") <= 2, "one download: a HEAD to follow redirects, and the GET"


def test_fetch_into_an_unwritable_place(mirror: tuple[str, type[Mirror]]) -> None:
    address, handler = mirror
    handler.files["/a"] = b"right"
    from diffgen.core.errors import EnvironmentFault

    with pytest.raises(EnvironmentFault, match="cannot write /proc/nope/a: "):
        get(address, Path("/proc/nope/a"), ["a"], b"right")


# --- CIFAR-10 -----------------------------------------------------------------------------------------------

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_files() -> dict[str, bytes]:
    """Two images a batch in the official format."""
    rng = np.random.default_rng(0)
    batches = {
        name: {"data": rng.integers(0, 256, (2, 3072), np.uint8), "labels": [k, 9 - k]}
        for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"])
    }
    return {name: pickle.dumps(value) for name, value in {**batches, "batches.meta": {"label_names": CLASSES}}.items()}


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path.read_bytes()


@pytest.fixture
def cifar_official(monkeypatch: Patch) -> dict[str, bytes]:
    """Tiny CIFAR-10 files, with their checksums in the place of the official ones."""
    import torchvision.datasets

    files = cifar_files()
    sums = {name: md5(data) for name, data in files.items()}
    monkeypatch.setattr(cifar, "FILES", sums)
    for attribute in ("train_list", "test_list"):
        listed = [[name, sums[name]] for name, _ in getattr(torchvision.datasets.CIFAR10, attribute)]
        monkeypatch.setattr(torchvision.datasets.CIFAR10, attribute, listed)
    meta = {**torchvision.datasets.CIFAR10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(cifar, "download_with_progress", no_network)
    return files


def unpacked(root: Path, files: dict[str, bytes]) -> Path:
    return put(root / "cifar-10-batches-py", files, "")


def check_cifar(root: Path, files: dict[str, bytes]) -> None:
    train, test = cifar10(root=str(root), split="train"), cifar10(root=str(root), split="test")
    assert (train.shape, len(train), len(test)) == (DataShape((3, 32, 32), 10), 10, 2)
    first = pickle.loads(files["data_batch_1"])["data"][0].reshape(3, 32, 32)
    assert np.array_equal(train.pixels[0].numpy(), first)
    assert train.labels.tolist() == [0, 9, 1, 8, 2, 7, 3, 6, 4, 5]
    assert list(train.classes) == CLASSES


def test_cifar_from_its_folder(tmp_path: Path, cifar_official: dict[str, bytes]) -> None:
    unpacked(tmp_path, cifar_official)
    check_cifar(tmp_path, cifar_official)


def test_cifar_from_its_archive(tmp_path: Path, cifar_official: dict[str, bytes], monkeypatch: Patch) -> None:
    members = {f"cifar-10-batches-py/{name}": data for name, data in cifar_official.items()}
    data = make_tar(tmp_path / "cifar-10-python.tar.gz", members)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(data))
    check_cifar(tmp_path, cifar_official)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]


@pytest.mark.fault("a data file with a wrong checksum (CIFAR-10)", "exit 3, the file is named, never unpickled")
@pytest.mark.parametrize("name", ["data_batch_3", "batches.meta"])
def test_damaged_cifar_files_are_named_and_never_unpickled(
    tmp_path: Path, cifar_official: dict[str, bytes], monkeypatch: Patch, name: str
) -> None:
    file = unpacked(tmp_path, cifar_official) / name
    file.write_bytes(cifar_official[name][:-1] + b"!")
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("a damaged pickle was read"))
    assert f"{file} is damaged" in told(lambda: cifar10(root=str(tmp_path), split="train"))


def test_missing_cifar_files_are_named(tmp_path: Path, cifar_official: dict[str, bytes]) -> None:
    (unpacked(tmp_path, cifar_official) / "test_batch").unlink()
    sentence = told(lambda: cifar10(root=str(tmp_path), split="train"))
    assert "test_batch is missing" in sentence
    assert str(tmp_path) in sentence


def test_cifar_that_is_nowhere(tmp_path: Path, cifar_official: dict[str, bytes]) -> None:
    sentence = told(lambda: cifar10(root=str(tmp_path / "data"), split="train"))
    assert str(tmp_path / "data" / "cifar-10-python.tar.gz") in sentence
    assert "dataset=digits needs no download" in sentence


def test_a_damaged_cifar_archive_is_named(tmp_path: Path, cifar_official: dict[str, bytes]) -> None:
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"half an archive")
    assert "cifar-10-python.tar.gz is damaged" in told(lambda: cifar10(root=str(tmp_path), split="train"))


@pytest.mark.fault("an archive that writes outside its folder", "refused before it is unpacked")
@pytest.mark.parametrize(
    "members",
    [
        {"../evil": b"x"},
        {"cifar-10-batches-py/../../evil": b"x"},
        {"/tmp/evil-of-diffgen": b"x"},
        {"elsewhere/data_batch_1": b"x"},
        {},
    ],
)
def test_hostile_archives_write_nothing_outside(
    tmp_path: Path, cifar_official: dict[str, bytes], monkeypatch: Patch, members: dict[str, bytes]
) -> None:
    """Even one that had the right checksum."""
    root = tmp_path / "in" / "root"
    root.mkdir(parents=True)
    data = make_tar(root / "cifar-10-python.tar.gz", members)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(data))
    assert "cifar-10-python.tar.gz" in told(lambda: cifar10(root=str(root), split="train"))
    assert not list(tmp_path.rglob("evil*"))
    assert not Path("/tmp/evil-of-diffgen").exists()
    assert [p.name for p in root.iterdir()] == ["cifar-10-python.tar.gz"]


def test_a_link_out_of_the_archive_is_refused(
    tmp_path: Path, cifar_official: dict[str, bytes], monkeypatch: Patch
) -> None:
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(link)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", md5(archive.read_bytes()))
    assert "cifar-10-python.tar.gz" in told(lambda: cifar10(root=str(tmp_path), split="train"))
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-python.tar.gz"]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (tarfile.SYMTYPE, "../../../secret"),
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "/etc/passwd"),
        (tarfile.LNKTYPE, "../../secret"),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
    ],
)
def test_members_that_are_no_plain_files_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    """A batch that is a link would be read from anywhere, and one that is a pipe for ever."""
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    archive = root / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        member.type, member.linkname = kind, target
        tar.addfile(member)
    assert "a.tar.gz cannot be unpacked" in told(lambda: cifar.unpack(archive, root / "cifar-10-batches-py"))
    assert [p.name for p in root.iterdir()] == ["a.tar.gz"]


# --- folders of pictures ------------------------------------------------------------------------------------


def save(path: Path, size: tuple[int, int] = (6, 4), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """A random picture of (width, height) at `path`; returns its pixels [H, W, C]."""
    channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array[..., 0] if channels == 1 else array).save(path)
    return array


def image_folder(root: Path | None, **changes: Any) -> Source:
    """The data set with the settings of its YAML file."""
    settings = row("dataset", "image_folder", **{"root": root and str(root), "workers": 0, **changes})
    for key in ("name", "defaults", "held_out", "held_out_seed"):
        del settings[key]
    return pictures.image_folder(**settings)


def load(root: Path, **changes: Any) -> Images:
    data = image_folder(root, **changes)
    assert isinstance(data, Images)
    return data


def make_classes(root: Path) -> list[np.ndarray]:
    """Two classes of three pictures; returns their pixels in the order of paths."""
    return [
        save(root / name / f"{i}.png", seed=10 * k + i) for k, name in enumerate(("cats", "dogs")) for i in range(3)
    ]


def test_sub_folders_are_classes(tmp_path: Path) -> None:
    arrays = make_classes(tmp_path)
    data = load(tmp_path)
    assert (data.classes, data.shape) == (("cats", "dogs"), DataShape((3, 4, 6), 2))
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert np.array_equal(data.pixels.permute(0, 2, 3, 1).numpy(), np.stack(arrays))


def test_without_sub_folders_there_are_no_classes(tmp_path: Path) -> None:
    for i, name in enumerate(("a.png", "b.bmp", "c.PNG")):
        save(tmp_path / name, seed=i)
    (tmp_path / "notes.txt").write_text("not a picture")
    data = load(tmp_path)
    assert (data.classes, data.shape.num_classes, len(data)) == ((), 0, 3)
    assert data.labels.tolist() == [-1, -1, -1]


def test_pictures_deeper_down_belong_to_the_first_folder(tmp_path: Path) -> None:
    save(tmp_path / "cats" / "black" / "a.png")
    save(tmp_path / "dogs" / "b.png")
    data = load(tmp_path)
    assert (data.classes, data.labels.tolist()) == (("cats", "dogs"), [0, 1])


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 4), ("L", 3), ("RGBA", 3), ("RGB", 1), ("RGB", 4)]
)
def test_pictures_are_converted_to_the_channels_asked_for(tmp_path: Path, mode: str, channels: int) -> None:
    array = save(tmp_path / "a.png", mode=mode)
    data = load(tmp_path, channels=channels)
    assert data.shape == DataShape((channels, 4, 6), 0)
    found = data.pixels[0].permute(1, 2, 0).numpy()
    if mode == "L":
        assert np.array_equal(found, np.broadcast_to(array, (4, 6, channels)))
    elif mode == "RGBA" and channels == 3:  # on white
        share = array[..., 3:] / 255
        assert np.abs(found - (share * array[..., :3] + (1 - share) * 255)).max() <= 1
    elif channels >= 3:
        assert np.array_equal(found[..., :3], array[..., :3])
    if channels == 4 and mode == "RGB":
        assert (found[..., 3] == 255).all()


@pytest.mark.parametrize(("size", "height", "width"), [(8, 8, 8), ([5, 9], 5, 9), ((3, 3), 3, 3)])
def test_sizes_are_reached_by_resizing_and_cropping(tmp_path: Path, size: object, height: int, width: int) -> None:
    save(tmp_path / "a.png", size=(6, 4))
    save(tmp_path / "b.png", size=(20, 31))
    data = load(tmp_path, size=size)
    assert data.pixels.shape == (2, 3, height, width)


def test_cropping_keeps_the_centre(tmp_path: Path) -> None:
    array = np.zeros((4, 12, 3), np.uint8)
    array[:, 4:8] = 200
    Image.fromarray(array).save(tmp_path / "a.png")
    assert (load(tmp_path, size=4).pixels > 150).float().mean() > 0.9


def test_pictures_lie_as_their_camera_meant(tmp_path: Path) -> None:
    """Photographs carry their orientation in EXIF; an image set must not be half sideways."""
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise by 90 degrees
    picture.save(tmp_path / "a.png", exif=exif)
    data = load(tmp_path, channels=1)
    assert np.array_equal(data.pixels[0, 0].numpy(), np.rot90(np.asarray(picture), -1))


def test_pictures_of_two_sizes_are_refused_by_name(tmp_path: Path) -> None:
    save(tmp_path / "a.png", size=(6, 4))
    save(tmp_path / "b.png", size=(4, 6))
    sentence = told(lambda: load(tmp_path))
    assert "b.png is 6x4, others 4x6" in sentence
    assert "dataset.size" in sentence


def damage(path: Path, kind: str) -> None:
    data = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"hello", "cut": data[: len(data) // 2], "header": data[:10]}[kind])


@pytest.mark.fault("a corrupt picture in a folder", "exit 3, the picture is named")
@pytest.mark.parametrize(("kind", "workers"), [("empty", 0), ("text", 0), ("cut", 0), ("header", 0), ("cut", 2)])
def test_a_corrupt_picture_is_named(tmp_path: Path, monkeypatch: Patch, kind: str, workers: int) -> None:
    monkeypatch.setattr(pictures, "FEW", 0)
    for i in range(3):
        save(tmp_path / f"{i}.png", seed=i)
    damage(tmp_path / "1.png", kind)
    sentence = told(lambda: load(tmp_path, workers=workers))
    assert f"{tmp_path / '1.png'} cannot be decoded" in sentence


def test_the_first_picture_may_be_the_corrupt_one(tmp_path: Path) -> None:
    save(tmp_path / "0.png")
    save(tmp_path / "1.png")
    damage(tmp_path / "0.png", "text")
    assert "0.png cannot be decoded" in told(lambda: load(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_gives_the_batches_of_memory(tmp_path: Path, monkeypatch: Patch, workers: int) -> None:
    make_classes(tmp_path)
    resident = load(tmp_path)
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    streamed = image_folder(tmp_path, workers=workers)
    assert isinstance(streamed, Pictures)
    assert (streamed.shape, streamed.classes, len(streamed)) == (
        resident.shape,
        resident.classes,
        len(resident),
    )
    entries = [[5, 0, 3], [2, 2, 1], [4, 1, 0]]
    for (pixels, labels), (expected, wanted) in zip(take(streamed, entries), take(resident, entries), strict=True):
        assert torch.equal(pixels, expected)
        assert torch.equal(labels, wanted)


@pytest.mark.fault("a corrupt picture, met in the middle of a run", "exit 3, the picture is named")
def test_streaming_names_the_corrupt_picture(tmp_path: Path, monkeypatch: Patch) -> None:
    make_classes(tmp_path)
    damage(tmp_path / "dogs" / "1.png", "cut")
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    monkeypatch.setattr(pictures, "LOOKED_AT", 1)  # at the start, of a set as large as this seems
    streamed = image_folder(tmp_path, workers=2)
    assert str(tmp_path / "dogs" / "1.png") in told(lambda: take(streamed, [[0, 1], [4, 2]]))


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert f"dataset.root={str(tmp_path)!r} holds no pictures" in told(lambda: load(tmp_path))
    assert "is not a folder" in told(lambda: load(tmp_path / "nothing"))
    assert "is not a folder" in told(lambda: load(tmp_path / "notes.txt"))
    with pytest.raises(UsageError, match="root is missing: dataset.root=FOLDER"):
        image_folder(None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 2}, "channels=2 must be one of [1, 3, 4]"),
        ({"workers": -1}, "workers=-1 must be in [0, 256]"),
        ({"size": 0}, "size=0 must be one or two whole numbers in [1, 4096], height first"),
        ({"size": (1, 2, 3)}, "size=(1, 2, 3) must be one or two whole numbers"),
        ({"size": 10**6}, "size=1000000 must be one or two whole numbers"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, changes: dict[str, object], sentence: str) -> None:
    save(tmp_path / "a.png")
    with pytest.raises(UsageError) as caught:
        load(tmp_path, **changes)
    assert str(caught.value).startswith(sentence)


def test_a_picture_like_a_bomb_is_refused(tmp_path: Path, monkeypatch: Patch) -> None:
    save(tmp_path / "a.png", size=(60, 60))
    sentence = told(lambda: load(tmp_path, max_pixels=3599))
    assert "a.png has 60 x 60 pixels, more than 3,599: raise dataset.max_pixels if it is meant" in sentence
    assert len(load(tmp_path, max_pixels=3600)) == 1


def test_a_mixture_of_classes_and_loose_pictures_is_refused(tmp_path: Path) -> None:
    """Silently dropping the labels would train another model than the user asked for."""
    make_classes(tmp_path)
    save(tmp_path / "loose.png")
    sentence = told(lambda: load(tmp_path))
    assert "loose.png" in sentence
    assert "sub-folder" in sentence


def test_hidden_files_and_folders_are_no_pictures(tmp_path: Path) -> None:
    make_classes(tmp_path)
    save(tmp_path / ".thumbnails" / "a.png")
    (tmp_path / "cats" / "._0.png").write_bytes(b"notes of another program")
    (tmp_path / "cats" / "folder.png").mkdir()
    data = load(tmp_path)
    assert (data.classes, len(data)) == (("cats", "dogs"), 6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "tiff"])
def test_damaged_pictures_of_every_format_are_named(tmp_path: Path, suffix: str) -> None:
    """Decoders raise all kinds of errors; a picture is either decoded or named."""
    import random

    path = tmp_path / f"a.{suffix}"
    save(path, size=(16, 16))
    whole, draw = path.read_bytes(), random.Random(0)
    for _ in range(40):
        data = bytearray(whole[: draw.randrange(1, len(whole))] if draw.random() < 0.5 else whole)
        for _ in range(5):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            load(tmp_path)
        except DataError as error:
            assert str(path) in str(error)


def test_sixteen_bit_greys_are_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257 * 100], [65535, 257 * 7]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    images = load(tmp_path, channels=1)
    assert images.pixels[0, 0].tolist() == [[0, 100], [255, 7]]


@pytest.mark.parametrize(
    ("pixels", "labels", "words"),
    [
        (torch.rand(5, 1, 8, 8), torch.zeros(5, dtype=torch.long), "pixels must be torch.uint8"),
        (torch.zeros(0, 1, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.long), "with N >= 1"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long), "one for each of 5 images"),
        (torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.full((5,), 7), "-1 to 1"),
    ],
)
def test_what_is_no_set_of_images_is_refused(pixels: torch.Tensor, labels: torch.Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Images(pixels, labels, ("a", "b"))
