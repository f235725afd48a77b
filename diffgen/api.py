"""Use from Python: a checkpoint that draws, and training as the command does it."""

import base64
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diffgen.build import restore
from diffgen.cli import compose, sample
from diffgen.cli import train as command
from diffgen.cli.configs import as_yaml
from diffgen.core import compilation, memory
from diffgen.core.compilation import Compiled
from diffgen.core.devices import best_device
from diffgen.core.errors import UsageError, first_line, require
from diffgen.core.paths import at_home
from diffgen.core.processes import autocast
from diffgen.core.registry import convert
from diffgen.core.settings import SampleSettings
from diffgen.core.signals import Stopped, StopRequest
from diffgen.sampling.generate import prepare
from diffgen.sampling.labels import choose_labels
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.run_directory import run_of
from diffgen.training.loggers import Figures
from diffgen.training.trainer import train_until

DRAWING, TRAINING = Lock(), Lock()
"""One thread of a process draws at a time, as memory is for one; and one run is trained, as Accelerate's state is."""


def load(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    plugins: str | Sequence[str] = (),
    latent: str | Path | None = None,
) -> "Run":
    """Read a checkpoint.

    Args:
        path: A .safetensors file, a checkpoint folder, or a run directory, whose newest is read.
        device: Where it draws: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        plugins: Modules or files of your own that it needs: one or several.
        latent: The autoencoder of a checkpoint that keeps it apart.

    Raises:
        UsageError: There is no such device, or a plugin cannot be imported.
        CheckpointError: The checkpoint is missing, damaged, foreign or hostile; no code in it is run.
    """
    if plugins:
        compose.plug([plugins] if isinstance(plugins, str) else [*plugins])
    place = _device(device)
    saved = checkpoint.load(Path(at_home("ckpt", str(path))))
    return Run(supplied(saved, None if latent is None else at_home("latent", str(latent))), place)


def train(overrides: Sequence[str] = (), progress: Callable[[dict[str, Any]], None] | None = None) -> "Run":
    """Train as `diffgen-train` does, and load what came of it.

    The run is trained by a thread, and this one waits. So no signal handler is needed, and Ctrl-C, or an error of
    `progress`, ends the run as it would end the command: after the step, with a checkpoint from which the same call
    with `run_dir=...` goes on.

    Args:
        overrides: As they are typed after the command: `["dataset=digits", "train.images=2048"]`; none is the demo.
        progress: Called in this thread with the figures of each logged step (`images`, `step`, `loss`, `lr`,
            `grad_norm`, `skipped`, `images_per_second`, `seconds`; None where there is none) and of each evaluation
            (`eval/fd`, ...).

    Returns:
        The newest checkpoint of the run, as `load` gives it.

    Raises:
        DiffgenError: What the command would say in one sentence, and end.
        KeyboardInterrupt: Ctrl-C; the checkpoint is written, and the sentence says where.
    """
    require(not isinstance(overrides, str), f"{overrides!r} must be a list of settings, ['dataset=digits', ...]")
    config = compose.train_config([*overrides] or [command.DEMO])
    config_yaml = as_yaml(config)
    default_run_dir = command.check(config)

    def work(request: StopRequest, rows: "Rows") -> Path:
        with _kept():
            return train_until(request, config, config_yaml, default_run_dir, {"progress": rows})

    require(TRAINING.acquire(blocking=False), "diffgen.train is at work in this process: wait, or take another process")
    try:
        run_dir = _attended(work, progress or (lambda row: None))
    finally:
        TRAINING.release()
    latent = config["latent"]
    return load(run_dir, latent=None if latent["embed"] else latent["path"])


