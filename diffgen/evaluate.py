"""diffgen-eval: how good a checkpoint, or a folder of pictures, is. One pass over the images, one row of results."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen import __version__, checkpoint
from diffgen.build import make_dataset, restore
from diffgen.checkpoint import Checkpoint
from diffgen.console import ProgressLine, Reporter, clock, count
from diffgen.datasets import ImageSource
from diffgen.datasets.base import in_order
from diffgen.errors import require
from diffgen.evaluation import model
from diffgen.evaluation.extractors import EXTRACTORS, Extractor, Splits
from diffgen.evaluation.measure import MEASURES, Judged, Row
from diffgen.evaluation.pictures import pictures
from diffgen.files import append_text, cache_folder, explained
from diffgen.generate import batch_size, make_sampling, resolve_sampler, shape_of, shown, shown_guidance
from diffgen.processes import accelerated, on_main
from diffgen.registry import build
from diffgen.sampling import Sampling, cycle_labels
from diffgen.settings import EvalSettings

MOST = 50_000
"""Images to judge unless told otherwise; what the literature's FID-50k takes."""

FEWEST = 4
"""Images that the kernel distance and recall can be told of."""

SOON, LONG = 10.0, 600.0
"""Seconds after which the time of drawing is foretold on a CPU, and from how long a time on it is worth telling."""


