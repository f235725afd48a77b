"""diffgen-eval: how good a checkpoint, or a folder of pictures, is. One pass over the images, one row of results."""

import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffgen import __version__
from diffgen.build import Trained, restore
from diffgen.core import processes
from diffgen.core.console import ProgressLine, Reporter, clock, count
from diffgen.core.errors import require
from diffgen.core.files import append_text, cache_folder, make_writable
from diffgen.core.processes import accelerated, main_first, on_main
from diffgen.core.settings import FEWEST, EvalSettings
from diffgen.data import Source
from diffgen.data.splits import Splits
from diffgen.evaluation import model
from diffgen.evaluation.extractors import Extractor, shared_extractor
from diffgen.evaluation.measure import Judged, Row, measured
from diffgen.evaluation.pictures import pictures
from diffgen.evaluation.reference import Reference, open_splits
from diffgen.evaluation.report import as_json
from diffgen.evaluation.samples import Drawn, draw_share, featured, gathered
from diffgen.sampling.drawing import Sampling, batch_size
from diffgen.sampling.labels import cycle_labels
from diffgen.sampling.setup import make_sampling, resolve_sampler
from diffgen.sampling.words import shown, shown_average, shown_guidance
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.checkpoint import Checkpoint

MOST = 50_000
"""Images to judge unless told otherwise; what the literature's FID-50k takes."""

SOON, LONG = 10.0, 600.0
"""Seconds after which the time of drawing is foretold on a CPU, and from how long a time on it is worth telling."""


