"""A checkpoint to samples: what `diffgen-sample` writes to a folder, and what `diffgen.load` gives in Python."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.build import restore
from diffgen.core import processes
from diffgen.core.console import Reporter, count, unit_of
from diffgen.core.processes import accelerated, gathered, on_main, share_of
from diffgen.core.settings import SampleSettings
from diffgen.data.kinds import Kind
from diffgen.diffusion.tasks import Plan
from diffgen.sampling.drawing import Sampling, batch_size
from diffgen.sampling.labels import choose_labels, class_columns, told
from diffgen.sampling.setup import (
    check_guidance,
    check_pairs,
    guides,
    make_plan,
    make_sampling,
    possible,
    resolve_sampler,
)
from diffgen.sampling.words import shown, shown_average, shown_guidance, shown_task
from diffgen.sampling.writing import Files, Folder
from diffgen.storage import checkpoint, pairs, posthoc
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint

READ_OUT = 10
"""Lines of text that are shown on the screen."""


def generate(settings: SampleSettings, sampler: Mapping[str, Any], task: Mapping[str, Any], default_out: Path) -> None:
    """Sample a checkpoint and write what `settings.save` asks for.

    Args:
        settings: Checked settings; `ckpt` is not None.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        task: Config of the task, a row of `tasks.TASKS`.
        default_out: The folder if `settings.out` is None.

    Raises:
        DiffgenError: The checkpoint, a label, a picture or the output folder cannot be used.
    """
    with accelerated(settings.precision) as accelerator:
        order = prepare(settings, sampler, task, checkpoint.load(Path(str(settings.ckpt))), accelerator.device)
        settings, labels, sampling = order.settings, order.labels, order.sampling
        trained = sampling.trained
        out = Path(settings.out) if settings.out else default_out
        kind = trained.kind if settings.fps is None else trained.kind.played_at(settings.fps)
        folder = Folder(out, kind, settings.saves, trained.classes, films=order.plan.frames > 0)
        folder.check()
        on_main(accelerator, lambda: folder.prepare(overwrite=settings.overwrite))
        reporter = Reporter(speaks=accelerator.is_main_process)
        reporter.header(f"diffgen-sample: {order.saved.path}", _facts(order, accelerator))
        started = time.monotonic()
        files = Files(folder)
        sampling.raw = [] if folder.pairs else None
        with accelerator.autocast():
            drawn = _draw_all(order, accelerator, reporter, files)
        files.finish()
        strays = _strays(order, accelerator)
        _write_pairs(order, accelerator, folder)
        if accelerator.is_main_process:
            seconds = max(time.monotonic() - started, 1e-9)
            notes = {"diffgen": f"ckpt={order.saved.path} seed={settings.seed} {shown(task)}, {shown(order.sampler)}"}
            if order.plan.frames:
                folder.write_films(drawn, labels, notes)
            else:
                in_line = settings.n if order.plan.path else order.plan.columns
                folder.write(drawn, labels, in_line or class_columns(labels, trained.shape.num_classes), notes)
            _read_out(reporter, trained.kind, drawn, films=bool(order.plan.frames))
            _tell(reporter, settings, sampling, labels, folder, seconds, strays)


@dataclass(frozen=True)
class Order:
    """What is to be drawn, checked, and what draws it.

    Attributes:
        settings: As they were given.
        task: The same of the task.
        saved: The checkpoint, its average of the length that was asked for.
        sampler: Its config, with what the checkpoint says where nothing was given.
        labels: One for each example, -1 for none.
        sampling: On the device.
        plan: Of the task.
    """

    settings: SampleSettings
    task: Mapping[str, Any]
    saved: Checkpoint
    sampler: Mapping[str, Any]
    labels: list[int]
    sampling: Sampling
    plan: Plan

    def batches(self, mine: list[int]) -> Iterator[Tensor]:
        """Examples of these numbers as stored, in batches [B, ...] on the CPU; or films of them, [B, F, ...]."""
        sampling, at_once = self.sampling, self.settings.batch_size
        draw = sampling.films if self.plan.frames else sampling.examples
        batch = at_once if isinstance(at_once, int) else batch_size(sampling.trained.shape, sampling.device)
        return draw(mine, [self.labels[i] for i in mine], batch)


def prepare(
    settings: SampleSettings,
    sampler: Mapping[str, Any],
    task: Mapping[str, Any],
    saved: Checkpoint,
    device: torch.device,
) -> Order:
    """Check all that can be wrong before a network is called.

    Args:
        settings: Checked settings.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        task: Config of the task, a row of `tasks.TASKS`.
        saved: What to sample.
        device: Where.

    Raises:
        DiffgenError: The checkpoint, a label or a picture cannot be used, or a setting does not suit them.
    """
    saved = posthoc.of_length(supplied(saved, settings.latent), settings.sigma_rel)
    trained = restore(saved)  # from here on the config is known to be sound
    sampler = resolve_sampler(sampler, saved, trained.kind)
    sampling = make_sampling(settings, sampler, saved, trained, device)
    sampling.plan = plan = make_plan(settings, task, sampling)
    if plan.n is not None:
        settings = replace(settings, n=plan.n)
    labels = choose_labels(settings, trained.classes, trained.shape.num_classes, new=plan.new)
    check_guidance(settings, labels, trained.kind.unit, tells=sampling.tells)
    if pairs.FILE in settings.saves:
        check_pairs(task, sampling)
    return Order(settings, task, saved, sampler, labels, sampling, plan)


def _facts(order: Order, accelerator: Accelerator) -> dict[str, str]:
    """The header of the command."""
    settings, saved, sampling = order.settings, order.saved, order.sampling
    drawn, trained = told(order.labels, sampling.trained.classes), sampling.trained
    seen = f"{saved.images:,} {unit_of(saved.images, trained.kind.unit)} seen"
    size = trained.shape.size
    if trained.kind.moving and (length := order.task.get("length")):
        size = (size[0], length, *size[2:])
    return {
        trained.kind.unit: f"{settings.n} of {trained.kind.sized(size)}, seed {settings.seed}"
        + (f", {drawn}" if drawn else ""),
        "model": f"{saved.config['model']['name']}, {seen}{shown_average(saved)}",
        "task": shown_task(_resolved(order.task, trained.kind)),
        "sampler": shown(order.sampler),
        "guidance": _guidance(order),
        "device": processes.told(accelerator),
    }


def _resolved(task: Mapping[str, Any], kind: Kind) -> Mapping[str, Any]:
    """A task's settings, with which frames of a film it takes."""
    video = task.get("video")
    return {**task, "stride": kind.pace(str(video), task.get("stride"))} if video is not None else task