class Run:
    """A checkpoint in memory.

    Attributes:
        path: Its file.
        dir: The run directory that it is in, or None.
        images: Training images seen.
        config: What it says of itself, plain data.
        classes: Names of its classes.
        shape: Of x0: (C, H, W) of a picture, or of its latents.
        kind: What an example is: pixels, vectors, ...
        schedule: alpha(t) and sigma(t) for t from 0 to `t_max`: x_t = alpha x0 + sigma z.
        device: Where it draws.
    """

    def __init__(self, saved: Checkpoint, device: torch.device) -> None:
        """See `load`.

        Raises:
            CheckpointError: The config lacks a part, names something unknown, or does not match the weights.
        """
        self._saved, self._trained, self.device = saved, restore(saved), device
        self._defaults = sample.check(compose.sample_config({}))
        self.path, self.images, self.config = saved.path, saved.images, saved.config
        self.dir = run_of(self.path)
        self.classes, self.shape = self._trained.classes, tuple(self._trained.shape.size)
        self.kind: str = saved.config["data"]["kind"]["name"]
        self.schedule = self._trained.denoiser.schedule

    def __repr__(self) -> str:
        """What it is, in a line."""
        size, classes = self._trained.kind.sized(self.shape), self._trained.shape.num_classes
        what = f"{self._trained.kind.unit} {size}, {classes or 'no'} classes, {self.images:,} seen"
        return f"<diffgen run: {self.config['model']['name']}, {what}, on {self.device}, from {self.path}>"

    def sample(self, n: int = 64, **settings: Any) -> Tensor:
        """Draw examples, the very ones of `diffgen-sample` with the same settings.

        Args:
            n: How many.
            settings: Any of the command's: `seed`, `label`, `sampler`, `task`, `guidance`, `guidance_interval`,
                `guidance_rescale`, `guide`, `sigma_rel`, `batch_size`, `precision`, `compile`, and those of the
                sampler and the task by their last names, as `steps`, `eta`, `image`, `strength`. The defaults are
                those of the command.

        Returns:
            Stored examples on the CPU: pictures are uint8 [n, C, H, W]; of `task="trajectory"`, [n, frames, C, H, W].
            Text is int64 [n, L], which `text` reads.

        Raises:
            DiffgenError: What the command would say in one sentence.
        """
        config = compose.sample_config({**settings, "n": n})
        checked = replace(sample.check(config), ckpt=str(self.path))
        with DRAWING, memory.as_fault():
            order = prepare(checked, config["sampler"], config["task"], self._saved, self.device)
            try:
                with autocast(checked.precision, self.device):
                    return torch.cat(list(order.batches(list(range(order.settings.n)))))
            finally:
                if isinstance(order.sampling.denoiser.model, Compiled):
                    compilation.forget()

    def text(self, tokens: Tensor) -> list[str]:
        """The text of examples.

        Args:
            tokens: As `sample` gives them, int64 [n, L]; -1 is a hidden one.

        Raises:
            UsageError: This run makes no text, or they are none of its tokens.
        """
        kind = self._trained.kind
        require(kind.textual, f"this run makes {kind.unit}, which are no text: grid shows them")
        require(isinstance(tokens, Tensor), f"tokens must be a tensor of torch, and are {type(tokens).__name__}")
        require(
            tokens.dtype == torch.int64 and tokens.dim() == 2,
            f"tokens of {tokens.dtype} {list(tokens.shape)} must be torch.int64 ['n', {self.shape[-1]}]; "
            "those of task='trajectory' are x.flatten(0, 1)",
        )
        return kind.lines(tokens.cpu())

    def grid(self, images: Tensor, columns: int | None = None) -> Image.Image:
        """A picture of examples: side by side, or what else suits their kind.

        Args:
            images: As `sample` gives them, [n, ...].
            columns: Examples in a row; None for a square.

        Raises:
            UsageError: They are not of this kind or size, or are text.
        """
        kind = self._trained.kind
        require(not kind.textual, f"this run makes {kind.unit}, which no picture shows: text reads them")
        require(columns is None or columns >= 1, f"columns={columns} must be at least 1, or None")
        return kind.show(self._own(images), [-1] * len(images), columns)

    def film(self, clips: Tensor, fps: float | None = None) -> "Film":
        """Clips side by side as they move, which a notebook shows.

        Args:
            clips: As `sample` gives them, uint8 [n, T, C, H, W].
            fps: Frames per second; None: those of the training clips.

        Raises:
            UsageError: This run makes no clips, or they are of another size.
        """
        kind = self._trained.kind
        require(kind.moving, f"this run makes {kind.unit}, which do not move: grid shows them")
        kind = kind if fps is None else kind.played_at(convert("fps", fps, float))
        return Film(kind.write("gif", self._own(clips), [-1] * len(clips), ()))

    def _own(self, examples: Tensor) -> Tensor:
        """Examples of this run on the CPU; of clips any number of frames will do.

        Raises:
            UsageError: They are not of this kind or size.
        """
        kind = self._trained.kind
        stored = kind.decode(torch.zeros(1, *self.shape))
        size = ["n", *("frames" if kind.moving and axis == 0 else side for axis, side in enumerate(stored.shape[1:]))]
        fits = examples.dim() == stored.dim() and all(
            side in ("n", "frames", own) for side, own in zip(size, examples.shape, strict=True)
        )
        require(
            fits and examples.numel() > 0 and examples.dtype == stored.dtype,
            f"images of {examples.dtype} {list(examples.shape)} are no {kind.unit} of this run: {stored.dtype} {size}",
        )
        return examples.cpu()

    def denoise(self, x: Tensor, t: float | Tensor, label: Any = None) -> Tensor:
        """x0_hat, the network's estimate of E[x0 | x_t = x], without guidance; gradients flow to x if it wants them.

        Args:
            x: Float [n, *shape] in the units of x0 (pictures are in [-1, 1]): alpha(t) x0 + sigma(t) z.
            t: A time in [0, schedule.t_max], or one each, [n].
            label: A class or its name, a list of one each, or None.

        Returns:
            Like x, on the run's device.

        Raises:
            UsageError: The shape, a time or a label is out of range, or this run unmasks tokens.
        """
        makes = self._trained.objective.makes
        require(self._trained.objective.path, f"this run {makes}, and has no x0_hat on a path of noise")
        require(isinstance(x, Tensor), f"x must be a tensor of torch, and is {type(x).__name__}: torch.as_tensor(x)")
        require(
            x.shape[1:] == self.shape and x.is_floating_point(),
            f"x of {x.dtype} {list(x.shape)} must be floats of shape {['n', *self.shape]}",
        )
        labels = torch.tensor(self._labels(label, len(x)), device=self.device, dtype=torch.int64)
        denoiser = self._trained.denoiser
        denoiser.model.to(self.device)
        return denoiser(x.to(self.device), self._times(t, len(x)).to(self.device, x.dtype), labels)

    def _labels(self, label: Any, n: int) -> list[int]:
        label = label.tolist() if hasattr(label, "tolist") else label
        require(not isinstance(label, list | tuple) or len(label) == n, f"label={label} must be one, or {n} of them")
        wanted = convert("label", label, SampleSettings.__annotations__["label"])
        settings = replace(self._defaults, n=max(n, 1), label=wanted)
        return choose_labels(settings, self.classes, self._trained.shape.num_classes, new=False)[:n]

    def _times(self, t: float | Tensor, n: int) -> Tensor:
        try:
            times = torch.as_tensor(t, dtype=torch.float64, device="cpu")
        except (TypeError, ValueError, RuntimeError):
            raise UsageError(f"t={t!r} must be one time, or {n} of them") from None
        require(times.shape in ((), (n,)), f"t of shape {list(times.shape)} must be one time, or {n} of them")
        end = float(self.schedule.t_max)
        inside = bool(((times >= 0) & (times <= end)).all())
        require(inside, f"t={t} must be in [0, {end:g}]")
        return times.expand(n)