def evaluate(
    settings: EvalSettings, sampler: Mapping[str, Any], extractor: Mapping[str, Any], dataset: Mapping[str, Any]
) -> Row:
    """Judge what `settings` name, print it, and append it to results.jsonl.

    Args:
        settings: Checked settings.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        extractor: Config of the extractor, a row of `EXTRACTORS`.
        dataset: Config of the data set, a row of `DATASETS`, without its split.

    Returns:
        The row of results, on every process.

    Raises:
        DiffgenError: Something cannot be used; nothing is written if that can be known beforehand.
    """
    with accelerated(settings.precision) as accelerator:
        reporter = Reporter(speaks=accelerator.is_main_process)
        saved = posthoc.of_length(checkpoint.load(Path(settings.ckpt)), settings.sigma_rel) if settings.ckpt else None
        splits = main_first(accelerator, lambda: open_splits(dataset))
        trained = restore(saved) if saved else None
        _check_shape(trained, splits, str(dataset["name"]))
        given = pictures(settings.images, splits.train, str(dataset["name"])) if settings.images else None
        out = _out(settings, saved)
        cache = Path(settings.cache) if settings.cache else cache_folder() / "eval"
        cache = cache / str(dataset["name"])
        n = _number(settings, splits, given)
        row: Row = {"images": n, "dataset": dataset["name"], "seed": settings.seed}
        started = time.monotonic()
        if saved and trained:
            sampling, facts = _sampling(settings, sampler, saved, trained, accelerator, n)
            row |= facts
        else:
            row["pictures"] = settings.images
        network = _extractor(extractor, splits, cache, accelerator, reporter) if settings.needs_images else None
        on_main(accelerator, lambda: make_writable(out))
        _header(reporter, settings, row, network, splits, given, processes.told(accelerator))
        if network:
            if saved:
                drawn = _draw(settings, sampling, network, accelerator, reporter, n)
                row["nfe"] = sampling.nfe
            else:
                assert given is not None
                with reporter.progress(n, 0) as line:
                    drawn = featured(given, network, n, lambda done: line.update(done, "pictures seen"))
            reference = Reference(splits, network, cache)
            row |= {"extractor": network.name, "extractor_hash": network.hash}

            def judge() -> Row:
                return measured(settings.wanted, Judged.of(drawn, reference, out, settings.seed, accelerator.device))

            row |= on_main(accelerator, judge)
            require(
                set(row.get("left_out", ())) != set(settings.wanted),
                f"metrics={','.join(settings.wanted)} need labels, classes or held-out images, and there are none",
            )
        if saved:
            row |= on_main(accelerator, lambda: _of_model(settings, sampling, splits, n, out, reporter))
        row |= {"seconds": round(time.monotonic() - started, 1), "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        row |= {"versions": {"diffgen": __version__, "torch": torch.__version__}}
        on_main(accelerator, lambda: append_text(out / "results.jsonl", as_json(row)))
        _tell(reporter, row, out)
        return row


# --- what is judged -----------------------------------------------------------------------------------------------


def _check_shape(trained: Trained | None, splits: Splits, name: str) -> None:
    """Require pictures, and of the size that the checkpoint makes."""
    kind = splits.train.kind
    require(kind.judged, f"dataset={name} holds {kind.unit}: diffgen-eval judges pictures")
    if trained:
        require(
            trained.kind == kind, f"ckpt makes {trained.kind.unit} and dataset={name} has {kind.unit}: no comparison"
        )
        made, wanted = trained.shape.size, splits.train.shape.size
        require(made == wanted, f"ckpt makes images of {made} and dataset={name} has {wanted}")


def _number(settings: EvalSettings, splits: Splits, given: Source | None) -> int:
    """How many images to judge."""
    most = len(given) if given is not None else min(MOST, len(splits.train))
    n = most if settings.n == "auto" else settings.n
    require(given is None or n <= most, f"n={n} is more than the {most} images in {settings.images}")
    if not settings.needs_images:
        n = min(n, len(splits.test))  # metrics of the model look at held-out images
    require(n >= FEWEST or not settings.needs_images, f"n={n} is too few: metrics of images need at least {FEWEST}")
    return n


def _out(settings: EvalSettings, saved: Checkpoint | None) -> Path:
    """`<run>/eval` for a checkpoint inside a run directory, else outputs/eval."""
    if settings.out:
        return Path(settings.out)
    folders = saved.path.resolve().parents if saved else ()
    inside = len(folders) > 2 and folders[1].name == "checkpoints"
    return folders[2] / "eval" if inside else Path("outputs") / "eval"


def _extractor(
    config: Mapping[str, Any], splits: Splits, cache: Path, accelerator: Accelerator, reporter: Reporter
) -> Extractor:
    if not cache.exists():
        reporter.say(f"extractor={config['name']} is made ready for {cache.name}, once: it is kept in {cache}")
    return shared_extractor(config, splits, cache, accelerator)


# --- images and features ------------------------------------------------------------------------------------------


def _sampling(
    settings: EvalSettings,
    sampler: Mapping[str, Any],
    saved: Checkpoint,
    trained: Trained,
    accelerator: Accelerator,
    n: int,
) -> tuple[Sampling, Row]:
    """How to draw, and the facts by which the figures can be had again."""
    config = resolve_sampler(sampler, saved.config["sampler"], trained.kind)
    sampling = make_sampling(settings.sampling(n), config, saved, trained, accelerator.device)
    facts: Row = {
        "ckpt": str(saved.path),
        "images_seen": saved.images,
        "sampler": config["name"],
        "steps": config["steps"],
    }
    facts["sampler_settings"] = shown(config)
    facts["guidance"] = shown_guidance(sampling.guidance, settings.guide)
    facts["ema"] = posthoc.facts(saved.config)
    facts["sigma_rel"] = facts["ema"].get("sigma_rel")
    facts["weights"] = f"{saved.images:,} images seen{shown_average(saved)}"
    schedule = saved.config["schedule"]["name"]
    require(
        "vlb" not in settings.metrics or model.chain_length(trained.denoiser.schedule) is not None,
        f"metrics=vlb is the bound of a chain of steps, and schedule={schedule} of ckpt is continuous: metrics=bits",
    )
    return sampling, facts


def _draw(
    settings: EvalSettings,
    sampling: Sampling,
    extractor: Extractor,
    accelerator: Accelerator,
    reporter: Reporter,
    n: int,
) -> Drawn:
    """Images 0 .. n - 1, every class in turn, with their features; each process draws its share."""
    shape = sampling.trained.shape
    labels = cycle_labels(n, shape.num_classes)
    batch = settings.batch_size if isinstance(settings.batch_size, int) else batch_size(shape.size, accelerator.device)
    started, drawn, expected = time.monotonic(), 0, sampling.expected_nfe()
    foretold = accelerator.device.type != "cpu"  # elsewhere the first calls compile, and tell nothing
    with reporter.progress(n, 0) as line:

        def moved() -> None:  # before each network call: a batch may take minutes
            nonlocal foretold
            part = min((sampling.nfe - 1) / expected, 1)
            line.advance(drawn + part * min(batch * accelerator.num_processes, n - drawn))
            if not foretold and line.done and line.elapsed() > SOON:
                _foretell(reporter, line, n)
                foretold = True

        def progress(done: int) -> None:
            nonlocal drawn
            drawn = done
            line.update(done, f"{done} img  {count(done / (time.monotonic() - started))} img/s")

        sampling.before_each = moved
        share = draw_share(sampling, labels, extractor, accelerator, batch, progress)
    return gathered(share, accelerator, n)


def _foretell(reporter: Reporter, line: ProgressLine, n: int) -> None:
    """Say that drawing will take long, if it will, and what would take less."""
    total = line.elapsed() + line.left()
    if total > LONG:
        less = f"; n=1000 takes about {clock(1000 / n * total)}" if n > 1000 else ""
        reporter.say(f"drawing {n:,} images takes about {clock(total)} on this CPU{less}")


# --- figures ------------------------------------------------------------------------------------------------------


def _of_model(settings: EvalSettings, sampling: Sampling, splits: Splits, n: int, out: Path, reporter: Reporter) -> Row:
    """Metrics of the model itself."""
    denoiser, device = sampling.denoiser, sampling.device
    test = min(n, len(splits.test))
    row: Row = {}
    if "bits" in settings.wanted:
        with reporter.progress(test, 0) as line:
            row |= model.bits(denoiser, device, splits.test, n, settings.seed, line.update)
    steps = model.chain_length(denoiser.schedule)
    if "vlb" in settings.wanted and steps is not None:
        with reporter.progress(test, 0) as line:
            row |= model.vlb(denoiser, steps, device, splits.test, n, settings.seed, line.update)
    if "denoising" in settings.wanted:
        with reporter.progress(min(n, len(splits.train)) + test, 0) as line:
            row |= model.denoising(denoiser, device, splits, n, settings.seed, out, line.update)
    return row


# --- what is told -------------------------------------------------------------------------------------------------


def _header(
    reporter: Reporter,
    settings: EvalSettings,
    row: Row,
    extractor: Extractor | None,
    splits: Splits,
    given: Source | None,
    device: str,
) -> None:
    held_out = "no held-out images" if splits.test is splits.train else f"{len(splits.test):,} held out"
    facts = getattr(extractor, "facts", {})
    known = f", test accuracy {float(facts['test_accuracy']):.1%}" if "test_accuracy" in facts else ""
    rows = {
        "images": f"{row['images']:,}, seed {row['seed']}" + (f", {given.home}" if given and given.home else ""),
        "reference": f"{row['dataset']}: {len(splits.train):,} training images, {held_out}",
        "metrics": ", ".join(settings.wanted),
        "device": device,
    }
    if extractor:
        rows["extractor"] = f"{extractor.name} {extractor.hash[:12]}, {extractor.dim} features{known}"
    if "ckpt" in row:
        rows["weights"] = row["weights"]
    if extractor and "ckpt" in row:
        rows |= {"sampler": row["sampler_settings"], "guidance": row["guidance"]}
    reporter.header(f"diffgen-eval: {row.get('ckpt') or row['pictures']}", rows)


def _tell(reporter: Reporter, row: Row, out: Path) -> None:
    from diffgen.evaluation.report import table

    for line in table(row):
        reporter.say(line)
    reporter.say(
        f"results: {out / 'results.jsonl'}" + (f"   nearest pairs: {out / 'pairs.png'}" if "copies" in row else "")
    )