def _guidance(order: Order) -> str:
    """What is guided, and how; a scale is of no use where there is nothing to guide by."""
    sampling = order.sampling
    if sampling.guidance.scale != 1 and not guides(sampling, order.labels):
        return "off: no label to guide by"
    now = sampling.tells_in(order.plan)
    first, later = (sampling.guidance.where(told=told) for told in (now, sampling.tells))
    if not possible(sampling.guidance.guide, order.labels, tells=now):
        first = replace(first, scale=1)
    more = f"; {later.scale:g} in later windows" if later.scale != first.scale else ""
    return shown_guidance(first, order.settings.guide) + more


def _read_out(reporter: Reporter, kind: Kind, drawn: Tensor, *, films: bool) -> None:
    """The first lines of text, or the way of the first one."""
    if kind.textual:
        for line in kind.lines(drawn[0] if films else drawn[:READ_OUT]):
            reporter.say(line)


def _tell(
    reporter: Reporter,
    settings: SampleSettings,
    sampling: Sampling,
    labels: list[int],
    folder: Folder,
    seconds: float,
    strays: float | None,
) -> None:
    out, unit = folder.path, sampling.trained.kind.unit
    pace = count(settings.n / seconds)
    twice = ", some or all with a second one for guidance" if guides(sampling, labels) else ""
    short = sampling.trained.kind.short
    reporter.say(
        f"{settings.n} {unit_of(settings.n, unit)} in {seconds:.1f} s ({pace} {short}/s), NFE {sampling.nfe}{twice}"
    )
    if strays is not None:
        reporter.say(f"codes that are no token's, and became the nearest: {strays:.2%}")
    more = f"   more: {', '.join(settings.saves)} in {out}" if set(settings.saves) - {"grid"} else ""
    drawn = told(labels, sampling.trained.classes)
    what = "text" if folder.kind.textual else "grid"
    film = f"   film: {out / 'samples.gif'}" if folder.kind.moving else ""
    reporter.say(f"{what}: {out / folder.first}{f' ({drawn})' if drawn else ''}{film}{more}")


def _draw_all(order: Order, accelerator: Accelerator, reporter: Reporter, files: Files) -> Tensor:
    """All examples as stored, [n, ...], or films [n, F, ...], on the main process (elsewhere the same or a part)."""
    n, world, short = order.settings.n, accelerator.num_processes, order.sampling.trained.kind.short
    mine = share_of(n, accelerator)
    parts: list[Tensor] = []
    started, done = time.monotonic(), 0
    with reporter.progress(len(mine), 0) as line:
        for part in order.batches(mine):
            whole = part[:, -1] if order.plan.frames else part
            files.add(dict(zip(mine[done:], whole, strict=False)))
            parts.append(part)
            done += len(part)
            pace = count(done * world / (time.monotonic() - started))
            line.update(done, f"{min(done * world, n)} {short}  {pace} {short}/s")
    return gathered(torch.cat(parts), n, accelerator)


def _write_pairs(order: Order, accelerator: Accelerator, folder: Folder) -> None:
    """x0 of all examples as the sampler gave them, each with its noise, if that is wanted; on the main process."""
    sampling, trained, n = order.sampling, order.sampling.trained, order.settings.n
    if sampling.raw is None:
        return
    x0 = gathered(torch.cat(sampling.raw), n, accelerator)
    if accelerator.is_main_process:
        z = sampling.noise(list(range(n)), order.settings.seed)
        made = {
            "schedule": order.saved.config["schedule"],
            "sampler": shown(order.sampler),
            "seed": order.settings.seed,
        }
        pairs.write(folder.path, x0, z, order.labels, trained.classes, trained.kind, made)


def _strays(order: Order, accelerator: Accelerator) -> float | None:
    """Share of the parts of all examples that stood for nothing; None where none can."""
    strays = torch.cat(order.sampling.strays)
    return float(gathered(strays, order.settings.n, accelerator).double().mean()) if strays.numel() else None
