"""Who is told how a run goes: all of it, once, and never at the cost of the run."""

import csv
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import events
import numpy as np
import pytest
import rows
from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image

from diffgen.core.errors import UsageError
from diffgen.core.registry import parameters
from diffgen.training import loggers
from diffgen.training.changes import compare
from diffgen.training.loggers import LOGGERS, finite

Fit = Callable[..., Path]
Metrics = Callable[[Path], list[dict[str, Any]]]
Command = Callable[..., conftest.Answer]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


def told(rows: list[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """The rows of a log as TensorBoard should show them."""
    keys = [key for key in rows[0] if key != "images"]
    return {
        key: [(row["images"], pytest.approx(row[key], rel=1e-6)) for row in rows if row[key] is not None]
        for key in keys
    }


def same_weights(run: Path, other: Path) -> None:
    for file in ("model.safetensors", "state.safetensors"):
        newest = Path("checkpoints", "00000128", file)
        assert (run / newest).read_bytes() == (other / newest).read_bytes()


def same_pictures(run: Path) -> None:
    files = {int(path.stem): np.asarray(Image.open(path).convert("RGB")) for path in (run / "samples").glob("*.png")}
    shown = events.pictures(run)
    assert shown.keys() == files.keys()
    assert all(np.array_equal(shown[images], files[images]) for images in files)


# --- the table --------------------------------------------------------------------------------------------------


def test_every_row_has_a_yaml_with_its_settings() -> None:
    assert {path.stem for path in (rows.CONFIGS / "logger").glob("*.yaml")} == set(LOGGERS)
    for name, logger in LOGGERS.items():
        assert set(rows.row("logger", name)) == {"name", *parameters(logger)}


def test_settings_stand_under_the_name_of_a_logger(compose: Callable[..., dict[str, Any]]) -> None:
    assert compose("train")["logger"] == {"jsonl": {"name": "jsonl"}}
    both = compose("train", "logger=[jsonl,wandb]", "logger.wandb.project=mine")["logger"]
    assert both == {"jsonl": {"name": "jsonl"}, "wandb": {"name": "wandb", "project": "mine"}}
    assert compose("train", "logger=tensorboard")["logger"] == {"tensorboard": {"name": "tensorboard"}}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("logger=[tensorbord]", "logger='tensorbord' is unknown; choose one of [jsonl, mlflow, tensorboard, trackio, wandb] (did you mean 'tensorboard'?)"),
        ("logger=tensorbord", "logger='tensorbord' is unknown"),
        ("logger=null", "logger='null' is unknown"),
        ("logger.wandb.project=x", "to change more of wandb, name it too: logger=[wandb] logger.wandb.project=..."),
        ("logger.jsonl.name=tensorboard", "logger.jsonl.name='tensorboard' must be jsonl"),
        ("logger.jsonl.path=x", "logger.jsonl.path is unknown; logger.jsonl has [name]"),
    ],
)  # fmt: skip
def test_bad_choices_are_told_in_a_sentence(
    command: Command, tmp_path: Path, tiny: list[str], override: str, sentence: str
) -> None:
    answer = command("train", *tiny, "run_dir=run", override)
    assert answer.code == 2
    assert sentence in answer.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio", "mlflow"])
