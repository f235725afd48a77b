"""What docs/security.md promises of files that come from strangers."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Answer
from PIL import Image
from safetensors.torch import load_file
from test_checkpoint import HOSTILE, LAYOUT, RAW, WEIGHTS, put, split, with_config, with_metadata, with_weights

from diffgen.core.console import Reporter, complain
from diffgen.core.errors import DataError, printable
from diffgen.data.reading import Reading
from diffgen.nets import DataShape
from diffgen.sampling.generate import batch_size
from diffgen.storage import checkpoint

ROOT = Path(__file__).parents[2]
WATCH = Path(__file__).parents[1] / "watch_loading.py"

Command = Callable[..., Answer]
Python = Callable[..., "subprocess.CompletedProcess[str]"]


METADATA = {
    "library": ["other"],
    "format_version": ["0", "2", "99", "1e0"],
    "images": ["-1", "9" * 5000],
    "sha256": ["", "0" * 64],
}


def all_hostile(folder: Path, good: Path) -> list[Path]:
    """Every hostile file of `test_checkpoint.py`, in a folder."""
    files = []

    def next_path() -> Path:
        files.append(folder / f"{len(files):03d}.safetensors")
        return files[-1]

    for make, _ in RAW.values():
        make(next_path())
    for lay in LAYOUT.values():
        lay(next_path(), good)
    for change, _ in WEIGHTS.values():
        with_weights(next_path(), good, change)
    for change, _ in HOSTILE.values():
        with_config(next_path(), good, change)
    for key, values in METADATA.items():
        for value in values:
            with_metadata(next_path(), good, **{key: value})
    return files


def fingerprint(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all below a folder."""
    return {str(p): (p.lstat().st_size, p.lstat().st_mtime_ns) for p in folder.rglob("*")}


# --- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def watched(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], bool]:
    """What loading each hostile file did, the good one first, and whether a file changed meanwhile."""
    folder = tmp_path_factory.mktemp("watched")
    files, home = all_hostile(folder, tiny_model), folder / "home"
    home.mkdir()
    before = fingerprint(folder)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(home), "TMPDIR": str(home)}
    command = [sys.executable, str(WATCH), str(tiny_model), *map(str, files)]
    done = subprocess.run(command, cwd=home, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), fingerprint(folder) == before


def test_hostile_files_are_refused_within_bounds(watched: tuple[list[dict[str, Any]], bool]) -> None:
    """The process has 256 MiB of address space to spare: any allocation beyond fails with another exception."""
    good, *hostile = watched[0]
    assert good["ended"] == "loaded"
    assert len(hostile) >= 150
    for result in hostile:
        assert result["ended"].startswith("refused: "), result
        assert result["ended"].isprintable()
        assert result["seconds"] < 5, result


def test_loading_opens_the_file_and_does_nothing_else(watched: tuple[list[dict[str, Any]], bool]) -> None:
    """By Python's audit events: no other file, no socket, no process, no import, no code; and no variable is read."""
    results, unchanged = watched
    for result in results:
        assert set(result["events"]) <= {f"open {result['file']!r} 'r'"}, result
        assert not result["variables"], result
    assert unchanged


def test_the_watcher_sees_what_it_should(tmp_path: Path, python: Python, tiny_model: Path) -> None:
    """The checks above can fail: a loader that misbehaves is seen to."""
    (tmp_path / "bad.py").write_text(
        f"import sys, os, socket; sys.path.insert(0, {str(WATCH.parent)!r})\n"
        "import watch_loading as w\n"
        "def bad(path):\n"
        "    os.getenv('SECRET'); os.system('true'); open('x', 'w'); socket.socket()\n"
        "    try: bytearray(2**29)\n"
        "    except MemoryError: os.mkdir('bounded')\n"
        "    import antigravity_of_diffgen\n"
        "w.checkpoint.load = lambda path: bad(path) if len(w.events) or w.watching else good(path)\n"
        "good = lambda path: w.sys.exit\n"
        "w.restore = w.check_sampler = lambda *saved: None\n"
        "w.main()\n"
    )
    result = json.loads(python("bad.py", str(tiny_model)).stdout)[0]
    assert "SECRET" in result["variables"]
    for event in ("os.system", "open 'x' 'w'", "socket.", "os.mkdir 'bounded'", "import 'antigravity_of_diffgen'"):
        assert any(seen.startswith(event) for seen in result["events"]), event
    assert result["ended"].startswith("ModuleNotFoundError")


