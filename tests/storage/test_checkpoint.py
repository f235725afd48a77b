"""Checkpoints: what is written comes back, and nothing that a stranger's file holds can hurt."""

import json
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffgen.build import restore
from diffgen.core.errors import CheckpointError, EnvironmentFault, UsageError
from diffgen.sampling.walk import check_sampler
from diffgen.storage import checkpoint, tensor_file

Config = dict[str, Any]


# --- parts of a file ----------------------------------------------------------------------------------------


def split(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and payload of a safetensors file."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(path: Path, header: object, payload: bytes) -> Path:
    """Write a safetensors file with any header: an object, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + payload)
    return path


def with_weights(path: Path, source: Path, change: Callable[[dict[str, Tensor]], object]) -> Path:
    """A copy with other weights and the checksum that fits them, as a hostile author would write it."""
    header, _ = split(source)
    weights = load_file(source)
    change(weights)
    metadata = {**header["__metadata__"], "sha256": tensor_file.digest(weights, header["__metadata__"]["config"])}
    save_file(weights, path, metadata=metadata)
    return path


def with_config(path: Path, source: Path, change: Callable[[Config], object]) -> Path:
    """A copy with another config."""
    header, _ = split(source)
    config = json.loads(header["__metadata__"]["config"])
    changed = change(config)
    text = changed if isinstance(changed, str) else json.dumps(config)
    return with_metadata(path, source, config=text, sha256=tensor_file.digest(load_file(source), text))


def with_metadata(path: Path, source: Path, **entries: object) -> Path:
    """A copy with other metadata."""
    header, payload = split(source)
    header["__metadata__"].update(entries)
    return join(path, header, payload)


def with_entry(path: Path, source: Path, **changes: object) -> Path:
    """A copy whose first tensor is described otherwise."""
    header, payload = split(source)
    first = min((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"][0])
    header[first].update(changes)
    return join(path, header, payload)


def refused(path: Path) -> str:
    """The one sentence with which a file is refused, by `load` or `restore`, or when its own sampler is used."""
    with pytest.raises(CheckpointError) as caught:
        saved = checkpoint.load(path)
        check_sampler(saved, restore(saved))
    sentence = str(caught.value)
    assert path.name in sentence
    assert "\n" not in sentence
    assert sentence.isprintable()
    assert len(sentence) < 700 + len(str(path))
    assert caught.value.__cause__ is None
    return sentence


# --- files that are no checkpoint ---------------------------------------------------------------------------


class Trap:
    """Unpickling this makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("PWNED",)


def a_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps(Trap()))


def sparse(path: Path, header: int) -> None:
    """A file that announces a header and has room for it, without taking any on the disk."""
    path.write_bytes(struct.pack("<Q", header) + b'{"__metadata__":{"a":"')
    os.truncate(path, header + 8)