@dataclass
class Drawn:
    """Images and what the extractor says of them, all on the CPU: uint8 [n, C, H, W], [n], [n, d], [n, k] or None."""

    pixels: Tensor
    labels: Tensor
    features: Tensor
    logits: Tensor | None


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
        saved = checkpoint.load(Path(settings.ckpt)) if settings.ckpt else None
        splits = _splits(dataset, saved)
        given = pictures(settings.images, splits.train, str(dataset["name"])) if settings.images else None
        out = _out(settings, saved)
        cache = Path(settings.cache) if settings.cache else cache_folder() / "eval"
        cache = cache / str(dataset["name"])
        n = _number(settings, splits, given)
        row: Row = {"images": n, "dataset": dataset["name"], "seed": settings.seed}
        started = time.monotonic()
        if saved:
            sampling, facts = _sampling(settings, sampler, saved, accelerator, n)
            row |= facts
        else:
            row["pictures"] = settings.images
        network = _extractor(extractor, splits, cache, accelerator, reporter) if settings.needs_images else None
        on_main(accelerator, lambda: _prepare(out))
        _header(reporter, settings, row, network, splits, given)
        if network:
            if saved:
                drawn = _draw(settings, sampling, saved, network, accelerator, reporter, n)
                row["nfe"] = sampling.nfe
            else:
                assert given is not None
                drawn = _featured(given, network, reporter, n)
            judged = Judged(
                drawn.pixels, drawn.labels, drawn.features, drawn.logits, splits, network, cache, out, settings.seed
            )
            row |= {"extractor": network.name, "extractor_hash": network.hash}
            row |= on_main(accelerator, lambda: _measured(settings, judged))
        if saved:
            row |= on_main(accelerator, lambda: _of_model(settings, sampling, splits, n, out, reporter))
        row |= {"seconds": round(time.monotonic() - started, 1), "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        row |= {"versions": {"diffgen": __version__, "torch": torch.__version__}}
        on_main(accelerator, lambda: append_text(out / "results.jsonl", json.dumps(row) + "\n"))
        _tell(reporter, row, out)
        return row


# --- what is judged -----------------------------------------------------------------------------------------------


def _splits(dataset: Mapping[str, Any], saved: Checkpoint | None) -> Splits:
    """Training and test split; a data set without splits is both."""
    config = dict(dataset)
    if "split" in config:
        train, test = (make_dataset({"dataset": {**config, "split": split}}) for split in ("train", "test"))
    else:
        train = test = make_dataset({"dataset": config})
    require(train.shape.pixels, f"dataset={config['name']} holds vectors: diffgen-eval judges pictures")
    if saved:
        sizes = [
            (shape["channels"], shape["height"], shape["width"]) for shape in (saved.config["data"], vars(train.shape))
        ]
        require(sizes[0] == sizes[1], f"ckpt makes images of {sizes[0]} and dataset={config['name']} has {sizes[1]}")
    return Splits(train, test)


def _number(settings: EvalSettings, splits: Splits, given: ImageSource | None) -> int:
    """How many images to judge."""
    most = len(given) if given is not None else min(MOST, len(splits.train))
    n = most if settings.n == "auto" else settings.n
    require(given is None or n <= most, f"n={n} is more than the {most} images in {settings.images}")
    require(n >= FEWEST or not settings.needs_images, f"n={n} is too few: metrics of images need at least {FEWEST}")
    return n


def _out(settings: EvalSettings, saved: Checkpoint | None) -> Path:
    """`<run>/eval` for a checkpoint inside a run directory, else outputs/eval."""
    if settings.out:
        return Path(settings.out)
    folders = saved.path.resolve().parents if saved else ()
    inside = len(folders) > 2 and folders[1].name == "checkpoints"
    return folders[2] / "eval" if inside else Path("outputs") / "eval"


def _prepare(out: Path) -> None:
    """Make the folder of the results, before hours of work for it."""
    with explained(out):
        out.mkdir(parents=True, exist_ok=True)
        (out / ".writable").touch()
        (out / ".writable").unlink()


def _extractor(
    config: Mapping[str, Any], splits: Splits, cache: Path, accelerator: Accelerator, reporter: Reporter
) -> Extractor:
    """The extractor; the main process trains or downloads it, the others find it done."""
    if not cache.exists():
        reporter.say(f"extractor={config['name']} is made ready for {cache.name}, once: it is kept in {cache}")
    first: list[Extractor] = []
    on_main(accelerator, lambda: first.append(build(EXTRACTORS, config, splits, cache, accelerator.device)))
    return first[0] if first else build(EXTRACTORS, config, splits, cache, accelerator.device)


# --- images and features ------------------------------------------------------------------------------------------


def _sampling(
    settings: EvalSettings, sampler: Mapping[str, Any], saved: Checkpoint, accelerator: Accelerator, n: int
) -> tuple[Sampling, Row]:
    """How to draw, and the facts by which the figures can be had again."""
    denoiser = restore(saved)
    config = resolve_sampler(sampler, saved.config["sampler"])
    sampling = make_sampling(settings.sampling(n), config, saved, denoiser, accelerator.device)
    facts: Row = {
        "ckpt": str(saved.path),
        "images_seen": saved.images,
        "sampler": config["name"],
        "steps": config["steps"],
    }
    facts["sampler_settings"] = shown(config)
    facts["guidance"] = shown_guidance(sampling.guidance, settings.guide)
    facts["ema"] = saved.config.get("ema", "half-life of the run")
    schedule = saved.config["schedule"]["name"]
    require(
        "vlb" not in settings.metrics or model.chain_length(denoiser.schedule) is not None,
        f"metrics=vlb is the bound of a chain of steps, and schedule={schedule} of ckpt is continuous: metrics=bits",
    )
    return sampling, facts


def _draw(
    settings: EvalSettings,
    sampling: Sampling,
    saved: Checkpoint,
    extractor: Extractor,
    accelerator: Accelerator,
    reporter: Reporter,
    n: int,
) -> Drawn:
    """Images 0 .. n - 1, every class in turn, with their features; each process draws its share."""
    world, rank, shape = accelerator.num_processes, accelerator.process_index, shape_of(saved)
    labels = cycle_labels(n, saved.config["data"]["num_classes"])
    share = -(-n // world)
    mine = [min(i, n - 1) for i in range(rank * share, (rank + 1) * share)]  # the last share is padded
    batch = settings.batch_size if isinstance(settings.batch_size, int) else batch_size(shape, accelerator.device)
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    started, done, expected = time.monotonic(), 0, sampling.expected_nfe()
    foretold = accelerator.device.type != "cpu"  # elsewhere the first calls compile, and tell nothing
    with reporter.progress(share, 0) as line, accelerator.autocast():

        def moved() -> None:  # before each network call: a batch may take minutes
            nonlocal foretold
            part = min((sampling.nfe - 1) / expected, 1)
            line.advance(done + part * min(batch, share - done))
            if not foretold and line.done and line.elapsed() > SOON:
                _foretell(reporter, line, n)
                foretold = True

        sampling.before_each = moved
        for pixels in sampling.pixels(shape, mine, [labels[i] for i in mine], batch):
            with torch.autocast(accelerator.device.type, enabled=False):  # features are compared with others' figures
                parts.append((pixels, *extractor(pixels)))
            done += len(pixels)
            line.update(done, f"{min(done * world, n)} img  {count(done * world / (time.monotonic() - started))} img/s")

    def together(tensors: list[Tensor]) -> Tensor:
        joined = torch.cat([tensor.cpu() for tensor in tensors])
        return accelerator.gather(joined.to(accelerator.device)).cpu()[:n] if world > 1 else joined[:n]

    logits = [part[2] for part in parts if part[2] is not None]
    return Drawn(
        together([part[0] for part in parts]),
        torch.tensor(labels),
        together([part[1] for part in parts]),
        together(logits) if logits else None,
    )


def _foretell(reporter: Reporter, line: ProgressLine, n: int) -> None:
    """Say that drawing will take long, if it will, and what would take less."""
    total = line.elapsed() + line.left()
    if total > LONG:
        less = f"; n=1000 takes about {clock(1000 / n * total)}" if n > 1000 else ""
        reporter.say(f"drawing {n:,} images takes about {clock(total)} on this CPU{less}")


def _featured(given: ImageSource, extractor: Extractor, reporter: Reporter, n: int) -> Drawn:
    """The first n pictures with their features."""
    pixels, labels, features, logits = [], [], [], []
    with reporter.progress(n, 0) as line:
        for some, theirs in in_order(given, n, torch.device("cpu")):
            feature, logit = extractor(some)
            pixels.append(some)
            labels.append(theirs)
            features.append(feature.cpu())
            if logit is not None:
                logits.append(logit.cpu())
            line.update(sum(map(len, pixels)), "pictures seen")
    return Drawn(torch.cat(pixels), torch.cat(labels), torch.cat(features), torch.cat(logits) if logits else None)


# --- figures ------------------------------------------------------------------------------------------------------


def _measured(settings: EvalSettings, judged: Judged) -> Row:
    """All metrics of the images that were asked for."""
    row: Row = {}
    if judged.splits.test is not judged.splits.train:
        row["floor_images"] = min(len(judged.features), len(judged.splits.test))
    for name in settings.wanted:
        if name in MEASURES:
            row |= MEASURES[name](judged)
    return row


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
    given: ImageSource | None,
) -> None:
    held_out = "no held-out images" if splits.test is splits.train else f"{len(splits.test):,} held out"
    facts = getattr(extractor, "facts", {})
    known = f", test accuracy {float(facts['test_accuracy']):.1%}" if "test_accuracy" in facts else ""
    rows = {
        "images": f"{row['images']:,}, seed {row['seed']}" + (f", {given.home}" if given and given.home else ""),
        "reference": f"{row['dataset']}: {len(splits.train):,} training images, {held_out}",
        "metrics": ", ".join(settings.wanted),
    }
    if extractor:
        rows["extractor"] = f"{extractor.name} {extractor.hash[:12]}, {extractor.dim} features{known}"
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