class Film:
    """An animated GIF, which a notebook shows.

    Attributes:
        data: The bytes of the file.
    """

    def __init__(self, data: bytes) -> None:
        self.data = data

    def save(self, path: str | Path) -> None:
        """Write the file.

        Raises:
            UsageError: Its name has another ending than .gif.
        """
        require(Path(path).suffix.lower() == ".gif", f"path={str(path)!r} must end in .gif: that is what a Film is")
        Path(path).write_bytes(self.data)

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        return {"image/gif": base64.b64encode(self.data).decode()}


class Rows:
    """A logger that hands figures to the thread that waits for the run."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[dict[str, Any] | None] = SimpleQueue()

    def start(self, run_dir: Path, config: Mapping[str, Any], images: int) -> None:
        """See `diffgen.training.loggers.Logger`."""

    def log(self, figures: Figures, images: int) -> None:
        """See `Logger`; what has no `images` of its own is given them."""
        self.queue.put({"images": images, **figures})

    def picture(self, path: Path, images: int) -> None:
        """See `Logger`."""

    def text(self, path: Path, images: int) -> None:
        """See `Logger`."""

    def finish(self) -> None:
        """See `Logger`."""


def _attended(work: Callable[[StopRequest, Rows], Path], progress: Callable[[dict[str, Any]], None]) -> Path:
    """Let a thread work, and wait for it here; Ctrl-C, or an error of `progress`, asks it to stop."""
    request, rows = StopRequest(), Rows()

    def labour() -> Path:
        try:
            return work(request, rows)
        finally:
            rows.queue.put(None)

    with ThreadPoolExecutor(1, "diffgen-train") as thread:
        run = thread.submit(labour)
        try:
            for row in iter(rows.queue.get, None):
                progress(row)
        except BaseException as error:
            request.signum = signal.SIGINT
            ended = run.exception()  # once its checkpoint is written
            if isinstance(error, KeyboardInterrupt) and isinstance(ended, Stopped):
                raise KeyboardInterrupt(str(ended)) from None
            raise
        return run.result()


@contextmanager
def _kept() -> Iterator[None]:
    """Put back what a run changes of torch for the whole process: its number of threads, its random numbers."""
    threads = torch.get_num_threads()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            yield
    finally:
        torch.set_num_threads(threads)


def _device(name: str | torch.device) -> torch.device:
    """A device that is there.

    Raises:
        UsageError: It is not, or no device is called so.
    """
    if name == "auto":
        name = best_device()
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device={str(name)!r} cannot be used ({first_line(error)}): auto, cpu, cuda or mps") from None