RAW: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "cut short"),
    "four bytes": (lambda p: p.write_bytes(b"\x10\0\0\0"), "cut short"),
    "only a length": (lambda p: p.write_bytes(struct.pack("<Q", 100)), "cut short"),
    "length 2^63": (lambda p: p.write_bytes(struct.pack("<Q", 2**63) + b"{}" * 100), "cut short"),
    "length 2^64 - 1": (lambda p: p.write_bytes(b"\xff" * 8 + b"{}" * 100), "cut short"),
    "random bytes": (lambda p: p.write_bytes(random.Random(0).randbytes(5000)), "cut short"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps(Trap())), "a Python pickle, which can run code"),
    "pickle protocol 2": (lambda p: p.write_bytes(pickle.dumps(Trap(), 2)), "a Python pickle"),
    "zip": (a_zip, "a zip archive (a PyTorch pickle, which can run code)"),
    "web page": (lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"), "a web page"),
    "web page after spaces": (lambda p: p.write_text("\n\n  <html>404</html>"), "cut short"),
    "Git LFS pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4\n"), "Git LFS"),
    "picture": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "a picture"),
    "header is no JSON": (lambda p: join(p, b"{'a': 1}      ", b""), "not JSON"),
    "header is a list": (lambda p: join(p, [1, 2], b""), "not a JSON object"),
    "header is a number": (lambda p: join(p, 3, b""), "not a JSON object"),
    "header is not UTF-8": (lambda p: join(p, b'{"a\xff\xfe": ', b""), "not JSON"),
    "header is empty": (lambda p: join(p, {}, b""), "not a diffgen checkpoint (tensors in it: none)"),
    "header is nested 100,000 deep": (lambda p: join(p, b"[" * 10**5, b""), "not JSON"),
    "header of 8 MiB": (lambda p: join(p, {"__metadata__": {"a": "x" * 2**23}}, b""), "far larger"),
    "a number of 100,000 digits": (lambda p: join(p, b'{"a": ' + b"1" * 10**5 + b"}", b""), "not JSON"),
    "a number of a million digits": (lambda p: join(p, b'{"a": ' + b"1" * 10**6 + b"}", b""), "not JSON"),
    "header of nothing but lists": (lambda p: join(p, b'{"a": [' + b"[]," * 1_300_000 + b"1]}", b""), "does not fit the file"),
    "header starts with a byte order mark": (lambda p: join(p, b'\xef\xbb\xbf{"a": {}}', b""), "not JSON"),
    "header ends in NUL": (lambda p: join(p, b'{"a": {}}\0\0\0', b""), "not JSON"),
    "infinite offsets": (
        lambda p: join(p, b'{"a": {"dtype": "U8", "shape": [1e400], "data_offsets": [0, Infinity]}}', b""),
        "does not fit the file",
    ),
    "NaN in an entry": (
        lambda p: join(p, b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 0]}}', b""),
        "does not fit the file",
    ),
    "a lone surrogate as a name": (
        lambda p: join(p, b'{"\\ud800": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}', b""),
        "not a diffgen checkpoint",
    ),
    "metadata of 90 MB": (lambda p: sparse(p, 90 * 10**6), "far larger"),
    "a million tensors": (
        lambda p: join(p, b"{" + b'"a": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]},' * 10**6, b""),
        "far larger",
    ),
    "header as long as a file of 1 TB": (lambda p: sparse(p, 10**12), "far larger"),
    "a key twice": (lambda p: join(p, b'{"a": {}, "a": {}}', b""), "not JSON"),
    "metadata is a list": (lambda p: join(p, {"__metadata__": ["diffgen"]}, b""), "malformed metadata"),
    "metadata is null": (lambda p: join(p, {"__metadata__": None}, b""), "malformed metadata"),
    "metadata holds a number": (lambda p: join(p, {"__metadata__": {"library": 3}}, b""), "malformed metadata"),
    "100,001 tensors": (
        lambda p: join(p, {f"{i:x}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)}, b""),
        "far larger",
    ),
    "foreign": (
        lambda p: save_file({"conv_in.weight": torch.zeros(2, 2), "Z": torch.zeros(1)}, p, {"format": "pt"}),
        "not a diffgen checkpoint (tensors in it: 'Z', 'conv_in.weight')",
    ),
    "foreign without metadata": (lambda p: save_file({"a": torch.zeros(1)}, p), "not a diffgen checkpoint"),
    "foreign with terminal codes": (lambda p: save_file({"\x1b[2Jx\n": torch.zeros(1)}, p), "not a diffgen checkpoint"),
}  # fmt: skip


@pytest.mark.fault("a foreign or empty file as checkpoint", "exit 4, and what it is")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", RAW)
def test_files_that_are_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.safetensors"
    make, words = RAW[case]
    make(path)
    assert words in refused(path)
    assert not (tmp_path / "PWNED").exists()


@pytest.mark.timeout(20)
def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    assert "is not a regular file" in refused(tmp_path / "link")
    (tmp_path / "zero").symlink_to("/dev/zero")
    assert "is not a regular file" in refused(tmp_path / "zero")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop")
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / "model.safetensors")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        checkpoint.load(tmp_path / "run")
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        checkpoint.load(tmp_path / ("x" * 300))
    with pytest.raises(CheckpointError, match="/dev/zero is not a regular file"):
        checkpoint.load(Path("/dev/zero"))
    with pytest.raises(CheckpointError, match="ckpt='.*nothing' does not exist"):
        checkpoint.load(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="holds neither model.safetensors nor a complete checkpoints/<images>"):
        checkpoint.load(tmp_path / "empty")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "locked").write_bytes(b"")
    (tmp_path / "locked").chmod(0)
    assert "cannot be read: Permission denied" in refused(tmp_path / "locked")


# --- damage -------------------------------------------------------------------------------------------------


@pytest.mark.fault("a checkpoint cut short", "exit 4, one sentence")
@pytest.mark.parametrize("keep", [7, 8, 100, "header", "half", -1])
def test_truncated_anywhere(tmp_path: Path, tiny_model: Path, keep: int | str) -> None:
    data = tiny_model.read_bytes()
    header_end = 8 + struct.unpack("<Q", data[:8])[0]
    end = {"header": header_end, "half": len(data) // 2}.get(str(keep), keep)
    assert isinstance(end, int)
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[:end])
    sentence = refused(path)
    assert "cut short" in sentence or "does not fit the file" in sentence