@pytest.mark.parametrize(
    "case", ["_target_", "interpolation", "giant image", "nested 10,000 deep", "a sampler of a trillion steps"]
)
def test_the_command_refuses_with_code_4(tmp_path: Path, command: Command, tiny_model: Path, case: str) -> None:
    path = with_config(tmp_path / "model.safetensors", tiny_model, HOSTILE[case][0])
    answer = command("sample", f"ckpt={path}", "out=out")
    assert answer.code == 4
    assert answer.err.startswith("error: ")
    assert answer.err.count("\n") == 1
    assert "Traceback" not in answer.err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.safetensors"]


# --- names --------------------------------------------------------------------------------------------------------

PATHS = [
    "../../evil",
    "/tmp/evil-of-diffgen",
    "evil/evil",
    "..",
    "~",
    "con",
    "evil.png",
    "$(touch evil)",
    "`evil`",
    "a;evil",
]


def test_names_in_a_checkpoint_form_no_path(tmp_path: Path, command: Command, tiny_model: Path) -> None:
    """Output stays in `out`, under names that diffgen gives."""
    path = with_config(tmp_path / "model.safetensors", tiny_model, put("data", "classes", value=PATHS))
    answer = command("sample", f"ckpt={path}", "n=2", "out=below/out", "save=[grid,png,npz]", "label=../../evil")
    assert answer.code == 0, answer.err
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    images = {f"below/out/images/{i:06d}.png" for i in range(2)}
    assert written == {"model.safetensors", "below/out/grid.png", "below/out/samples.npz", *images}
    assert not Path("/tmp/evil-of-diffgen").exists()


def test_tensor_names_form_no_path(tmp_path: Path, command: Command, tiny_model: Path) -> None:
    """Also where the name is that of a file beside the checkpoint."""
    path = with_weights(tmp_path / "m.safetensors", tiny_model, lambda w: w.update({"../x.png": w.pop("stem.bias")}))
    assert command("sample", f"ckpt={path}", "out=out").code == 4
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


NASTY = "a\x1b[2J\x1b]0;owned\x07\r\n\u202eb\u200dc\ud800\0"


def test_terminal_codes_reach_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """File names are the user's, but a shell may have completed a stranger's."""
    complain(f"{NASTY} is not a checkpoint")
    Reporter(speaks=True).header(NASTY, {"sampler": NASTY})
    said = capsys.readouterr()
    for text in (said.err, said.out):
        assert all(line.isprintable() for line in text.splitlines())
    assert said.err.count("\n") == 1
    assert printable("ä e\u0301 'x' \\n") == "ä e\u0301 'x' \\n", "what can be printed stays as it is"


# --- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "device", "size"),
    [
        (DataShape((3, 32, 32)), "cuda", 1024),
        (DataShape((3, 32, 32)), "cpu", 64),
        (DataShape((3, 256, 256)), "cuda", 21),
        (DataShape((1, 2048, 2048)), "cpu", 1),
        (DataShape((128,), vocabulary=100), "cpu", 64),
        (DataShape((1024,), vocabulary=50_000), "cuda", 1),
    ],
)
def test_large_images_are_drawn_a_few_at_a_time(shape: DataShape, device: str, size: int) -> None:
    assert batch_size(shape, torch.device(device)) == size


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("L", (64, 64)).save(path)
    with pytest.raises(DataError, match=r"a.png has 64 x 64 pixels, more than 4,095: raise dataset.max_pixels"):
        Reading(1, max_pixels=4095).read(path, str(path), None)


# --- what cannot be undone by a signature ---------------------------------------------------------------------------


def test_a_checksum_is_no_signature(tmp_path: Path, tiny_model: Path) -> None:
    """As docs/security.md says: whoever changes weights can make the checksum fit, so it tells damage, not malice."""
    path = with_weights(tmp_path / "m.safetensors", tiny_model, lambda w: w["stem.bias"].add_(1))
    changed = checkpoint.load(path)
    assert (changed.weights["stem.bias"] == load_file(tiny_model)["stem.bias"] + 1).all()
    assert split(path)[0]["__metadata__"]["sha256"] != split(tiny_model)[0]["__metadata__"]["sha256"]


# --- the document ---------------------------------------------------------------------------------------------------


def test_every_test_named_in_the_document_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "security.md").read_text()))
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    files = {file.stem for file in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) >= 10
    assert named <= defined | files, named - defined - files


def test_the_document_gives_the_figures_that_were_measured() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    figures = json.loads((ROOT / "benchmarks" / "results" / "fuzz.json").read_text())
    assert figures["neither_loaded_nor_refused"] == 0
    assert figures["inputs"] >= 100_000
    slowest = max(target["slowest_seconds"] for target in figures["targets"].values())
    for figure in (f"{figures['inputs']:,}", f"{slowest:g} s", figures["machine"]):
        assert figure in text, figure
