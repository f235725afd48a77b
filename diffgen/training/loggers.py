"""Who is told how a run goes: files beside it, TensorBoard, or a service.

A row is called with its settings alone, and should refuse those that cannot work, before anything is written. What it
gives is started once the run has a directory. A logger that fails is told once and never stops the run.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from accelerate import tracking
from PIL import Image

from diffgen.build import Config
from diffgen.core.errors import DiffgenError, UsageError, first_line, require, typed
from diffgen.core.files import append_bytes, writing
from diffgen.core.registry import Table, build
from diffgen.storage.run_directory import RunLog
from diffgen.training.changes import flatten

LOGGERS = Table("logger")

MISSING = "name={} needs a library that is not installed: pip install 'diffgen[loggers]'"

ALWAYS = {"jsonl": {"name": "jsonl"}}
"""What is written whatever is chosen: `loss.png` is drawn from it."""

Figures = Mapping[str, float | None]
"""Figures of a moment by name; None where there is none."""


class Logger(Protocol):
    """What a row gives. Each method is called on the main process alone, and may raise whatever it likes."""

    def start(self, run_dir: Path, config: Config, images: int) -> None:
        """Begin to write.

        Args:
            run_dir: Directory of the run.
            config: The run's config, plain data.
            images: Images seen so far: 0, or where a run goes on; what was told from beyond is told again.
        """

    def log(self, figures: Figures, images: int) -> None:
        """Tell the figures of a logged step (`loss`, `lr`, ...) or of an evaluation (`eval/fd`, ...)."""

    def picture(self, path: Path, images: int) -> None:
        """Tell of a preview, a PNG file."""

    def text(self, path: Path, images: int) -> None:
        """Tell of a preview that is a file of text."""

    def finish(self) -> None:
        """The run ends, well or badly."""


class Loggers:
    """The loggers of a run; none on processes other than the main one."""

    def __init__(self, config: Config, warn: Callable[[str], None], *, main: bool) -> None:
        """Build what `config["logger"]` names.

        Args:
            config: Of the run.
            warn: Is told of each logger that fails, once.
            main: Whether this is the main process.

        Raises:
            UsageError: A setting is wrong, or a library is missing; on all processes.
        """
        self.warn, self.failed = warn, set[str]()
        self.running: dict[str, Logger] = {}
        for name, settings in {**ALWAYS, **config.get("logger", {})}.items():
            table = Table(f"logger.{name}")  # the key as users write it, in errors
            table.update(LOGGERS)
            with self._guarded(name, but=UsageError):
                require(settings["name"] == name, f"logger.{name}.name={typed(settings['name'])} must be {name}")
                self.running[name] = build(table, settings)
        if not main:
            self.running.clear()

    @contextmanager
    def opened(self, run_dir: Path, config: Config, images: int) -> Iterator[None]:
        """Start them; they finish when the block ends, however it ends. One that does not start is left out."""
        started = {}
        for name, logger in self.running.items():
            with self._guarded(name):
                logger.start(run_dir, copy.deepcopy(config), images)  # which is the run's own
                started[name] = logger
        self.running = started
        try:
            yield
        finally:
            self._each(lambda logger: logger.finish())

    def log(self, figures: Figures, images: int) -> None:
        """See `Logger`."""
        self._each(lambda logger: logger.log(dict(figures), images))

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""
        self._each(lambda logger: logger.picture(path, images))

    def text(self, path: Path, images: int) -> None:
        """See `Logger`; one of a plugin may know of pictures alone."""
        self._each(lambda logger: logger.text(path, images) if hasattr(logger, "text") else None)

    def _each(self, tell: Callable[[Logger], None]) -> None:
        for name, logger in self.running.items():
            with self._guarded(name):
                tell(logger)

    @contextmanager
    def _guarded(self, name: str, but: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """Tell the first error of a logger, and swallow all `but` these: the next time it may have mended."""
        try:
            yield
        except but:
            raise
        except (Exception, SystemExit) as error:  # libraries end the process, too
            if name not in self.failed:
                self.failed.add(name)
                ours = isinstance(error, DiffgenError)
                said = str(error) if ours else f"{type(error).__name__}: {first_line(error)}"
                self.warn(f"logger={name} failed: {said}; training goes on")


def indented(path: Path) -> str:
    """A preview of text as Markdown that is shown as it stands."""
    return "\n".join(f"    {line}" for line in read_lines(path))


def read_lines(path: Path) -> list[str]:
    """The lines of a preview of text."""
    return path.read_text(encoding="utf-8").split("\n")[:-1]


def finite(figures: Figures) -> dict[str, float]:
    """The figures that are finite numbers, without `images`, along which they are drawn."""
    return {k: v for k, v in figures.items() if k != "images" and v is not None and math.isfinite(v)}


@LOGGERS.register("jsonl")
class Jsonl:
    """`<run>/metrics.jsonl`, a line a logged step; rows that a full disk did not take are written with the next.

    Pictures have files of their own, and so have evaluations: `<run>/eval/training.jsonl`.
    """

    def start(self, run_dir: Path, config: Config, images: int) -> None:
        """See `Logger`; rows from beyond `images` were dropped when the directory was opened."""
        self.rows = RunLog(run_dir)

    def log(self, figures: Figures, images: int) -> None:
        """See `Logger`."""
        if "loss" in figures:
            self.rows.append(dict(figures))

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""

    def finish(self) -> None:
        """See `Logger`."""


@LOGGERS.register("tensorboard")
class TensorBoard:
    """Event files in `<run>/tensorboard`; their steps are images seen.

    They are written here and not by torch's SummaryWriter: its thread dies with the first fault of a disk, with a
    traceback on the screen, and forgets what it held. Here events wait for the next time, as rows of `jsonl` do.
    """

    def __init__(self) -> None:
        """Raises `UsageError` where TensorBoard is not installed."""
        try:
            from tensorboard.compat.proto import event_pb2
            from tensorboard.summary.writer import record_writer
            from torch.utils.tensorboard import summary
        except ImportError:
            raise UsageError(MISSING.format("tensorboard")) from None
        self.proto, self.record_writer, self.summary = event_pb2, record_writer, summary
        self.pending = BytesIO()
        self.records = self.record_writer.RecordWriter(self.pending)

    def start(self, run_dir: Path, config: Config, images: int) -> None:
        """See `Logger`; a reader is told to forget steps from beyond `images`, which an earlier part had reached."""
        self.path = run_dir / "tensorboard" / f"events.out.tfevents.{time.time_ns()}"  # readers go by the names
        with writing(self.path):
            self.path.parent.mkdir(exist_ok=True)
        session = self.proto.SessionLog(status=self.proto.SessionLog.START)
        self._write({"file_version": "brain.Event:2"}, {"step": images + 1, "session_log": session})

    def log(self, figures: Figures, images: int) -> None:
        """See `Logger`."""
        summaries = [self.summary.scalar(key, value) for key, value in finite(figures).items()]
        self._write(*({"step": images, "summary": summary} for summary in summaries))

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._write({"step": images, "summary": self.summary.image("samples", pixels, dataformats="HWC")})

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""
        self._write({"step": images, "summary": self.summary.text("samples", indented(path))})

    def finish(self) -> None:
        """See `Logger`; what a full disk did not take may fit now."""
        self._write()

    def _write(self, *events: dict[str, Any]) -> None:
        """Append events, and those that could not be written before; at once, as a run may be killed."""
        for event in events:
            self.records.write(self.proto.Event(wall_time=time.time(), **event).SerializeToString())
        append_bytes(self.path, self.pending.getvalue())
        self.pending.seek(0)
        self.pending.truncate()


class Tracked:
    """A service that Accelerate has a tracker for; each part of a run that was resumed is a run of its own there."""

    library: str

    def __init__(self, *, project: str) -> None:
        """Args: project: under which runs are kept.

        Raises:
            UsageError: The library is not installed, or too old a version of Accelerate.
        """
        installed = {tracker.value for tracker in tracking.get_available_trackers()}
        require(self.library in installed, MISSING.format(self.library))
        self.project = project

    def connected(self, run_dir: Path) -> Any:
        """Accelerate's tracker for a run."""
        raise NotImplementedError

    def start(self, run_dir: Path, config: Config, images: int) -> None:
        """See `Logger`; the config is kept as `train.batch_size: 128`, ..."""
        self.tracker = self.connected(run_dir)
        self.tracker.start()
        self.tracker.store_init_configuration(flatten(config))

    def log(self, figures: Figures, images: int) -> None:
        """See `Logger`."""
        self.tracker.log(finite(figures), step=images)

    def finish(self) -> None:
        """See `Logger`."""
        self.tracker.finish()