def test_bytes_appended(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "long.safetensors"
    path.write_bytes(tiny_model.read_bytes() + b"\0")
    assert "do not cover the file exactly" in refused(path)


@pytest.mark.fault("a flipped bit in a checkpoint", "exit 4: it does not match its checksum")
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_in_the_weights(tmp_path: Path, tiny_model: Path, place: float) -> None:
    data = bytearray(tiny_model.read_bytes())
    first = 8 + struct.unpack("<Q", data[:8])[0]
    data[first + round(place * (len(data) - 1 - first))] ^= 1
    path = tmp_path / "flipped.safetensors"
    path.write_bytes(data)
    assert "do not match their checksum" in refused(path)


def test_flipped_bits_in_the_header_are_refused_or_harmless(tmp_path: Path, tiny_model: Path) -> None:
    """Any header byte: refused in a sentence, or read as the very same weights (a digit of a setting, say)."""
    data = tiny_model.read_bytes()
    weights = load_file(tiny_model)
    length = struct.unpack("<Q", data[:8])[0]
    path, draw = tmp_path / "flipped.safetensors", random.Random(0)
    for place in [*range(8), *draw.sample(range(8, 8 + length), 200)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            loaded = checkpoint.load(path)
            restore(loaded)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert all(torch.equal(loaded.weights[name], weight) for name, weight in weights.items())


LAYOUT: dict[str, Callable[[Path, Path], Path]] = {
    "negative offset": lambda p, s: with_entry(p, s, data_offsets=[-4, 60]),
    "reversed offsets": lambda p, s: with_entry(p, s, data_offsets=[64, 0]),
    "offset beyond the file": lambda p, s: with_entry(p, s, data_offsets=[0, 2**62]),
    "fractional offset": lambda p, s: with_entry(p, s, data_offsets=[0, 0.5]),
    "three offsets": lambda p, s: with_entry(p, s, data_offsets=[0, 4, 8]),
    "no offsets": lambda p, s: with_entry(p, s, data_offsets=None),
    "overlap": lambda p, s: with_entry(p, s, data_offsets=[4, 4 + split(s)[0]["head.bias"]["data_offsets"][1]]),
    "negative side": lambda p, s: with_entry(p, s, shape=[-1, -1]),
    "huge side": lambda p, s: with_entry(p, s, shape=[10**30] * 1000),
    "text as side": lambda p, s: with_entry(p, s, shape=["8"]),
    "shape is a text": lambda p, s: with_entry(p, s, shape="88"),
    "other shape of the same file": lambda p, s: with_entry(p, s, shape=[3]),
    "unknown dtype": lambda p, s: with_entry(p, s, dtype="F4"),
    "dtype is a list": lambda p, s: with_entry(p, s, dtype=["F32"]),
    "entry is a number": lambda p, s: join(p, {**split(s)[0], "x": 3}, split(s)[1]),
    "entry is null": lambda p, s: join(p, {**split(s)[0], "x": None}, split(s)[1]),
}


@pytest.mark.parametrize("case", LAYOUT)
def test_impossible_layouts(tmp_path: Path, tiny_model: Path, case: str) -> None:
    path = LAYOUT[case](tmp_path / "laid.safetensors", tiny_model)
    sentence = refused(path)
    assert "does not fit the file" in sentence or "do not cover the file exactly" in sentence


WEIGHTS: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "NaN": (lambda w: w["head.bias"].fill_(float("nan")), "weight 'head.bias' holds values that are not finite"),
    "infinity": (lambda w: w["stem.weight"].view(-1)[3:4].fill_(float("inf")), "weight 'stem.weight' holds values"),
    "missing": (lambda w: w.pop("stem.bias"), "weight 'stem.bias' is missing"),
    "extra": (lambda w: w.update(extra=torch.zeros(3)), "weight 'extra' belongs to no layer of the model"),
    "extra with a long name": (lambda w: w.update({"y" * 10**4: torch.zeros(1)}), "belongs to no layer"),
    "path as a name": (lambda w: w.update({"../../../etc/x": torch.zeros(1)}), "weight '../../../etc/x' belongs to no"),
    "renamed": (lambda w: w.update(other=w.pop("stem.bias")), "weight 'stem.bias' is missing"),
    "half precision": (lambda w: w.update({"stem.bias": w["stem.bias"].half()}), "is torch.float16 [8], the model torch.float32 [8]"),
    "whole numbers": (lambda w: w.update({"stem.bias": w["stem.bias"].long()}), "is torch.int64 [8], the model torch.float32 [8]"),
    "other shape": (lambda w: w.update({"stem.bias": torch.zeros(9)}), "is torch.float32 [9], the model torch.float32 [8]"),
    "transposed": (lambda w: w.update({"stem.weight": w["stem.weight"].transpose(0, 1).contiguous()}), "weight 'stem.weight'"),
    "empty tensor": (lambda w: w.update({"stem.bias": torch.zeros(0)}), "is torch.float32 [0]"),
    "NaN under a long name": (lambda w: w.update({"y" * 10**4: torch.tensor([float("nan")])}), "not finite"),
    "terminal codes in a name": (lambda w: w.update({"\x1b[2J\n\u202e": torch.zeros(1)}), "belongs to no layer"),
    "NUL in a name": (lambda w: w.update({"stem\0bias": torch.zeros(1)}), "belongs to no layer"),
    "homoglyph in a name": (lambda w: w.update({"stem.biаs": w.pop("stem.bias")}), "weight 'stem.bias' is missing"),
    "boolean": (lambda w: w.update({"stem.bias": torch.ones(8, dtype=torch.bool)}), "is torch.bool [8]"),
    "double precision": (lambda w: w.update({"stem.bias": w["stem.bias"].double()}), "is torch.float64 [8]"),
    "no dimensions": (lambda w: w.update({"stem.bias": torch.tensor(0.0)}), "is torch.float32 []"),
    "none": (lambda w: w.clear(), "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit(tmp_path: Path, tiny_model: Path, case: str) -> None:
    change, words = WEIGHTS[case]
    assert words in refused(with_weights(tmp_path / "weights.safetensors", tiny_model, change))


# --- hostile configs ----------------------------------------------------------------------------------------


def nested(depth: int) -> object:
    value: object = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def put(*path: str, value: object) -> Callable[[Config], None]:
    """A change that sets config[path[0]][path[1]]... = value."""

    def change(config: Config) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


HOSTILE: dict[str, tuple[Callable[[Config], object], str]] = {
    "_target_": (put("model", value={"_target_": "os.mkdir", "_args_": ["PWNED"]}), "has the key '_target_'"),
    "_target_ beside the right keys": (put("model", "_target_", value="os.mkdir"), "has the key '_target_'"),
    "__class__": (put("schedule", "__class__", value=1), "has the key '__class__'"),
    "interpolation": (put("model", "name", value="${oc.env:HOME}"), "has the text '${oc.env:HOME}'"),
    "interpolation in a list": (put("data", "classes", value=["${oc.env:HOME}"]), "has the text"),
    "YAML tag": (put("model", "name", value="!!python/object/apply:os.mkdir [PWNED]"), "is unknown; choose one of"),
    "module path as a name": (put("schedule", "name", value="os.system"), "schedule.name='os.system' is unknown"),
    "path as a name": (put("sampler", "name", value="../../etc/passwd"), "sampler.name='../../etc/passwd' is unknown"),
    "path as a key": (put("schedule", "../x", value=1), "has the key '../x'"),
    "empty key": (put("schedule", "", value=1), "has the key ''"),
    "unicode key": (put("schedule", "ｔ_min", value=1), "has the key"),
    "unicode name": (put("model", "name", value="unеt"), "is unknown"),
    "line break": (put("model", "name", value="unet\nerror: all is lost"), "has the text"),
    "terminal codes": (put("model", "name", value="\x1b[2J"), "has the text"),
    "right-to-left mark": (put("model", "name", value="\u202eunet"), "has the text"),
    "long text": (put("model", "name", value="x" * 300), "has the text"),
    "text of 4 MB": (put("model", "name", value="x" * 4 * 10**6), "far larger"),
    "list of 2000": (put("model", "channel_mult", value=[1] * 2000), "a part with 2000 items"),
    "nested 9 deep": (put("model", "channels", value=nested(9)), "nested deeper than 8"),
    "nested 10,000 deep": (lambda c: '{"a":' * 10_000 + "1" + "}" * 10_000, "not JSON"),
    "a key twice": (lambda c: '{"model": 1, "model": 2}', "not JSON"),
    "no JSON": (lambda c: "model: {name: unet}", "not JSON"),
    "a list": (lambda c: "[]", "not a JSON object"),
    "nothing": (lambda c: "", "not JSON"),
    "NaN": (put("denoiser", "sigma_data", value=float("nan")), "has the number nan"),
    "infinity": (put("denoiser", "sigma_data", value=float("inf")), "has the number inf"),
    "10^400": (put("model", "channels", value=10**400), "has the number"),
    "giant channels": (put("model", "channels", value=10**9), "model.channels=1000000000 must be a multiple of 4"),
    "wide channels": (put("model", "channels", value=4096), "weight 'embedding.label.weight' is"),
    "many levels": (put("model", "channel_mult", value=[64] * 9), "must be 1 to 8 whole numbers"),
    "as large as allowed": (
        lambda c: c["model"].update(channels=4096, channel_mult=[64] * 8, blocks=16), "weight 'embedding.label.weight' is",
    ),
    "giant image": (put("data", "size", value=[1, 10**9, 8]), "is out of range"),
    "many classes": (put("data", "num_classes", value=10**12), "is out of range"),
    "negative classes": (put("data", "num_classes", value=-1), "is out of range"),
    "names of other classes": (put("data", "classes", value=["a"]), "data has 10 classes but 1 names"),
    "data is a list": (put("data", value=[1, 8, 8]), "data is missing"),
    "part is missing": (lambda c: c.pop("schedule"), "schedule is missing"),
    "sampler is missing": (lambda c: c.pop("sampler"), "sampler is missing"),
    "key is missing": (lambda c: c["schedule"].pop("t_min"), "schedule.t_min is missing"),
    "key too many": (put("schedule", "beta", value=1), "schedule.beta is not a setting here"),
    "text for a number": (put("schedule", "t_min", value="0.1"), "schedule.t_min='0.1' must be a number"),
    "true for a number": (put("model", "blocks", value=True), "model.blocks=true must be a whole number"),
    "schedule out of range": (put("schedule", "t_max", value=7.0), "must satisfy 0 < t_min < t_max"),
    "singular": (put("parameterization", "name", value="eps"), "parameterization=eps is singular"),
    "table of a trillion betas": (
        put("schedule", value={"name": "ddpm_linear", "steps": 10**12, "zero_terminal_snr": False, "beta_start": 1e-18, "beta_end": 1e-17}), "schedule.steps",
    ),
    "a sampler of a trillion steps": (put("sampler", "steps", value=10**12), "sampler.steps"),
    "interpolation as a key": (put("model", "${oc.env:HOME}", value=1), "has the key"),
    "class names with a bidirectional control": (put("data", "classes", value=["a\u202eb"] * 10), "has the text"),
    "class names with an invisible joiner": (put("data", "classes", value=["a\u200db"] * 10), "has the text"),
    "class names with NUL": (put("data", "classes", value=["a\0b"] * 10), "has the text"),
    "a lone surrogate": (put("data", "classes", value=["\ud800"] * 10), "has the text"),
    "byte order mark": (lambda c: "\ufeff" + json.dumps(c), "not JSON"),
    "1e400": (lambda c: json.dumps(c).replace('"t_min": 0.001', '"t_min": 1e400'), "has the number inf"),
    "a number of 5000 digits": (lambda c: json.dumps(c).replace("0.001", "1" * 5000), "not JSON"),
    "long key": (put("sampler", "x" * 65, value=1), "has the key"),
    "long list": (put("sampler", "steps", value=["x" * 200] * 200), "sampler.steps=["),
    "true for a side": (put("data", "size", value=[1, True, 8]), "data.size[1]=true must be a whole number"),
    "1 for true": (put("denoiser", "scale_input", value=1), "denoiser.scale_input=1 must be true or false"),
    "an unknown kind": (put("data", "kind", value={"name": "os"}), "kind.name='os' is unknown"),
    "a kind that is a text": (put("data", "kind", value="pixels"), "kind must be a mapping with a name"),
    "a kind with settings": (put("data", "kind", "path", value="x"), "kind.path is not a setting here"),
    "an unknown objective": (put("objective", value={"name": "os"}), "objective.name='os' is unknown"),
    "an objective that is a text": (put("objective", value="denoise"), "objective is missing"),
    "pixels of one side": (put("data", "size", value=[64]), "takes pictures [C, H, W]"),
    "pixels of four sides": (put("data", "size", value=[1, 1, 8, 8]), "has 4 sides, and images have 3"),
    "vectors of three sides": (put("data", "kind", value={"name": "vectors"}), "has 3 sides, and vectors have 1"),
    "no sides": (put("data", "size", value=[]), "is out of range"),
    "nine sides": (put("data", "size", value=[1] * 9), "is out of range"),
    "sides of an older version that make no sense": (
        put("data", value={"channels": None, "height": [], "width": {}, "num_classes": 0, "classes": []}), "data.size[0]=null must be",
    ),
    "image of too many values": (put("data", "size", value=[1, 4096, 4096]), "is out of range"),
    "a long text": (put("model", "name", value="a" * 257), "has the text"),
    "a long tokenizer": (put("data", "kind", value={"name": "tokens", "tokenizer": "a" * (2**21 + 1)}), "has the text"),
    "many symbols": (put("data", "kind", value={"name": "tokens", "symbols": ["a"] * (2**17 + 1)}), "a part with 131073"),
    "a line break as a symbol": (put("data", "kind", value={"name": "tokens", "symbols": ["a", "\n"]}), "has the text"),
    "many names": (put("data", "classes", value=["a"] * 1025), "a part with 1025 items"),
    "many blocks in all": (
        lambda c: c["model"].update(channel_mult=[1] * 8, blocks=64), "model.blocks=64 on 8 levels are more than 128",
    ),
    "many heads": (put("model", "heads", value=10**9), "model.heads=1000000000 must be in [1, 64]"),
    "wide perceptron": (put("model", value={"name": "mlp", "width": 10**9, "blocks": 1}), "model.width=1000000000 must be"),
    "deep perceptron": (put("model", value={"name": "mlp", "width": 8, "blocks": 10**9}), "model.blocks=1000000000 must be"),
    "a schedule that overflows": (
        put("schedule", value={"name": "sigmoid", "start": 1e6, "end": 1e6 + 50, "tau": 1.0, "t_min": 0.001, "t_max": 1.0}),
        "start=1000000.0 must be below 1000 tau",
    ),
    "a schedule that ends in nothing": (
        lambda c: (put("schedule", "t_min", value=5e-324)(c), put("sampler", "spacing", value="karras")(c)),
        "put nodes outside sigma/alpha",
    ),
    "two nodes in pure noise": (
        lambda c: c["sampler"].update(spacing="karras", sigma_max=999999999999999), "put nodes outside sigma/alpha",
    ),
    "an exponent without end": (lambda c: c["sampler"].update(spacing="karras", rho=5e-324), "leave no falling times"),
    "a sampler with a key too many": (put("sampler", "foo", value=1), "sampler.foo is not a setting here"),
}  # fmt: skip


BAD_TOKENIZERS = {
    "{}": "none that its library can read",
    '{"model":{"type":"WordLevel","vocab":{},"unk_token":""}}': "has no tokens",
    '{"model":{"type":"WordLevel","vocab":{"a":30000000},"unk_token":""}}': "has a token of number 30,000,000",
    '{"model":{"type":"WordLevel","vocab":{"a":0},"unk_token":""},"normalizer":{"type":"Precompiled",'
    '"precompiled_charsmap":"AAAA"}}': "none that its library can read",
}


@pytest.mark.parametrize("kept", BAD_TOKENIZERS)
def test_a_stranger_s_tokenizer(tmp_path: Path, tiny_model: Path, kept: str) -> None:
    kind = {"name": "tokens", "symbols": [], "symbol": "token", "padded": False, "unknown": False, "tokenizer": kept}
    sentence = refused(with_config(tmp_path / "hostile.safetensors", tiny_model, put("data", "kind", value=kind)))
    assert BAD_TOKENIZERS[kept] in sentence


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("a" * 2**21, True),
        ("\\u3000" * 2**18, True),
        ("\\u3000" * (2**21 // 6), True),
        ('"' * 2**20, False),
        ('"' * 2**21, False),
    ],
)
def test_a_run_starts_only_if_its_config_can_be_read_again(tmp_path: Path, text: str, fits: bool) -> None:
    config = {"objective": {"name": "denoise"}, "data": {"kind": {"tokenizer": text}}}
    with nullcontext() if fits else pytest.raises(UsageError, match=r"choose a smaller dataset.tokenizer"):
        tensor_file.check_config(config)
    checkpoint.save_model(tmp_path / "m", config, 0, {"w": torch.zeros(1)})
    with nullcontext() if fits else pytest.raises(CheckpointError, match="far larger than any model's"):
        assert checkpoint.describe(tmp_path / "m").config == config


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_configs(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.chdir(tmp_path)
    change, words = HOSTILE[case]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sentence = refused(with_config(tmp_path / "hostile.safetensors", tiny_model, change))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert words in sentence
    assert os.environ["HOME"] not in sentence.replace(str(tmp_path), "")
    assert not (tmp_path / "PWNED").exists()
    assert grown < 200 * 1024, "kB: a config must not be able to take memory"


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"library": "other"}, "not a diffgen checkpoint"),
        ({"format_version": "2"}, "another version of diffgen; this one reads format 1"),
        ({"format_version": ""}, "another version of diffgen"),
        ({"images": "-1"}, "images='-1', not a count"),
        ({"images": "1e9"}, "not a count"),
        ({"images": "9" * 5000}, "not a count"),
        ({"images": "x\n" * 100}, "not a count"),
        ({"sha256": ""}, "do not match their checksum"),
    ],
)
def test_metadata_that_cannot_be(tmp_path: Path, tiny_model: Path, entries: dict[str, str], words: str) -> None:
    assert words in refused(with_metadata(tmp_path / "meta.safetensors", tiny_model, **entries))


