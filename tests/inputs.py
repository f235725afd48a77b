"""Pictures and files of the kinds that people bring, and their neighbours."""

import csv
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, PngImagePlugin

HEIGHT, WIDTH = 6, 8


def picture(seed: int = 0, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """A random picture of a mode and (width, height)."""
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], *channels), np.uint8), mode)


def save(path: Path, seed: int = 0, image: Image.Image | None = None, **options: object) -> Path:
    """Write a picture, random unless it is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture(seed)).save(path, **options)  # type: ignore[arg-type]
    return path


def fill(folder: Path, names: Sequence[str], first: int = 0) -> list[Path]:
    """A folder of random pictures, each another one."""
    return [save(folder / name, first + number) for number, name in enumerate(names)]


def classes(root: Path, names: Sequence[str] = ("cat", "dog"), each: int = 3, first: int = 0) -> Path:
    """A folder with a sub-folder of pictures for each class; from another `first` they are others."""
    for number, name in enumerate(names):
        fill(root / name, [f"{i}.png" for i in range(each)], first=first + 100 * number)
    return root


def turned(path: Path, orientation: int = 6) -> Path:
    """A photograph whose camera was held upright, white above and black below; its file lies on the side."""
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarter = {6: 1, 8: 3, 3: 2}[orientation]
    return save(path, image=Image.fromarray(np.ascontiguousarray(np.rot90(upright, quarter))), exif=exif, quality=95)


def noted(path: Path, megabytes: float, *, zipped: bool, international: bool = False) -> Path:
    """A PNG with so much text in it."""
    info, text = PngImagePlugin.PngInfo(), "x" * int(megabytes * 2**20)
    if international:
        info.add_itxt("note", text, zip=zipped)
    else:
        info.add_text("note", text, zip=zipped)
    return save(path, pnginfo=info)


def deep_rgb(path: Path, most: int) -> Path:
    """A PNG of 16-bit colours up to `most`, which Pillow cannot write."""
    import struct
    import zlib

    values = np.random.default_rng(0).integers(0, most + 1, (HEIGHT, WIDTH, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    whole = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + whole)
    return path


def zipped(folder: Path, path: Path, top: str = "") -> Path:
    """A zip of a folder's files, below `top`."""
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(p for p in folder.rglob("*") if p.is_file()):
            file.write(each, f"{top}{each.relative_to(folder)}")
    return path


def as_parquet(folder: Path, path: Path, *, rows: int = 4, named: bool = True) -> Path:
    """A folder of classes as the hub keeps it: groups of so many rows, and labels with or without names."""
    import pyarrow
    from pyarrow import parquet

    files = sorted(p for p in folder.rglob("*") if p.is_file())
    names = sorted({p.parent.name for p in files})
    image = [{"bytes": p.read_bytes(), "path": p.name} for p in files]
    label = [names.index(p.parent.name) for p in files]
    table = pyarrow.table({"image": image, "label": label})
    features = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
    if named:
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=rows)
    return path


def frames(count: int, seed: int = 0, mode: str = "L") -> list[Image.Image]:
    """Random frames of a film, no two alike; grey ones are kept whole by all formats."""
    return [picture(1000 * seed + number, mode) for number in range(count)]


def film(path: Path, frames: Sequence[Image.Image], **options: object) -> Path:
    """Write a film into one file."""
    return save(path, image=frames[0], save_all=True, append_images=list(frames[1:]), **options)


def numbered(folder: Path, frames: Sequence[Image.Image]) -> Path:
    """Write a film as a folder of frames."""
    for number, frame in enumerate(frames, 7):  # 7, 8, 9, 10: not in the order of letters
        save(folder / f"{number}.png", image=frame)
    return folder


def stacked(frames: Sequence[Image.Image]) -> torch.Tensor:
    """Frames as they are stored, uint8 [T, C, H, W]."""
    values = np.stack([np.asarray(frame).reshape(frame.height, frame.width, -1) for frame in frames])
    return torch.from_numpy(values).movedim(-1, 1).contiguous()


def table(rows: Sequence[Sequence[object]], delimiter: str = ",") -> str:
    """Rows of a table as text."""
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def write(root: Path) -> None:
    """A folder of each kind of input; `python tests/inputs.py FOLDER` writes them to look at and to try."""
    classes(root / "numbers", [str(i) for i in range(12)], each=2)  # sorted as numbers, asked for by name
    classes(root / "words", ["none", "true", "a b"], each=2)
    classes(root / "splits" / "train", ["cat", "dog"])
    classes(root / "splits" / "test", ["dog", "cat"], first=50)
    classes(root / "linked" / "real", ["cat"])
    (root / "linked" / "dog").symlink_to("../splits/train/dog")
    classes(root / "system", ["cat", "dog", "@eaDir", "#recycle", ".cache"])
    fill(root / "endings", ["a.jfif.png", "b.webp", "c.tga", "d.jp2", "e.ppm"])
    save(root / "endings" / "f.png", 5).rename(root / "endings" / "without")
    rng = np.random.default_rng(0)
    for name, values in {
        "floats": rng.random((HEIGHT, WIDTH), np.float32),
        "signed": rng.uniform(-1, 1, (HEIGHT, WIDTH)).astype(np.float32),
        "ten_bits": rng.integers(0, 1024, (HEIGHT, WIDTH), np.uint16),
        "sixteen_bits": rng.integers(0, 65536, (HEIGHT, WIDTH), np.uint16),
        "zero_one": rng.integers(0, 2, (HEIGHT, WIDTH), np.uint8),
    }.items():
        save(root / name / "a.tif", image=Image.fromarray(values))
    for orientation in (3, 6, 8):
        turned(root / "turned" / f"{orientation}.jpg", orientation)
    save(root / "hidden" / "a.png", image=picture(mode="RGBA"))
    save(root / "grey" / "a.png", image=picture(mode="L"))
    (root / "notes").mkdir()
    noted(root / "notes" / "a.png", 3, zipped=True)
    fill(root / "broken", ["0.png", "1.png"])
    (root / "broken" / "2.png").write_bytes((root / "broken" / "0.png").read_bytes()[:50])
    fill(root / "tables", ["0.png", "1.png", "2.png"])
    (root / "tables" / "labels.tsv").write_text(table([("0.png", "x"), ("1.png", "y"), ("2.png", "x")], "\t"))
    np.savez(root / "arrays.npz", images=rng.integers(0, 256, (8, HEIGHT, WIDTH, 5), np.uint8), labels=list("aabbaabb"))
    np.save(root / "floats.npy", rng.random((8, 3, HEIGHT, WIDTH), np.float32))
    zipped(root / "system", root / "system.zip", "system/")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "in"))