def test_a_missing_library_is_told_before_anything_is_written(
    fit: Fit, tmp_path: Path, monkeypatch: Patch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(tracking, "get_available_trackers", list)
    with pytest.raises(UsageError, match=rf"logger.{name}.name={name} needs .* pip install 'diffgen\[loggers\]'"):
        fit(tmp_path / "run", f"logger=[{name}]")
    assert not list(tmp_path.iterdir())


# --- TensorBoard ------------------------------------------------------------------------------------------------


def test_tensorboard_shows_the_log_and_the_previews(fit: Fit, metrics: Metrics, tiny_run: Path, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "logger=[jsonl,tensorboard]", "train.preview_every=64")
    assert events.scalars(run) == told(metrics(run))
    assert [row["images"] for row in metrics(run)] == list(range(16, 129, 16))
    assert set(events.pictures(run)) == {64, 128}
    same_pictures(run)
    same_weights(run, tiny_run)


def test_a_resumed_run_tells_each_step_once(fit: Fit, metrics: Metrics, tmp_path: Path, capsys: Capture) -> None:
    """After a crash the event file is ahead of the newest checkpoint, as the log is."""
    run = fit(tmp_path / "run", "logger=tensorboard", "train.preview_every=32")
    shutil.rmtree(run / "checkpoints" / "00000128")
    capsys.readouterr()
    fit(run, "logger=tensorboard", "train.preview_every=32", "optimizer.lr=1e-4")
    assert "resumed at 64 images" in capsys.readouterr().out
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert events.scalars(run) == told(metrics(run))
    same_pictures(run)


def test_a_change_of_loggers_is_not_worth_telling(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run", "train.images=64", "logger=[jsonl,tensorboard]")
    capsys.readouterr()
    fit(run, "train.images=64")
    assert "changed" not in capsys.readouterr().out
    assert compare({"logger": {"wandb": {"project": "a"}}}, {}, tmp_path) == []  # a run from before there were loggers
    assert compare({"loggers": 1}, {}, tmp_path) == ["loggers: absent -> 1"]


# --- faults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["__init__", "start", "log", "picture", "finish"])
def test_a_logger_that_fails_is_told_once_and_stops_nothing(
    fit: Fit, metrics: Metrics, tiny_run: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture, where: str
) -> None:
    calls: list[str] = []

    def method(name: str) -> Callable[..., None]:
        def call(*_: object) -> None:
            calls.append(name)
            if name == where:
                raise ConnectionError(f"no network, call {len(calls)}")

        return call

    names = ("__init__", "start", "log", "picture", "finish")
    monkeypatch.setitem(LOGGERS, "failing", type("Failing", (), {name: method(name) for name in names}))
    run = fit(tmp_path / "run", "+logger.failing.name=failing")
    said = capsys.readouterr().out
    first = {"__init__": 1, "start": 2, "log": 3, "picture": 11, "finish": 12}[where]
    assert f"logger=failing failed: ConnectionError: no network, call {first}; training goes on" in said
    assert said.count("failing") == 1
    same_weights(run, tiny_run)
    assert [row["loss"] for row in metrics(run)] == [row["loss"] for row in metrics(tiny_run)]
    all_calls = ["__init__", "start", *["log"] * 8, "picture", "finish"]
    assert calls == (all_calls if where not in names[:2] else list(names[: names.index(where) + 1]))


def test_events_that_a_full_disk_did_not_take_are_written_later(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """The disk is full for four of the writings; a file that ended in half an event would be read no further."""
    append, calls = loggers.append_bytes, iter(range(99))

    def full(path: Path, data: bytes) -> None:
        if next(calls) in range(2, 6):
            path = Path("/dev/full")
        append(path, data)

    monkeypatch.setattr(loggers, "append_bytes", full)
    run = fit(tmp_path / "run", "logger=tensorboard")
    assert capsys.readouterr().out.count("logger=tensorboard failed: cannot write /dev/full: No space left") == 1
    assert events.scalars(run) == told(metrics(run))
    same_pictures(run)


def test_figures_that_are_no_numbers_are_left_out() -> None:
    row = {"images": 16, "loss": None, "lr": float("inf"), "grad_norm": float("nan"), "skipped": 0}
    assert finite(row) == {"skipped": 0}


def test_metrics_are_always_written(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "logger=[]", "train.images=16")
    assert [row["images"] for row in metrics(run)] == [16]


# --- services, and loggers of a user's own ----------------------------------------------------------------------


class Tracker:
    """Stands for one of Accelerate's; keeps what it is told."""

    made: "list[Tracker]"

    def __init__(self, project: str, **settings: str) -> None:
        self.project, self.settings, self.calls = project, settings, list[Any]()
        self.made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int) -> None:
        self.calls.append((step, values))

    def log_images(self, values: dict[str, list[Image.Image]], step: int) -> None:
        self.calls.append((step, {key: [np.asarray(image) for image in images] for key, images in values.items()}))

    def log_artifact(self, path: str, folder: str) -> None:
        self.calls.append((path, folder))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def trackers(monkeypatch: Patch) -> list[Tracker]:
    """The services' libraries are there, and never reached."""
    monkeypatch.setattr(Tracker, "made", [], raising=False)
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: list(LoggerType))
    for name in ("WandBTracker", "TrackioTracker", "MLflowTracker"):
        monkeypatch.setattr(tracking, name, Tracker)
    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(Image=lambda path: f"the picture {path}"))
    return Tracker.made


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_services_are_told_of_figures_previews_and_config(
    fit: Fit, metrics: Metrics, tmp_path: Path, trackers: list[Tracker], name: str
) -> None:
    run = fit(tmp_path / "a run", f"logger=[jsonl,{name}]", f"logger.{name}.project=mine")
    (tracker,) = trackers
    assert (tracker.project, "a run" in tracker.settings.values()) == ("mine", True)
    assert tracker.config["train.batch_size"] == 16
    picture = run / "samples" / "00000128.png"
    shown = {
        "wandb": (128, {"samples": [np.asarray(Image.open(picture))]}),
        "trackio": (128, {"samples": f"the picture {picture}"}),
        "mlflow": (str(picture), "samples"),
    }[name]
    logged = [(row["images"], finite(row)) for row in metrics(run)]
    np.testing.assert_equal(tracker.calls, ["start", *logged, shown, "finish"])


def test_a_logger_of_ones_own(command: Command, metrics: Metrics, tmp_path: Path, tiny: list[str]) -> None:
    plugin = f"plugins=[{conftest.ROOT}/docs/examples/logger.py]"
    answer = command("train", *tiny, plugin, "logger=[jsonl,csv]", "logger.csv.delimiter='|'", "run_dir=run")
    assert answer.code == 0, answer.err
    assert "failed" not in answer.out
    with (tmp_path / "run" / "metrics-00000000.csv").open() as file:
        table = list(csv.DictReader(file, delimiter="|"))
    assert [float(row["loss"]) for row in table] == [row["loss"] for row in metrics(tmp_path / "run")]


@pytest.mark.usefixtures("plugged")
def test_a_logger_neither_ends_a_run_nor_changes_it(fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that ends the process, and writes into what it is told."""

    class Rude:
        def start(self, run_dir: Path, config: Any, images: int) -> None:
            config["model"].clear()

        def log(self, figures: Any, images: int) -> None:
            figures.clear()
            raise SystemExit(7)

        def picture(self, path: Path, images: int) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setitem(LOGGERS, "rude", Rude)
    plain = fit(tmp_path / "plain", "train.images=64")
    rude = fit(tmp_path / "rude", "train.images=64", "+logger.rude.name=rude")
    for name in ("model", "state"):
        one, two = (run / "checkpoints/00000064" / f"{name}.safetensors" for run in (plain, rude))
        assert one.read_bytes() == two.read_bytes()
    assert len((rude / "metrics.jsonl").read_text().splitlines()) == 4