def test_the_crafted_files_differ_from_a_good_one_only_where_they_should(tmp_path: Path, tiny_model: Path) -> None:
    """The helpers above, changing nothing, write files that load."""
    for path in (
        with_weights(tmp_path / "a.safetensors", tiny_model, lambda weights: None),
        with_config(tmp_path / "b.safetensors", tiny_model, lambda config: None),
        with_metadata(tmp_path / "c.safetensors", tiny_model),
        with_entry(tmp_path / "d.safetensors", tiny_model),
    ):
        restore(checkpoint.load(path))


# --- round trip ---------------------------------------------------------------------------------------------

MODEL = {"b": torch.tensor([1.5, -2.0]), "a": torch.arange(6.0).reshape(2, 3).T}
STATE = {
    "m": torch.ones(3, dtype=torch.float64),
    "step": torch.tensor(7.0),
    "half": torch.ones(2, dtype=torch.bfloat16),
}


def write(folder: Path, images: int = 64) -> Path:
    checkpoint.save(
        folder,
        {"objective": {"name": "x"}, "x": [1, None]},
        images,
        MODEL,
        STATE,
        {"step": 3, "config": {"objective": {}, "lr": 0.1}},
    )
    return folder


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    folder = write(tmp_path / "checkpoints" / "00000064")
    loaded = checkpoint.load(folder)
    assert (loaded.config, loaded.images) == ({"objective": {"name": "x"}, "x": [1, None]}, 64)
    assert loaded.path == folder / "model.safetensors"
    assert all(torch.equal(loaded.weights[name], MODEL[name]) for name in MODEL)
    counters, state = checkpoint.load_state(folder)
    assert counters == {"format": 1, "step": 3, "config": {"objective": {}, "lr": 0.1}}
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[name], STATE[name]) and state[name].dtype == STATE[name].dtype for name in STATE)
    assert (folder.parent / "latest").read_text() == "00000064\n"
    assert sorted(p.name for p in folder.iterdir()) == [
        "model.safetensors",
        "state.json",
        "state.safetensors",
    ]