@LOGGERS.register("wandb")
class Wandb(Tracked):
    """Weights & Biases; its own files go to `<run>/wandb`."""

    library = "wandb"

    def connected(self, run_dir: Path) -> Any:
        """See `Tracked`."""
        return tracking.WandBTracker(self.project, name=run_dir.name, dir=str(run_dir))

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""
        with Image.open(path) as image:
            self.tracker.log_images({"samples": [image]}, step=images)

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""
        self.tracker.log_table("samples", columns=["text"], data=[[line] for line in read_lines(path)], step=images)


@LOGGERS.register("trackio")
class Trackio(Tracked):
    """Trackio, on this machine or in a Hugging Face Space (`TRACKIO_SPACE_ID`)."""

    library = "trackio"

    def connected(self, run_dir: Path) -> Any:
        """See `Tracked`."""
        return tracking.TrackioTracker(self.project, name=run_dir.name)

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""
        import trackio

        self.tracker.log({"samples": trackio.Image(str(path))}, step=images)

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""
        import trackio

        self.tracker.log({"samples": trackio.Markdown(indented(path))}, step=images)


@LOGGERS.register("mlflow")
class MLflow(Tracked):
    """MLflow, where `MLFLOW_TRACKING_URI` says; previews are artifacts."""

    library = "mlflow"

    def connected(self, run_dir: Path) -> Any:
        """See `Tracked`."""
        return tracking.MLflowTracker(self.project, run_name=run_dir.name)

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""
        self.tracker.log_artifact(str(path), "samples")

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""
        self.picture(path, images)
