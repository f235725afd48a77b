"""diffgen-eval: how good a checkpoint, or a folder of pictures, is. One pass over the images, one row of results."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen import __version__, checkpoint, posthoc
from diffgen.build import make_dataset, restore
from diffgen.checkpoint import Checkpoint
from diffgen.console import Reporter, count
from diffgen.datasets import Images, ImageSource
from diffgen.datasets.base import in_order
from diffgen.datasets.folder import image_folder
from diffgen.denoiser import NO_LABEL
from diffgen.errors import DataError, require
from diffgen.evaluation import model
from diffgen.evaluation.extractors import EXTRACTORS, Extractor, Splits
from diffgen.evaluation.measure import MEASURES, Judged, Row
from diffgen.files import append_text, cache_folder, explained
from diffgen.generate import batch_size, make_sampling, resolve_sampler, shape_of, shown, shown_average, shown_guidance
from diffgen.processes import accelerated, on_main
from diffgen.registry import build
from diffgen.sampling import Sampling, cycle_labels
from diffgen.settings import EvalSettings

MOST = 50_000
"""Images to judge unless told otherwise; what the literature's FID-50k takes."""


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
        DiffgenError: Something cannot be used; nothing is written then.
    """
    with accelerated(settings.precision) as accelerator:
        reporter = Reporter(speaks=accelerator.is_main_process)
        saved = posthoc.of_length(checkpoint.load(Path(settings.ckpt)), settings.sigma_rel) if settings.ckpt else None
        splits = _splits(dataset, saved)
        pictures = _pictures(settings, splits) if settings.images else None
        out = _out(settings, saved)
        cache = Path(settings.cache) if settings.cache else cache_folder() / "eval"
        cache = cache / str(dataset["name"])
        network = _extractor(extractor, splits, cache, accelerator)
        n = _number(settings, splits, pictures)
        row: Row = {"images": n, "dataset": dataset["name"], "seed": settings.seed}
        started = time.monotonic()
        if saved:
            sampling, facts = _sampling(settings, sampler, saved, accelerator, n)
            row |= facts
            _header(reporter, settings, row, network, splits)
            drawn = _draw(settings, sampling, saved, network, accelerator, reporter, n)
            row["nfe"] = sampling.nfe
        else:
            assert pictures is not None
            row["pictures"] = settings.images
            _header(reporter, settings, row, network, splits)
            drawn = _featured(pictures, network, n)
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
        _tell(reporter, row, network, splits, out)
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


def _pictures(settings: EvalSettings, splits: Splits) -> ImageSource:
    """The images of a folder or an .npz, with labels where they come with classes."""
    path, shape = Path(str(settings.images)), splits.train.shape
    if path.is_dir():
        return image_folder(root=str(path), size=None, channels=shape.channels, workers=2)
    if not path.is_file():
        raise DataError(f"images={str(path)!r} is neither a folder of pictures nor an .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:  # noqa: TID251  arrays alone, never objects
            pixels = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2).contiguous()
            labels = torch.from_numpy(file["arr_1"]) if "arr_1" in file else torch.full((len(pixels),), NO_LABEL)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, EOFError) as error:
        raise DataError(f"images={str(path)!r} is no .npz with arr_0, uint8 [N, H, W, C]: {error}") from None
    return Images(pixels, labels.long(), splits.train.classes)


def _number(settings: EvalSettings, splits: Splits, pictures: ImageSource | None) -> int:
    most = len(pictures) if pictures is not None else MOST
    if settings.n == "auto":
        return min(most, len(splits.train)) if pictures is None else most
    require(
        pictures is None or settings.n <= most, f"n={settings.n} is more than the {most} images in {settings.images}"
    )
    return settings.n


def _out(settings: EvalSettings, saved: Checkpoint | None) -> Path:
    """`<run>/eval` for a checkpoint inside a run directory, else outputs/eval."""
    if settings.out:
        return Path(settings.out)
    folders = saved.path.resolve().parents if saved else ()
    inside = len(folders) > 2 and folders[1].name == "checkpoints"
    return folders[2] / "eval" if inside else Path("outputs") / "eval"


def _extractor(config: Mapping[str, Any], splits: Splits, cache: Path, accelerator: Accelerator) -> Extractor:
    """The extractor; the main process trains or downloads it, the others find it done."""
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
    facts["ema"] = saved.config.get("ema", {})
    facts["sigma_rel"] = facts["ema"].get("sigma_rel")
    facts["weights"] = f"{saved.images:,} images seen{shown_average(saved)}"
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
    started, done = time.monotonic(), 0
    with reporter.progress(share, 0) as line, accelerator.autocast():
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


def _featured(pictures: ImageSource, extractor: Extractor, n: int) -> Drawn:
    """The first n pictures with their features."""
    pixels, labels, features, logits = [], [], [], []
    for some, theirs in in_order(pictures, n, torch.device("cpu")):
        feature, logit = extractor(some)
        pixels.append(some)
        labels.append(theirs)
        features.append(feature.cpu())
        if logit is not None:
            logits.append(logit.cpu())
    return Drawn(torch.cat(pixels), torch.cat(labels), torch.cat(features), torch.cat(logits) if logits else None)


# --- figures ------------------------------------------------------------------------------------------------------


def _measured(settings: EvalSettings, judged: Judged) -> Row:
    """All metrics of the images that were asked for."""
    with explained(judged.out):
        judged.out.mkdir(parents=True, exist_ok=True)
    row: Row = {}
    for name in settings.wanted:
        if name in MEASURES:
            row |= MEASURES[name](judged)
    return row


def _of_model(settings: EvalSettings, sampling: Sampling, splits: Splits, n: int, out: Path, reporter: Reporter) -> Row:
    """Metrics of the model itself."""
    denoiser, device = sampling.denoiser, sampling.device
    row: Row = {}
    if "bits" in settings.wanted:
        with reporter.progress(min(n, len(splits.test)), 0) as line:
            row |= model.bits(denoiser, device, splits.test, n, settings.seed, line.update)
    if "denoising" in settings.wanted:
        row |= model.denoising(denoiser, device, splits, n, settings.seed, out)
    return row


# --- what is told -------------------------------------------------------------------------------------------------


def _header(reporter: Reporter, settings: EvalSettings, row: Row, extractor: Extractor, splits: Splits) -> None:
    held_out = "no held-out images" if splits.test is splits.train else f"{len(splits.test):,} held out"
    facts = getattr(extractor, "facts", {})
    known = f", test accuracy {float(facts['test_accuracy']):.1%}" if "test_accuracy" in facts else ""
    rows = {
        "images": f"{row['images']:,}, seed {row['seed']}",
        "reference": f"{row['dataset']}: {len(splits.train):,} training images, {held_out}",
        "extractor": f"{extractor.name} {extractor.hash[:12]}, {extractor.dim} features{known}",
        "metrics": ", ".join(settings.wanted),
    }
    if "ckpt" in row:
        rows |= {"sampler": row["sampler_settings"], "guidance": row["guidance"], "weights": row["weights"]}
    reporter.header(f"diffgen-eval: {row.get('ckpt') or row['pictures']}", rows)


def _tell(reporter: Reporter, row: Row, extractor: Extractor, splits: Splits, out: Path) -> None:
    from diffgen.evaluation.report import table

    for line in table(row):
        reporter.say(line)
    reporter.say(
        f"results: {out / 'results.jsonl'}" + (f"   nearest pairs: {out / 'pairs.png'}" if "copies" in row else "")
    )