def test_files_honour_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = write(tmp_path / "checkpoints" / "1")
    finally:
        os.umask(before)
    assert {oct((folder / name).stat().st_mode & 0o777) for name in ("model.safetensors", "state.safetensors")} == {
        "0o640"
    }


def test_a_file_folder_or_run_directory_is_a_checkpoint(tmp_path: Path) -> None:
    for images in (9, 10, 100):
        write(tmp_path / "checkpoints" / f"{images:08d}", images)
    newest = tmp_path / "checkpoints" / "00000100"
    for path in (tmp_path, newest, newest / "model.safetensors"):
        assert checkpoint.load(path).images == 100
    (newest / "state.json").unlink()
    assert checkpoint.find_newest(tmp_path) == tmp_path / "checkpoints" / "00000010", "an incomplete folder is none"
    (tmp_path / "checkpoints" / ".tmp_00000200_ab").mkdir()
    assert checkpoint.load(tmp_path).images == 10


def test_rotation_keeps_the_newest(tmp_path: Path) -> None:
    folders = tmp_path / "checkpoints"
    for images in (8, 9, 10, 100):
        write(folders / str(images), images)
    checkpoint.rotate(folders, 2)
    assert sorted(p.name for p in folders.iterdir()) == ["10", "100", "latest"]


