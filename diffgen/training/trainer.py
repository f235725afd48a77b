"""The training loop, on one process or many.

Accelerate does devices, precision and gradient exchange. What must be exact is here: which images, noise and times
step k sees (a function of the seed and k, for the global batch), what is saved, and when. Durations and intervals are
in images seen, so one GPU and eight run the same recipe.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffgen.core import memory, speed
from diffgen.core.console import count
from diffgen.core.errors import DataError, DiffgenError, EnvironmentFault, NonFiniteError, UsageError
from diffgen.core.launcher import PRECISIONS
from diffgen.core.lock import RunLock
from diffgen.core.processes import accelerated, faults_told, on_main
from diffgen.core.settings import TrainSettings, section
from diffgen.core.signals import Interrupted, Stopped, StopRequest, stop_requests
from diffgen.data.base import Stored
from diffgen.sampling.labels import columns, cycle_labels
from diffgen.storage.checkpoint import find_newest
from diffgen.storage.run_directory import RunLog, begin_from, choose_run
from diffgen.training import header, saving
from diffgen.training.begin import begin
from diffgen.training.clipping import clipped_step, finite
from diffgen.training.loggers import Logger
from diffgen.training.parts import Parts
from diffgen.training.progress import Progress
from diffgen.training.writer import Writer

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
    with stop_requests(settings.preemption_signal) as request:
        train_until(request, config, config_yaml, default_run_dir)


def train_until(
    request: StopRequest,
    config: dict[str, Any],
    config_yaml: str,
    default_run_dir: str,
    told: Mapping[str, Logger] | None = None,
) -> Path:
    """The same for whoever listens for signals, or has none: the run ends early when `request` is made.

    Args:
        request: Looked at after every step.
        config: See `train`.
        config_yaml: See `train`.
        default_run_dir: See `train`.
        told: Who hears of the run, by name, beside the loggers that the config names.

    Returns:
        The run's directory.

    Raises:
        DiffgenError: See `train`.
    """
    settings: TrainSettings = section(config, "train")
    torch.set_num_threads(settings.threads or DEFAULT_THREADS)
    with accelerated(settings.precision, PRECISIONS) as accelerator, RunLock() as lock:
        parts = Parts(config, settings, accelerator, request)
        if parts.main:
            parts.loggers.running.update(told or {})
        trainer = Trainer(parts)
        trainer.open_run(config_yaml, default_run_dir, lock)
        with parts.loggers.opened(trainer.run_dir, parts.config, trainer.at.images):
            trainer.run(request)
    return trainer.run_dir


class Trainer:
    """One run: where it stands, its directory, and the loop around its parts."""

    def __init__(self, parts: Parts) -> None:
        """Nothing is written yet."""
        self.parts, self.settings, self.accelerator = parts, parts.settings, parts.accelerator
        self.device, self.main, self.reporter = parts.device, parts.main, parts.reporter
        self.at = Progress(parts.settings, parts.device)
        self.examiner: Examiner | None = None
        trained = parts.sampling.trained
        inputs = trained.objective.inputs(trained.shape.seen, trained.noise_size, parts.device)
        self.forward = speed.gflop(parts.averaged, *inputs)
        self.gflop = 3 * self.forward + parts.more_gflop  # the backward pass costs two forward ones
        self.peak = speed.peak_tflops(parts.device, self.accelerator.mixed_precision)

    # --- the run directory ----------------------------------------------------------------------------------------

    def open_run(self, config_yaml: str, default_run_dir: str, lock: RunLock) -> None:
        """Decide where to write and where to go on from, on the main process; then load."""
        run_dir, init = self.parts.config["run_dir"], self.settings.init
        anew = on_main(self.accelerator, lambda: run_dir is None or find_newest(Path(run_dir)) is None)
        self.begun = begin(init, self.parts) if init and anew else ""  # refused before a folder is made
        wanted = (run_dir, self.settings.resume, default_run_dir, lock)
        place = on_main(self.accelerator, lambda: choose_run(*wanted))
        self.run_dir, self.resumed_from = place.run_dir, place.resumed_from
        for note in place.notes:
            self.reporter.warn(note)
        self.changes = saving.load(self.resumed_from, self.parts, self.at) if self.resumed_from else []
        self.at.first_images = self.at.images
        self.log = RunLog(self.run_dir)
        self.writer = Writer(self.run_dir / "checkpoints", self.settings.keep_checkpoints, self.reporter.warn)
        on_main(self.accelerator, lambda: self.log.start(config_yaml, self.at.images, self.parts.splits.left_out))

    def _save(self, *, wait: bool) -> None:
        """Write a checkpoint, on the main process; in the background unless `wait`."""
        if not finite([w for ema in self.parts.emas for w in ema.averaged.state_dict().values()]):
            self._diverged("the averaged weights are not finite")
        self._tell_status("running")
        losses = self.accelerator.gather(self.at.tally.loss[None])

        def submit() -> None:
            self.writer.submit(saving.snapshot(self.parts, self.at, losses), wait=wait)

        on_main(self.accelerator, submit)

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
        self.parts.model.train()
        over = self.at.share() >= 1
        if over and self.resumed_from and self.resumed_from.resolve().parents[1] != self.run_dir.resolve():
            advice = begin_from(self.resumed_from)
            raise UsageError(
                f"{self.resumed_from} has seen {self.at.images:,} images: give more of them to go on; {advice}"
            )
        self.examiner = self._examiner()
        self.parts.sampling.before_each = request.check
        self.at.watch.start(self.at.images)
        if self.resumed_from and not self._examined(again=True):  # the evaluation in which the run was stopped
            raise Stopped(self._agree(request, always=True), self.at.images, self.run_dir)
        if over:
            other = any(change.startswith("dataset.") for change in self.changes)
            advice = f"; {begin_from(self.run_dir)}, in another run_dir" if other else ""
            self.reporter.say(f"nothing to do: {self.at.images:,} images are done{advice}")
            return self._farewell()
        if stop := self._agree(request, always=True):
            raise Stopped(stop, self.at.images, self.run_dir)
        if self.parts.compiled:
            self.reporter.say("compiling the network: the first step takes minutes, the first time on this machine")
        entries = self.parts.feed.entries(len(self.parts.dataset), self.at.images)
        folder = self.run_dir / "profile" if self.settings.profile and self.main else None
        with (
            self.reporter.progress(1.0, self.at.share()) as self.line,
            self.writer,
            speed.profiled(folder, self.reporter.say) as profiled,
        ):
            for stored in self.parts.dataset.batches(entries, self.device):
                first = self.at.images == self.at.first_images
                norm, lr = self._step(stored)
                if first:  # it compiles and loads kernels: counted, minutes of that would end the warm-up
                    self.at.watch.start(self.at.images)
                    self.line.start(self.at.share())
                alone = profiled()
                stop = self._agree(request)
                done = self._after_step(norm, lr, stop, alone=alone)
                if not stop and (done or not alone) and not self._examined():
                    stop = self._agree(request, always=True)
                    self._save(wait=True)
                if done or stop:
                    break
        if stop:
            raise Stopped(stop, self.at.images, self.run_dir)
        self._farewell()

    def _after_step(self, norm: Tensor, lr: float, stop: int, *, alone: bool) -> bool:
        """Log, save and preview when it is time; whether the run is over. A step that is profiled is left `alone`."""
        settings, done = self.settings, bool(stop) or self.at.share() >= 1
        self.line.advance(min(self.at.share(), 1))
        if (done and not stop) or self.at.crossed(settings.log_every):  # a run that goes on logs as if never stopped
            self._log(norm, lr)
        if alone and not done:
            return False
        with self.at.watch.apart(counts=True):
            if done or self.at.crossed(settings.checkpoint_every) or self.at.crossed(settings.keep_every):
                self._save(wait=done)
            if not stop and (done or self.at.crossed(settings.preview_every)):
                with self.accelerator.autocast():
                    on_main(self.accelerator, lambda: self._try(self._preview))
        return done

    def _step(self, stored: Stored) -> tuple[Tensor, float]:
        """One optimizer step on this process's share of the batch; returns the gradient norm and first learning rate.

        A gradient that is not finite, on any process, would make every weight so: its step is skipped, and counted.
        """
        batch = self.parts.feed.batch(self.at.step, stored)
        if self.at.images == self.at.first_images:
            self.parts.gradients.find_micro_batch(self.at.step, batch)
        loss = self.parts.gradients.accumulate(self.at.step, batch)
        factor = self.parts.lr_schedule.factor(self.at.images, self.at.share())
        for group, base_lr in zip(self.parts.optimizer.param_groups, self.parts.base_lrs, strict=True):
            group["lr"] = base_lr * factor
        largest = self.settings.grad_clip or math.inf
        if self.accelerator.scaler:
            norm = self.accelerator.clip_grad_norm_(self.parts.learned.parameters(), largest)
            self.parts.optimizer.step()  # the gradient's scaler skips by itself
        else:
            norm = clipped_step(self.parts.optimizer.optimizer, largest)
        self.parts.optimizer.zero_grad()
        self.at.tally.add(loss, ~norm.isfinite())
        self.at.move_on()
        for ema in self.parts.emas:
            ema.update(self.at.images, self.settings.batch_size)
        return norm, self.parts.base_lrs[0] * factor

    def _agree(self, request: StopRequest, *, always: bool = False) -> int:
        """Take the main process's clock, and a signal that any process received; returns the signal or 0.

        Where agreeing costs a synchronisation with a GPU, it is done every log interval only, unless `always`.
        """
        seconds = self.at.watch.read()
        if self.accelerator.num_processes == 1:
            self.at.watch.seconds = seconds
            return request.signum
        if self.device.type != "cpu" and not always and not self.at.crossed(self.settings.log_every):
            return 0
        mine = torch.tensor([seconds if self.main else 0.0, request.signum], dtype=torch.float64, device=self.device)
        gathered = self.accelerator.gather(mine[None])
        self.at.watch.seconds = float(gathered[:, 0].max())
        return int(gathered[:, 1].max())

    # --- what is told ---------------------------------------------------------------------------------------------

    def _log(self, norm: Tensor, lr: float) -> None:
        steps, skipped, longest = int(self.at.tally.steps), int(self.at.tally.skipped), int(self.at.tally.longest)
        if longest > self.settings.max_skipped:
            self._diverged(f"{longest} steps in a row had a gradient that is not finite and were skipped")
        loss = float(self.accelerator.reduce(self.at.tally.loss.clone(), "mean")) / steps if steps else None
        self.at.tally.begin_line()
        pace = self.at.watch.pace(self.at.images)
        row = {
            "images": self.at.images,
            "step": self.at.step,
            "loss": loss,
            "lr": lr,
            "grad_norm": float(norm) if norm.isfinite() else None,
            "skipped": skipped,
            "images_per_second": None if pace is None else round(pace, 2),
            "seconds": round(self.at.watch.seconds, 3),
        }
        self.parts.loggers.log(row, self.at.images)
        short = self.parts.dataset.kind.short
        epochs = f"epoch {self.at.images / self.parts.dataset.once:g}  " if self.settings.print_log else ""
        figures = [f"{epochs}{count(self.at.images)} {short}", f"loss {math.nan if loss is None else loss:.4f}"]
        if pace is not None:  # the first step has none
            tflops = pace * self.gflop / 1000 / self.accelerator.num_processes
            figures += [f"{count(pace)} {short}/s", speed.shown(tflops, self.peak)]
        figures += [memory.peak(self.device)] + ([f"{skipped} steps skipped"] if skipped else [])
        self.line.update(min(self.at.share(), 1), "  ".join(figures), keep=self.settings.print_log)

    def _diverged(self, what: str) -> None:
        raise NonFiniteError(
            f"{what}, at {self.at.images:,} images: lower optimizer.lr, set train.grad_clip=1 or train.precision=no; "
            f"a checkpoint in {self.run_dir}, if there is one, is from before"
        )

    def _try(self, write: Callable[[], None]) -> None:
        """Write something that training can do without."""
        try:
            with memory.as_fault("it is left out"):
                write()
        except (EnvironmentFault, DataError) as error:
            self.reporter.warn(f"{error}; training goes on")
        except Interrupted:
            self.reporter.warn("the preview is left out, since the run is to stop")
        else:
            return
        memory.give_back()

    def _tell_status(self, state: str, code: int | None = None, reason: str = "") -> None:
        if self.main:
            self._try(lambda: self.log.status(state, self.at.images, code, reason))

    def _preview(self) -> None:
        """Draw the images of the fixed seeds, or pictures through an autoencoder, and the loss curve."""
        suffix = "txt" if self.parts.dataset.kind.textual else "png"
        path = self.run_dir / "samples" / f"{self.at.images:08d}.{suffix}"
        n, classes = self.parts.preview.n, self.parts.sampling.trained.shape.num_classes
        plan = self.parts.pairs if self.parts.objective.codes else None
        labels = cycle_labels(n if plan is None else plan.n or n, classes)
        in_a_row = columns(n, classes) if plan is None else plan.columns
        said = self.parts.dataset.preview(replace(self.parts.sampling, plan=plan), labels, in_a_row, path)
        if said:
            self.reporter.say(said)
        (self.parts.loggers.text if suffix == "txt" else self.parts.loggers.picture)(path, self.at.images)
        self.log.plot(self.parts.dataset.kind.measure, self.parts.dataset.kind.unit)

    def _examiner(self) -> "Examiner | None":
        """What judges the run on the way, if it is wanted; its extractor may have to be trained first."""
        if self.settings.eval_every is None:
            return None
        from diffgen.evaluation.examiner import Examiner  # and all that draws, which most runs do not need

        self.reporter.say(f"preparing extractor={self.parts.config['extractor']['name']}, once for each data set")
        parts = (
            self.parts.config,
            self.settings,
            self.parts.splits,
            self.parts.sampling,
            self.accelerator,
            self.run_dir,
        )
        examiner = Examiner(*parts)
        on_main(self.accelerator, lambda: self._try(lambda: examiner.begin(self.at.images)))
        return examiner

    def _examined(self, *, again: bool = False) -> bool:
        """Judge the run if it is time, on all processes; whether it went on to the end. No clock counts this.

        Args:
            again: Only where it was to be done before, and was not.
        """
        due = self.at.share() >= 1 or self.at.crossed(self.settings.eval_every)
        if not self.examiner or not due or (again and self.examiner.looked(self.at.images)):
            return True
        try:
            with self.at.watch.apart(counts=False):
                weights = self.parts.saved(self.parts.averaged)
                said, figures = self.examiner.look(self.parts.model_config, weights, self.at.images)
                self.reporter.say(said)
                self.parts.loggers.log(figures, self.at.images)
        except EnvironmentFault as error:
            self.reporter.warn(f"{error}; training goes on")
        except Interrupted:
            return False
        else:
            return True
        memory.give_back()
        return True

    def _header(self) -> None:
        parts = self.parts
        state = f"resumed at {self.at.images:,} images from {self.resumed_from}" if self.resumed_from else "new run"
        rows = header.rows(parts, self.forward, self.gflop, self.peak) | {"run": f"{self.run_dir}", "state": state}
        rows |= {"init": self.begun} if self.begun else {}
        if self.changes:
            rows["changed"] = ", ".join(self.changes)
        self.reporter.header(f"diffgen-train: {parts.config['dataset']['name']}, {parts.config['method']}", rows)
        for note in parts.dataset.notes:
            self.reporter.warn(note)

    def _farewell(self) -> None:
        if self.writer.newest:
            size = sum(file.stat().st_size for file in self.writer.newest.iterdir())
            pause = f"training waited {self.writer.pause:.2f} s for {self.writer.count} of them"
            self.reporter.say(f"weights: {self.writer.newest} ({count(size)}B; {pause})")
        if (self.run_dir / "loss.png").exists():  # a signal in the last steps leaves the preview out
            self.reporter.say(f"samples: {self.run_dir}/samples   curve: {self.run_dir}/loss.png")
        if self.examiner:
            self.reporter.say(f"best:    {self.run_dir}/checkpoints/best   curve: {self.run_dir}/eval/training.png")
        self.reporter.say(f"next:    {header.sampling(self.parts.config, self.run_dir)}")
