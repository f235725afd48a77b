"""The training loop, on one process or many.

Accelerate does devices, precision and gradient exchange. What must be exact is here: which images, noise and times
step k sees (a function of the seed and k, for the global batch), what is saved, and when. Durations and intervals are
in images seen, so one GPU and eight run the same recipe.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core import memory, speed
from diffgen.core.console import count
from diffgen.core.errors import CheckpointError, DiffgenError, EnvironmentFault, NonFiniteError, UsageError
from diffgen.core.lock import RunLock
from diffgen.core.processes import accelerated, faults_told, on_main
from diffgen.core.settings import TrainSettings, section
from diffgen.core.signals import Interrupted, Stopped, StopRequest, stop_requests
from diffgen.storage import checkpoint
from diffgen.storage.run_directory import RunLog, choose_run
from diffgen.training import header, preview
from diffgen.training import state as training_state
from diffgen.training.clipping import clipped_step, finite
from diffgen.training.parts import Assembly
from diffgen.training.stopwatch import Stopwatch
from diffgen.training.tally import Tally
from diffgen.training.writer import Snapshot, Writer

if TYPE_CHECKING:
    from diffgen.evaluation.examiner import Examiner

DEFAULT_THREADS = torch.get_num_threads()  # a job of a sweep may have changed it for itself


def train(config: dict[str, Any], config_yaml: str, default_run_dir: str) -> None:
    """Train as a resolved config says.

    Args:
        config: Plain data, as `configs/train.yaml` composes it.
        config_yaml: The same as text, to be kept in the run directory.
        default_run_dir: Where to write if `config["run_dir"]` is null and nothing is resumed.

    Raises:
        DiffgenError: Something a user can mend; see `diffgen.core.errors`.
    """
    settings: TrainSettings = section(config, "train")
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    with (
        stop_requests(settings.preemption_signal) as request,
        accelerated(settings.precision) as accelerator,
        RunLock() as lock,
    ):
        trainer = Trainer(config, settings, accelerator)
        trainer.open_run(config_yaml, default_run_dir, lock)
        trainer.run(request)


class Trainer(Assembly):
    """One run: its counters, its directory, and the loop."""

    def __init__(self, config: dict[str, Any], settings: TrainSettings, accelerator: Accelerator) -> None:
        """Build every part; nothing is written before all of them fit together."""
        super().__init__(config, settings, accelerator)
        self.step = self.images = 0
        self.watch = Stopwatch()
        self.tally = Tally.zeros(self.device)
        self.examiner: Examiner | None = None
        # the backward pass costs two forward ones
        self.gflop = 3 * header.gflop(self.averaged, self.dataset.shape, self.device)
        self.peak = speed.peak_tflops(self.device, accelerator.mixed_precision)

    # --- the run directory ----------------------------------------------------------------------------------------

    def open_run(self, config_yaml: str, default_run_dir: str, lock: RunLock) -> None:
        """Decide where to write and where to go on from, on the main process; then load."""
        wanted = (self.config["run_dir"], self.settings.resume, default_run_dir, lock)
        place = on_main(self.accelerator, lambda: choose_run(*wanted))
        self.run_dir, self.resumed_from = place.run_dir, place.resumed_from
        for note in place.notes:
            self.reporter.warn(note)
        self.changes: list[str] = []
        if self.resumed_from:
            self._load(self.resumed_from)
        self.first_images = self.images
        self.log = RunLog(self.run_dir)
        self.writer = Writer(self.run_dir / "checkpoints", self.settings.keep_checkpoints, self.reporter.warn)
        on_main(self.accelerator, lambda: self.log.start(config_yaml, self.images))

    def _load(self, folder: Path) -> None:
        saved = checkpoint.load(folder)
        counters, tensors = checkpoint.load_state(folder)
        self.changes = training_state.compare(self.config, counters["config"], folder)
        others = [checkpoint.load(folder / f"model-{ema.profile}.safetensors") for ema in self.emas[1:]]
        for ema, average in zip(self.emas, [saved, *others], strict=True):
            checkpoint.check_fit(ema.averaged, average.weights, folder)
            ema.averaged.load_state_dict(average.weights)
        try:
            training_state.apply(tensors, self.trained, self.optimizer.optimizer, folder)
            if counters["scaler"] and self.accelerator.scaler:
                self.accelerator.scaler.load_state_dict(counters["scaler"])
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            self.tally = Tally.from_tensors(tensors, rank, world, self.device)
            self.step, self.images = counters["step"], counters["images"]
            self.watch.go_on(counters["seconds"])
            if counters["data_images"] != len(self.dataset):
                self.changes.append(f"images in the data set: {counters['data_images']} -> {len(self.dataset)}")
            if self.settings.micro_batch == "auto":
                self.gradients.micro_batch = min(self.local_batch, counters["micro_batch"])
        except KeyError as error:
            raise CheckpointError(f"{folder} is not a whole training state: it lacks {error}") from None

    def _save(self, *, wait: bool) -> None:
        """Write a checkpoint, on the main process; in the background unless `wait`."""
        if not finite([w for ema in self.emas for w in ema.averaged.state_dict().values()]):
            self._diverged("the averaged weights are not finite")
        self._tell_status("running")
        losses = self.accelerator.gather(self.tally.loss[None])
        on_main(self.accelerator, lambda: self.writer.submit(self._snapshot(losses), wait=wait))

    def _snapshot(self, losses: Tensor) -> Snapshot:
        counters = {
            "step": self.step,
            "images": self.images,
            "seconds": self.watch.seconds,
            "micro_batch": self.gradients.micro_batch,
            "data_images": len(self.dataset),
            "stays": bool(self.settings.keep_every and self._crossed(self.settings.keep_every)),
            "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler else None,
            "config": self.config,
        }
        tensors = training_state.gather(self.trained, self.optimizer.optimizer) | self.tally.tensors(losses)
        others = {
            str(ema.profile): ({**self.kept, "ema": ema.profile.facts()}, ema.averaged.state_dict())
            for ema in self.emas[1:]
        }
        return Snapshot(self.images, self.kept, self.averaged.state_dict(), tensors, counters, others)

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self, request: StopRequest) -> None:
        """Train to the end, and leave word in the run directory of what became of it.

        Raises:
            Stopped: A signal came.
            NonFiniteError: Too many steps in a row had a gradient that is not finite.
            EnvironmentFault: The last checkpoint cannot be written, or memory or another process is gone.
        """
        late = "a signal came, and the run has not ended since: it still writes, or another process is gone"
        try:
            self._tell_status("running")
            with faults_told(self.accelerator), request.told_late(lambda: self._tell_status("stopping", reason=late)):
                self._fit(request)
        except DiffgenError as error:
            stopped = isinstance(error, Stopped)
            self._tell_status("stopped" if stopped else "failed", error.exit_code, str(error))
            raise
        except BaseException as error:
            self._tell_status("failed", 1, f"{type(error).__name__}: {error}")
            raise
        self._tell_status("done", 0)

    def _fit(self, request: StopRequest) -> None:
        self._header()
        self.model.train()
        over = self._progress() >= 1
        if over and self.resumed_from and self.resumed_from.resolve().parents[1] != self.run_dir.resolve():
            raise UsageError(f"{self.resumed_from} has seen {self.images:,} images: give more of them to go on")
        self.examiner = self._examiner()
        self.sampling.before_each = request.check
        self.watch.start(self.images)
        if self.resumed_from and not self._examined(again=True):  # the evaluation in which the run was stopped
            raise Stopped(self._agree(request, always=True), self.images, self.run_dir)
        if over:
            self.reporter.say(f"nothing to do: {self.images:,} images are done")
            return self._farewell()
        if stop := self._agree(request, always=True):
            raise Stopped(stop, self.images, self.run_dir)
        if self.compiled:
            self.reporter.say("compiling the network: the first step takes minutes, the first time on this machine")
        entries = self.feed.entries(len(self.dataset), self.images)
        folder = self.run_dir / "profile" if self.settings.profile and self.main else None
        with (
            self.reporter.progress(1.0, self._progress()) as self.line,
            self.writer,
            speed.profiled(folder, self.reporter.say) as profiled,
        ):
            for pixels, labels in self.dataset.batches(entries, self.device):
                first = self.images == self.first_images
                norm, lr = self._step(pixels, labels)
                if first:  # it compiles, rehearses and loads kernels; counted, minutes of that would end the warm-up
                    self.watch.start(self.images)
                    self.line.start(self._progress())
                alone = profiled()
                stop = self._agree(request)
                done = self._after_step(norm, lr, stop, alone=alone)
                if not stop and (done or not alone) and not self._examined():
                    stop = self._agree(request, always=True)
                    self._save(wait=True)
                if done or stop:
                    break
        if stop:
            raise Stopped(stop, self.images, self.run_dir)
        self._farewell()

    def _after_step(self, norm: Tensor, lr: float, stop: int, *, alone: bool) -> bool:
        """Log, save and preview when it is time; whether the run is over. A step that is profiled is left `alone`."""
        settings, done = self.settings, bool(stop) or self._progress() >= 1
        self.line.advance(min(self._progress(), 1))
        if (done and not stop) or self._crossed(settings.log_every):  # a run that goes on logs as if never stopped
            self._log(norm, lr)
        if alone and not done:
            return False
        with self.watch.apart(counts=True):
            if done or self._crossed(settings.checkpoint_every) or self._crossed(settings.keep_every):
                self._save(wait=done)
            if not stop and (done or self._crossed(settings.preview_every)):
                with self.accelerator.autocast():
                    on_main(self.accelerator, lambda: self._try(self._preview))
        return done

    def _step(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        """One optimizer step on this process's share of the batch; returns the gradient norm and first learning rate.

        A gradient that is not finite, on any process, would make every weight so: its step is skipped, and counted.
        """
        batch = self.feed.batch(self.step, pixels, labels)
        if self.images == self.first_images:
            self.gradients.rehearse(self.step, batch)
        loss = self.gradients.accumulate(self.step, batch)
        factor = self.lr_schedule.factor(self.images, self._progress())
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * factor
        largest = self.settings.grad_clip or math.inf
        if self.accelerator.scaler:
            norm = self.accelerator.clip_grad_norm_(self.trained.parameters(), largest)
            self.optimizer.step()  # the gradient's scaler skips by itself
        else:
            norm = clipped_step(self.optimizer.optimizer, largest)
        self.optimizer.zero_grad()
        self.tally.add(loss, ~norm.isfinite())
        self.step += 1
        self.images += self.settings.batch_size
        for ema in self.emas:
            ema.update(self.images, self.settings.batch_size)
        return norm, self.base_lrs[0] * factor

    def _progress(self) -> float:
        """Share of the run that is done, by images or by minutes, whichever is further."""
        by_images = self.images / (self.settings.images or math.inf)
        return max(by_images, self.watch.seconds / (60 * (self.settings.minutes or math.inf)))

    def _agree(self, request: StopRequest, *, always: bool = False) -> int:
        """Take the main process's clock, and a signal that any process received; returns the signal or 0.

        Where agreeing costs a synchronisation with a GPU, it is done every log interval only, unless `always`.
        """
        seconds = self.watch.read()
        if self.accelerator.num_processes == 1:
            self.watch.seconds = seconds
            return request.signum
        if self.device.type != "cpu" and not always and not self._crossed(self.settings.log_every):
            return 0
        mine = torch.tensor([seconds if self.main else 0.0, request.signum], dtype=torch.float64, device=self.device)
        gathered = self.accelerator.gather(mine[None])
        self.watch.seconds = float(gathered[:, 0].max())
        return int(gathered[:, 1].max())

    def _crossed(self, every: int | None) -> bool:
        return every is not None and self.images // every > (self.images - self.settings.batch_size) // every

    # --- what is told ---------------------------------------------------------------------------------------------

    def _log(self, norm: Tensor, lr: float) -> None:
        steps, skipped = int(self.tally.steps), int(self.tally.skipped)
        if self.tally.longest > self.settings.max_skipped:
            steps_in_row = int(self.tally.longest)
            self._diverged(f"{steps_in_row} steps in a row had a gradient that is not finite and were skipped")
        loss = float(self.accelerator.reduce(self.tally.loss.clone(), "mean")) / steps if steps else None
        self.tally.begin_line()
        pace = self.watch.pace(self.images)
        row = {
            "images": self.images,
            "step": self.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(norm) if norm.isfinite() else None,
            "skipped": skipped,
            "images_per_second": None if pace is None else round(pace, 2),
            "seconds": round(self.watch.seconds, 3),
        }
        if self.main:
            self._try(lambda: self.log.append(row))
        epochs = f"epoch {self.images / len(self.dataset):g}  " if self.settings.print_log else ""
        figures = [f"{epochs}{count(self.images)} img", f"loss {math.nan if loss is None else loss:.4f}"]
        if pace is not None:  # the first step has none
            tflops = pace * self.gflop / 1000 / self.accelerator.num_processes
            figures += [f"{count(pace)} img/s", speed.shown(tflops, self.peak)]
        figures += [memory.peak(self.device)] + ([f"{skipped} steps skipped"] if skipped else [])
        self.line.update(min(self._progress(), 1), "  ".join(figures), keep=self.settings.print_log)

    def _diverged(self, what: str) -> None:
        raise NonFiniteError(
            f"{what}, at {self.images:,} images: lower optimizer.lr, set train.grad_clip=1 or train.precision=no; "
            f"a checkpoint in {self.run_dir}, if there is one, is from before"
        )

    def _try(self, write: Callable[[], None]) -> None:
        """Write something that training can do without."""
        try:
            with memory.told("it is left out"):
                write()
        except EnvironmentFault as error:
            self.reporter.warn(f"{error}; training goes on")
        except Interrupted:
            self.reporter.warn("the preview is left out, since the run is to stop")
        else:
            return
        memory.give_back()

    def _tell_status(self, state: str, code: int | None = None, reason: str = "") -> None:
        if self.main:
            self._try(lambda: self.log.status(state, self.images, code, reason))

    def _preview(self) -> None:
        """Draw the images of the fixed seeds, and the loss curve."""
        path = self.run_dir / "samples" / f"{self.images:08d}.png"
        said = preview.draw(
            self.sampling, self.dataset, self.preview_settings.n, self.config["data"]["num_classes"], path
        )
        if said:
            self.reporter.say(said)
        self.log.plot()

    def _examiner(self) -> "Examiner | None":
        """What judges the run on the way, if it is wanted; its extractor may have to be trained first."""
        if self.settings.eval_every is None:
            return None
        from diffgen.evaluation.examiner import Examiner  # and all that draws, which most runs do not need

        self.reporter.say(f"preparing extractor={self.config['extractor']['name']}, once for each data set")
        parts = (self.config, self.settings, self.dataset, self.sampling, self.accelerator, self.run_dir)
        examiner = Examiner(*parts)
        on_main(self.accelerator, lambda: self._try(lambda: examiner.begin(self.images)))
        return examiner

    def _examined(self, *, again: bool = False) -> bool:
        """Judge the run if it is time, on all processes; whether it went on to the end. No clock counts this.

        Args:
            again: Only where it was to be done before, and was not.
        """
        due = self._progress() >= 1 or self._crossed(self.settings.eval_every)
        if not self.examiner or not due or (again and self.examiner.looked(self.images)):
            return True
        try:
            with self.watch.apart(counts=False):
                self.reporter.say(self.examiner.look(self.kept, self.averaged.state_dict(), self.images))
        except EnvironmentFault as error:
            self.reporter.warn(f"{error}; training goes on")
        except Interrupted:
            return False
        else:
            return True
        memory.give_back()
        return True

    def _header(self) -> None:
        batch, world, images = self.settings.batch_size, self.accelerator.num_processes, len(self.dataset)
        resumed = f"resumed at {self.images:,} images from {self.resumed_from}"
        rows = {
            "data": header.data(self.config, images, self.dataset.home),
            "model": header.model(self.config, self.network, self.gflop),
            "method": header.method(self.config),
            "device": f"{self.device.type} x {world}, precision {self.accelerator.mixed_precision}",
            "batch": f"{batch} = {world} x {self.local_batch}" if world > 1 else f"{batch}",
            "optimizer": header.optimizer(self.config, self.optimizer.param_groups, self.base_lrs),
            "duration": header.duration(self.settings, images),
            "judged": header.judged(self.settings, self.config),
            "run": f"{self.run_dir}",
            "state": resumed if self.resumed_from else "new run",
        }
        if self.changes:
            rows["changed"] = ", ".join(self.changes)
        rows = {name: row for name, row in rows.items() if row}
        self.reporter.header(f"diffgen-train: {self.config['dataset']['name']}, {self.config['method']}", rows)

    def _farewell(self) -> None:
        if self.writer.newest:
            size = sum(file.stat().st_size for file in self.writer.newest.iterdir())
            pause = f"training waited {self.writer.pause:.2f} s for {self.writer.count} of them"
            self.reporter.say(f"weights: {self.writer.newest} ({count(size)}B; {pause})")
        self.reporter.say(f"samples: {self.run_dir}/samples   curve: {self.run_dir}/loss.png")
        if self.examiner:
            self.reporter.say(f"best:    {self.run_dir}/checkpoints/best   curve: {self.run_dir}/eval/training.png")
        self.reporter.say(f"next:    diffgen-sample ckpt={self.run_dir}")