def test_saving_again_replaces(tmp_path: Path) -> None:
    write(tmp_path / "checkpoints" / "64")
    write(tmp_path / "checkpoints" / "64")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["64", "latest"]


def test_a_full_disk_leaves_earlier_checkpoints_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import SafetensorError

    write(tmp_path / "checkpoints" / "1")

    def full(*args: object, **kwargs: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_file, "save_file", full)
    with pytest.raises(EnvironmentFault, match="cannot write .*: .*No space left on device"):
        write(tmp_path / "checkpoints" / "2")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "latest"]
    assert checkpoint.load(tmp_path).images == 64


def chop(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\xaa")


def edit_state(folder: Path, **entries: object) -> None:
    counters = json.loads((folder / "state.json").read_text())
    counters = {**counters, **entries}
    del counters["sha256"]
    (folder / "state.json").write_text(json.dumps({**counters, "sha256": checkpoint._sha256_of(counters)}))


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def replace_by_link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


STATES: dict[str, tuple[Callable[[Path], object], str]] = {
    "state missing": (lambda f: (f / "state.safetensors").unlink(), "state.safetensors"),
    "state cut": (lambda f: chop(f / "state.safetensors"), "state.safetensors is damaged: it does not match"),
    "state flipped": (
        lambda f: flip(f / "state.safetensors"),
        "state.safetensors is damaged: it does not match",
    ),
    "model of another": (
        lambda f: flip(f / "model.safetensors"),
        "model.safetensors is damaged: it does not match",
    ),
    "no state.json": (lambda f: (f / "state.json").unlink(), "not a complete checkpoint"),
    "state.json cut": (lambda f: chop(f / "state.json") or chop(f / "state.json"), "state.json is damaged"),
    "state.json empty": (lambda f: (f / "state.json").write_text(""), "state.json is damaged"),
    "state.json a list": (lambda f: (f / "state.json").write_text("[]"), "state.json is damaged"),
    "state.json without files": (lambda f: (f / "state.json").write_text("{}"), "state.json is damaged"),
    "state.json of another version": (
        lambda f: edit_state(f, format=2),
        "written by another version of diffgen",
    ),
    "state.json deep": (lambda f: (f / "state.json").write_text("[" * 10**5), "state.json is damaged"),
    "state.json of 1 GB": (lambda f: os.truncate(f / "state.json", 2**30), "far larger than any run's"),
    "state.json a pipe": (lambda f: replace_by_pipe(f / "state.json"), "is not a regular file"),
    "state.json endless": (lambda f: replace_by_link(f / "state.json", "/dev/zero"), "is not a regular file"),
    "state a pipe": (lambda f: replace_by_pipe(f / "state.safetensors"), "is not a regular file"),
    "state endless": (lambda f: replace_by_link(f / "state.safetensors", "/dev/zero"), "is not a regular file"),
    "model endless": (lambda f: replace_by_link(f / "model.safetensors", "/dev/zero"), "is not a regular file"),
    "state.json not UTF-8": (lambda f: (f / "state.json").write_bytes(b'{"\xff": 1}'), "state.json is damaged"),
    "state.json with a key twice": (
        lambda f: (f / "state.json").write_text('{"a": 1, "a": 1}'),
        "state.json is damaged",
    ),
    "config missing": (lambda f: edit_state(f, config=None), "state.json is damaged"),
    "config deep": (lambda f: edit_state(f, config=nested(12)), "state.json is damaged"),
    "config deeper": (lambda f: edit_state(f, config=nested(300)), "state.json is damaged"),
    "step a text": (lambda f: edit_state(f, step="8"), "state.json is damaged"),
    "step a truth": (lambda f: edit_state(f, step=True), "state.json is damaged"),
    "step a fraction": (lambda f: edit_state(f, step=8.5), "state.json is damaged"),
    "step negative": (lambda f: edit_state(f, step=-8), "state.json is damaged"),
    "images huge": (lambda f: edit_state(f, images=10**400), "state.json is damaged"),
    "seconds NaN": (lambda f: edit_state(f, seconds=float("nan")), "state.json is damaged"),
    "scaler a list": (lambda f: edit_state(f, scaler=[1]), "state.json is damaged"),
    "scaler of texts": (lambda f: edit_state(f, scaler={"scale": "1"}), "state.json is damaged"),
    "files a text": (lambda f: edit_state(f, files="x"), "state.json is damaged"),
    "checksum a number": (lambda f: edit_state(f, files={"model.safetensors": {"sha256": 1}}), "does not match"),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", STATES)
def test_damaged_training_state(tmp_path: Path, case: str) -> None:
    folder = write(tmp_path / "checkpoints" / "64")
    change, words = STATES[case]
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load_state(folder)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_changed_config_does_not_fit_the_checksum(tmp_path: Path, tiny_model: Path) -> None:
    """One name in the header would otherwise change what the weights mean."""
    header, _ = split(tiny_model)
    text = header["__metadata__"]["config"].replace('{"name": "flow"}', '{"name": "v"}')
    assert text != header["__metadata__"]["config"]
    with pytest.raises(CheckpointError, match="do not match their checksum"):
        checkpoint.load(with_metadata(tmp_path / "changed.safetensors", tiny_model, config=text))
