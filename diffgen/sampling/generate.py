"""`diffgen-sample`: a checkpoint to a folder of samples, shared among processes."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.build import restore
from diffgen.core import processes
from diffgen.core.console import Reporter, count
from diffgen.core.errors import require
from diffgen.core.processes import accelerated, on_main, share_of
from diffgen.core.settings import SampleSettings
from diffgen.sampling.drawing import Sampling, batch_size
from diffgen.sampling.labels import choose_labels, class_columns, told
from diffgen.sampling.setup import guides, make_plan, make_sampling, resolve_sampler
from diffgen.sampling.words import shown, shown_average, shown_guidance
from diffgen.sampling.writing import Files, Folder
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.checkpoint import Checkpoint


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
        saved = posthoc.of_length(checkpoint.load(Path(str(settings.ckpt))), settings.sigma_rel)
        trained = restore(saved)  # from here on the config is known to be sound
        shape = trained.shape
        labels = choose_labels(settings, trained.classes, shape.num_classes, str(task.get("name")))
        require(
            settings.guidance in ("auto", 1) or settings.guide is not None or any(label >= 0 for label in labels),
            f"guidance={settings.guidance} needs labels or guide=CKPT, and these images have no label: guidance=1",
        )
        folder = Folder(
            Path(settings.out) if settings.out else default_out, trained.kind, settings.saves, trained.classes
        )
        folder.check()
        sampler = resolve_sampler(sampler, saved.config["sampler"], trained.kind)
        sampling = make_sampling(settings, sampler, saved, trained, accelerator.device)
        sampling.plan = make_plan(settings, task, sampling)
        on_main(accelerator, lambda: folder.prepare(overwrite=settings.overwrite))
        reporter = Reporter(speaks=accelerator.is_main_process)
        reporter.header(
            f"diffgen-sample: {saved.path}", _facts(settings, sampler, task, saved, sampling, accelerator, labels)
        )
        started = time.monotonic()
        files = Files(folder)
        with accelerator.autocast():
            drawn = _draw_all(sampling, labels, settings, accelerator, reporter, files)
        files.finish()
        if accelerator.is_main_process:
            seconds = max(time.monotonic() - started, 1e-9)
            notes = {"diffgen": f"ckpt={saved.path} seed={settings.seed} {shown(task)}, {shown(sampler)}"}
            if sampling.plan.frames:
                folder.write_films(drawn, labels, notes)
            else:
                in_line = settings.n if sampling.plan.path else None
                folder.write(drawn, labels, in_line or class_columns(labels, shape.num_classes), notes)
            _tell(reporter, settings, sampling, labels, folder.path, seconds)


def _facts(
    settings: SampleSettings,
    sampler: Mapping[str, Any],
    task: Mapping[str, Any],
    saved: Checkpoint,
    sampling: Sampling,
    accelerator: Accelerator,
    labels: list[int],
) -> dict[str, str]:
    """The header of the command."""
    drawn = told(labels, sampling.trained.classes)
    return {
        "images": f"{settings.n} of {sampling.trained.shape}, seed {settings.seed}" + (f", {drawn}" if drawn else ""),
        "model": f"{saved.config['model']['name']}, {saved.images:,} images seen{shown_average(saved)}",
        "task": shown(task),
        "sampler": shown(sampler),
        "guidance": shown_guidance(sampling.guidance, settings.guide),
        "device": processes.told(accelerator),
    }


def _tell(
    reporter: Reporter, settings: SampleSettings, sampling: Sampling, labels: list[int], out: Path, seconds: float
) -> None:
    pace = count(settings.n / seconds)
    twice = ", some or all with a second one for guidance" if guides(sampling.guidance, labels) else ""
    reporter.say(f"{settings.n} images in {seconds:.1f} s ({pace} img/s), NFE {sampling.nfe}{twice}")
    more = f"   more: {', '.join(settings.saves)} in {out}" if set(settings.saves) - {"grid"} else ""
    drawn = told(labels, sampling.trained.classes)
    reporter.say(f"grid: {out / 'grid.png'}{f' ({drawn})' if drawn else ''}{more}")


def _draw_all(
    sampling: Sampling,
    labels: list[int],
    settings: SampleSettings,
    accelerator: Accelerator,
    reporter: Reporter,
    files: Files,
) -> Tensor:
    """All examples as stored, [n, ...], or films [n, F, ...], on the main process (elsewhere the same or a part)."""
    n, world = settings.n, accelerator.num_processes
    mine = share_of(n, accelerator)
    parts: list[Tensor] = []
    started, done = time.monotonic(), 0
    with reporter.progress(len(mine), 0) as line:
        for part in _batches(sampling, settings, mine, [labels[i] for i in mine]):
            whole = part[:, -1] if sampling.plan and sampling.plan.frames else part
            files.add(dict(zip(mine[done:], whole, strict=False)))
            parts.append(part)
            done += len(part)
            line.update(done, f"{min(done * world, n)} img  {count(done * world / (time.monotonic() - started))} img/s")
    drawn = torch.cat(parts)
    if world > 1:
        drawn = accelerator.gather(drawn.to(accelerator.device)).cpu()
    return drawn[:n]


def _batches(sampling: Sampling, settings: SampleSettings, mine: list[int], labels: list[int]) -> Iterator[Tensor]:
    draw = sampling.films if sampling.plan and sampling.plan.frames else sampling.examples
    at_once = settings.batch_size
    batch = at_once if isinstance(at_once, int) else batch_size(sampling.trained.shape.size, sampling.device)
    return draw(mine, labels, batch)
