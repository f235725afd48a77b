"""The training loop, on one process or many.

Accelerate does devices, precision and gradient exchange. What must be exact is here: which images, noise and times
step k sees (a function of the seed and k, for the global batch), what is saved, and when. Durations and intervals are
in images seen, so one GPU and eight run the same recipe.
"""

import copy
import inspect
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffgen import augment, checkpoint, header, training_state
from diffgen.build import MODEL_SIDE, make_dataset, make_denoiser, make_model, make_weighting
from diffgen.console import Reporter, count
from diffgen.datasets import ImageSource, Vectors
from diffgen.denoiser import NO_LABEL
from diffgen.ema import EMA
from diffgen.errors import CheckpointError, NonFiniteError, require
from diffgen.guidance import Guidance
from diffgen.images import grid, save_png, to_float
from diffgen.losses import denoising_loss
from diffgen.optimizers import OPTIMIZERS
from diffgen.processes import accelerated, on_main
from diffgen.randomness import data_order, generator, mix, uniforms
from diffgen.registry import bind, build
from diffgen.run_directory import RunLog, choose_run
from diffgen.sampling import Sampling, columns, cycle_labels
from diffgen.settings import EmaSettings, LrSchedule, PreviewSettings, TrainSettings, section
from diffgen.signals import Stopped, catch_signals
from diffgen.times import TIMES

PREVIEW_BATCH = 64
DEFAULT_THREADS = torch.get_num_threads()  # a job of a sweep may have changed it for itself

Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]
"""Arguments of the loss: x0, label, t, z and what augmentation did."""


def train(config: dict[str, Any], config_yaml: str, default_run_dir: str) -> None:
    """Train as a resolved config says.

    Args:
        config: Plain data, as `configs/train.yaml` composes it.
        config_yaml: The same as text, to be kept in the run directory.
        default_run_dir: Where to write if `config["run_dir"]` is null and nothing is resumed.

    Raises:
        DiffgenError: Something a user can mend; see `diffgen.errors`.
    """
    settings: TrainSettings = section(config, "train")
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    with accelerated(settings.precision) as accelerator:
        trainer = Trainer(config, config_yaml, default_run_dir, settings, accelerator)
        with catch_signals() as caught:
            trainer.fit(caught)


class Trainer:
    """One run: its parts, its counters, and the loop."""

    def __init__(
        self,
        config: dict[str, Any],
        config_yaml: str,
        default_run_dir: str,
        settings: TrainSettings,
        accelerator: Accelerator,
    ) -> None:
        """Build every part; nothing is written before all of them fit together."""
        self.settings, self.accelerator = settings, accelerator
        self.lr_schedule: LrSchedule = section(config, "lr_schedule")
        self.preview_settings: PreviewSettings = section(config, "preview")
        self.device: torch.device = accelerator.device
        self.main: bool = accelerator.is_main_process
        self.local_batch = self._split_batch()
        self.micro_batch = settings.micro_batch if isinstance(settings.micro_batch, int) else self.local_batch
        self.reporter = Reporter(speaks=self.main)
        self.time = bind(TIMES, config["time"])

        first: list[ImageSource] = []
        on_main(accelerator, lambda: first.append(make_dataset(config)))  # the others find the download done
        self.dataset: ImageSource = first[0] if first else make_dataset(config)
        shape = self.dataset.shape
        classes = list(self.dataset.classes) if config["conditional"] else []
        require(shape.pixels or not settings.augment, "train.augment is for pictures: vectors cannot be turned")
        told = augment.LABELS if settings.augment else 0
        data = {**vars(shape), "num_classes": len(classes), "augment_labels": told, "classes": classes}
        self.config = {**config, "data": data}
        self.kept = {part: self.config[part] for part in (*MODEL_SIDE, "sampler")}
        self.kept["trained"] = {"dataset": config["dataset"]["name"], "method": config["method"]}
        self.kept["guidance"] = self.preview_settings.guidance
        checkpoint.check_plain(self.kept, "this run")  # else its own checkpoints could not be read
        self._build_network()
        self._build_optimizer()
        self._rehearse()
        self.sampling = Sampling.from_config(
            make_denoiser(self.config, self.averaged),
            config["sampler"],
            guidance=Guidance(scale=self.preview_settings.guidance),
            seed=self.preview_settings.seed,
            device=self.device,
        )
        self.step = self.images = self.loss_count = 0
        self.seconds = self.seconds_before = 0.0
        self.loss_sum = torch.zeros((), device=self.device)
        self._open_run(default_run_dir, config_yaml)

    def _split_batch(self) -> int:
        world, batch = self.accelerator.num_processes, self.settings.batch_size
        require(batch % world == 0, f"train.batch_size={batch} must be a multiple of the {world} processes")
        return batch // world

    def _build_network(self) -> None:
        torch.manual_seed(mix(self.settings.seed, "init"))
        self.network: nn.Module = make_model(self.config).to(self.device)
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        ema: EmaSettings = section(self.config, "ema")
        self.ema = EMA(self.network, self.averaged, halflife=ema.halflife, ramp=ema.ramp)
        compiles = self.settings.compile is True or (self.settings.compile == "auto" and self.device.type == "cuda")
        self.model = self.accelerator.prepare_model(torch.compile(self.network) if compiles else self.network)
        self.denoiser = make_denoiser(self.config, self.model)
        told = "augment" in inspect.signature(self.network.forward).parameters
        require(told or not self.settings.augment, "train.augment needs a model whose forward takes `augment`")
        self.weighting = make_weighting(self.config)
        self.trained = nn.ModuleDict({"model": self.network})  # all that has parameters: what is optimized and saved
        if isinstance(self.weighting, nn.Module):
            self.trained["weighting"] = self.weighting.to(self.device)
            self.weighting = self.accelerator.prepare_model(self.weighting)

    def _build_optimizer(self) -> None:
        optimizer = build(OPTIMIZERS, self.config["optimizer"], self.trained.parameters())
        self.base_lr: float = optimizer.param_groups[0]["lr"]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def _rehearse(self) -> None:
        """Call what checks its numbers when it runs, so that a bad one is told before anything is written."""
        t = self.time(torch.full((1,), 0.5, device=self.device), self.denoiser.schedule)
        alpha, sigma, _, _ = self.denoiser.coefficients(t)
        self.weighting(alpha, sigma, self.denoiser.c_out(t))

    # --- the run directory ----------------------------------------------------------------------------------------

    def _open_run(self, default_run_dir: str, config_yaml: str) -> None:
        """Decide where to write and where to go on from, on the main process; then load."""
        wanted = (self.config["run_dir"], self.settings.resume, default_run_dir)
        self.run_dir, self.resumed_from = on_main(self.accelerator, lambda: choose_run(*wanted))
        self.changes: list[str] = []
        if self.resumed_from:
            self._load(self.resumed_from)
        self.log = RunLog(self.run_dir)
        on_main(self.accelerator, lambda: self.log.start(config_yaml, self.images))

    def _load(self, folder: Path) -> None:
        saved = checkpoint.load(folder)
        counters, tensors = checkpoint.load_state(folder)
        self.changes = training_state.compare(self.config, counters["config"], folder)
        checkpoint.check_fit(self.averaged, saved.weights, folder)
        self.averaged.load_state_dict(saved.weights)
        try:
            training_state.apply(tensors, self.trained, self.optimizer.optimizer, self.device, folder)
            if counters["scaler"] and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(counters["scaler"])
            self.loss_sum = tensors["loss_sum"].to(self.device)
            self.step, self.images, self.loss_count = (counters[key] for key in ("step", "images", "loss_count"))
            self.seconds = self.seconds_before = counters["seconds"]
        except KeyError as error:
            raise CheckpointError(f"{folder} is not a whole training state: it lacks {error}") from None

    def _save(self) -> None:
        """Write a checkpoint (main process), then rotate old ones."""
        self.loss_sum = self.accelerator.reduce(self.loss_sum, "mean")  # what is saved must be right on every process
        self._check_finite(float(self.loss_sum))
        if not all(weight.isfinite().all() for weight in self.averaged.state_dict().values()):
            self._check_finite(math.nan)  # of the last step only the gradient was not finite
        on_main(self.accelerator, self._write_checkpoint)

    def _write_checkpoint(self) -> None:
        tensors = training_state.gather(self.trained, self.optimizer.optimizer)
        tensors["loss_sum"] = self.loss_sum
        counters = {
            "step": self.step,
            "images": self.images,
            "seconds": self.seconds,
            "loss_count": self.loss_count,
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "config": self.config,
        }
        folder = self.run_dir / "checkpoints" / f"{self.images:08d}"
        checkpoint.save(folder, self.kept, self.images, self.averaged.state_dict(), tensors, counters)
        checkpoint.rotate(folder.parent, self.settings.keep_checkpoints)

    # --- the loop -------------------------------------------------------------------------------------------------

    def fit(self, caught: list[int]) -> None:
        """Train to the end of the budget.

        Args:
            caught: Signals received so far; one ends the run after its step, with a checkpoint.

        Raises:
            Stopped: A signal came.
            NonFiniteError: The loss is not finite.
        """
        self._header()
        if self._progress() >= 1:
            self.reporter.say(f"nothing to do: {self.images:,} images are done")
            return self._farewell()
        self.model.train()
        self.started = self.logged_at = time.monotonic()
        self.logged_images = self.images
        stop = 0
        with self.reporter.progress(1.0, self._progress()) as self.line:
            for pixels, labels in self.dataset.batches(self._entries(), self.device):
                norm, lr = self._step(pixels, labels)
                stop = self._agree(caught)
                done = stop or self._progress() >= 1
                self.line.advance(min(self._progress(), 1))
                if done or self._crossed(self.settings.log_every):
                    self._log(norm, lr)
                if done or self._crossed(self.settings.checkpoint_every):
                    self._save()
                if not stop and (done or self._crossed(self.settings.preview_every)):
                    on_main(self.accelerator, self._preview)
                if done:
                    break
        if stop:
            raise Stopped(stop, self.images, self.run_dir)
        self._farewell()

    def _entries(self) -> Iterator[Tensor]:
        """Entries of this process's share of each global batch, from the present image on."""
        rank, position, batch = self.accelerator.process_index, self.images, self.settings.batch_size
        while True:
            entries = data_order(self.settings.seed, len(self.dataset), position, batch)
            yield entries[rank * self.local_batch : (rank + 1) * self.local_batch]
            position += batch

    def _step(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """One optimizer step on this process's share of the batch; returns the gradient norm and learning rate."""
        batch = self._draw(to_float(pixels), labels)
        starts = range(0, self.local_batch, self.micro_batch)
        for number, start in enumerate(starts):
            micro = slices(batch, start, start + self.micro_batch)
            torch.manual_seed(mix(self.settings.seed, "dropout", self.step, self.accelerator.process_index, number))
            last = number == len(starts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss = denoising_loss(self.denoiser, self.weighting, *micro).sum() / self.local_batch
                self.accelerator.backward(loss)
            self.loss_sum += loss.detach()
        lr = self.base_lr * self.lr_schedule.factor(self.images, self._progress())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = self.accelerator.clip_grad_norm_(self.trained.parameters(), self.settings.grad_clip or math.inf)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step, self.loss_count = self.step + 1, self.loss_count + 1
        self.images += self.settings.batch_size
        self.ema.update(self.images, self.settings.batch_size)
        return norm, lr

    def _draw(self, x0: Tensor, label: Tensor) -> Batch:
        """The arguments of the loss for this process's images: x0, label, t, z and augmentation labels.

        Step k's random numbers are drawn for the global batch; each process takes its slice.
        """
        n, settings, schedule = self.settings.batch_size, self.settings, self.denoiser.schedule
        first = self.accelerator.process_index * self.local_batch
        mine = slice(first, first + self.local_batch)
        rng = generator(self.device, settings.seed, "step", self.step)
        u = uniforms(n, rng, stratified=settings.stratified_times)[mine]
        flip, drop = torch.rand(2, n, generator=rng, device=self.device)[:, mine]
        z = torch.randn(n, *x0.shape[1:], generator=rng, device=self.device)[mine]
        told = None
        if settings.horizontal_flip:
            x0 = torch.where((flip < 0.5)[:, None, None, None], x0.flip(-1), x0)
        if settings.augment:
            gates, values = augment.draw(n, rng)
            x0, told = augment.augment(x0, augment.Draws(gates[mine], values[mine]), settings.augment)
        label = torch.where(drop < settings.label_dropout, NO_LABEL, label)
        t = self.time(u, schedule).clamp(schedule.t_min, schedule.t_max)
        return x0, label, schedule.snap(t), z, told

    def _progress(self) -> float:
        """Share of the run that is done, by images or by minutes, whichever is further."""
        by_images = self.images / (self.settings.images or math.inf)
        return max(by_images, self.seconds / (60 * (self.settings.minutes or math.inf)))

    def _agree(self, caught: list[int]) -> int:
        """Take the main process's clock, and a signal that any process received; returns the signal or 0.

        Where agreeing costs a synchronisation with a GPU, it is done every log interval only.
        """
        seconds = self.seconds_before + time.monotonic() - self.started
        signum = caught[0] if caught else 0
        if self.accelerator.num_processes == 1:
            self.seconds = seconds
            return signum
        if self.device.type != "cpu" and not self._crossed(self.settings.log_every):
            return 0
        mine = torch.tensor([seconds if self.main else 0.0, signum], dtype=torch.float64, device=self.device)
        gathered = self.accelerator.gather(mine[None])
        self.seconds = float(gathered[:, 0].max())
        return int(gathered[:, 1].max())

    def _crossed(self, every: int) -> bool:
        return self.images // every > (self.images - self.settings.batch_size) // every

    # --- what is told ---------------------------------------------------------------------------------------------

    def _log(self, norm: Tensor, lr: float) -> None:
        loss = float(self.accelerator.reduce(self.loss_sum.clone(), "mean")) / max(self.loss_count, 1)
        self._check_finite(loss)
        self.loss_sum.zero_()
        self.loss_count = 0
        now = time.monotonic()
        pace = (self.images - self.logged_images) / max(now - self.logged_at, 1e-9)
        self.logged_at, self.logged_images = now, self.images
        row = {
            "images": self.images,
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(norm),
            "images_per_second": round(pace, 2),
            "seconds": round(self.seconds, 3),
        }
        on_main(self.accelerator, lambda: self.log.append(row))
        epochs = f"epoch {self.images / len(self.dataset):g}  " if self.settings.print_log else ""
        figures = f"{epochs}{count(self.images)} img  loss {loss:.4f}  {count(pace)} img/s  "
        figures += header.memory(self.device)
        self.line.update(min(self._progress(), 1), figures, keep=self.settings.print_log)

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise NonFiniteError(
                f"the loss is {loss} at {self.images:,} images: lower optimizer.lr, set train.grad_clip=1 "
                f"or train.precision=no; a checkpoint in {self.run_dir}, if there is one, is from before"
            )

    def _preview(self) -> None:
        """Write the grid of the fixed seeds, or the data set's own report, and the loss curve."""
        shape, n = self.dataset.shape, self.preview_settings.n
        size = (shape.channels, shape.height, shape.width)
        num_classes = self.config["data"]["num_classes"]
        labels = cycle_labels(n, num_classes)
        path = self.run_dir / "samples" / f"{self.images:08d}.png"
        if isinstance(self.dataset, Vectors):
            self.reporter.say(self.dataset.report(self.sampling, labels, path))
        else:
            pixels = torch.cat(list(self.sampling.pixels(size, list(range(n)), labels, PREVIEW_BATCH)))
            save_png(grid(pixels, columns=columns(n, num_classes)), path)
        self.log.plot()

    def _header(self) -> None:
        batch, world, images = self.settings.batch_size, self.accelerator.num_processes, len(self.dataset)
        resumed = f"resumed at {self.images:,} images from {self.resumed_from}"
        rows = {
            "data": header.data(self.config, images),
            "model": header.model(self.config, self.network),
            "method": header.method(self.config),
            "device": f"{self.device.type} x {world}, precision {self.accelerator.mixed_precision}",
            "batch": f"{batch} = {world} x {self.local_batch}" if world > 1 else f"{batch}",
            "optimizer": f"{self.config['optimizer']['name']}, lr {self.base_lr:g}, {self.lr_schedule.decay}",
            "duration": header.duration(self.settings, images),
            "run": f"{self.run_dir}",
            "state": resumed if self.resumed_from else "new run",
        }
        if self.changes:
            rows["changed"] = ", ".join(self.changes)
        self.reporter.header(f"diffgen-train: {self.config['dataset']['name']}, {self.config['method']}", rows)

    def _farewell(self) -> None:
        self.reporter.say(f"samples: {self.run_dir}/samples   curve: {self.run_dir}/loss.png")
        self.reporter.say(f"next:    diffgen-sample ckpt={self.run_dir}")


def slices(batch: Batch, start: int, stop: int) -> Batch:
    """Images start .. stop - 1 of the arguments of the loss."""
    x0, label, t, z, told = (None if part is None else part[start:stop] for part in batch)
    assert x0 is not None and label is not None and t is not None and z is not None
    return x0, label, t, z, told
