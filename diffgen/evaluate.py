"""diffgen-eval: how good a checkpoint, or a folder of pictures, is. One pass over the images, one row of results."""

import json
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from diffgen import __version__, checkpoint, posthoc
from diffgen.build import restore
from diffgen.checkpoint import Checkpoint
from diffgen.console import Reporter, count
from diffgen.datasets import Images, ImageSource
from diffgen.datasets.folder import image_folder
from diffgen.denoiser import NO_LABEL
from diffgen.errors import DataError, require
from diffgen.evaluation import model
from diffgen.evaluation.drawing import Drawn, draw_share, featured, gathered
from diffgen.evaluation.extractors import Extractor, Splits, shared_extractor
from diffgen.evaluation.measure import Judged, Row, measured
from diffgen.evaluation.reference import open_splits
from diffgen.files import append_text, cache_folder
from diffgen.generate import make_sampling, resolve_sampler, shape_of, shown, shown_average, shown_guidance
from diffgen.processes import accelerated, on_main
from diffgen.sampling import Sampling, batch_size, cycle_labels
from diffgen.settings import EvalSettings

MOST = 50_000
"""Images to judge unless told otherwise; what the literature's FID-50k takes."""


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
        splits = open_splits(dataset)
        _check_shape(saved, splits, str(dataset["name"]))
        pictures = _pictures(settings, splits) if settings.images else None
        out = _out(settings, saved)
        cache = Path(settings.cache) if settings.cache else cache_folder() / "eval"
        cache = cache / str(dataset["name"])
        network = shared_extractor(extractor, splits, cache, accelerator)
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
            drawn = featured(pictures, network, n)
        judged = Judged(**vars(drawn), splits=splits, extractor=network, cache=cache, out=out, seed=settings.seed)
        row |= {"extractor": network.name, "extractor_hash": network.hash}
        row |= on_main(accelerator, lambda: measured(settings.wanted, judged))
        if saved:
            row |= on_main(accelerator, lambda: _of_model(settings, sampling, splits, n, out, reporter))
        row |= {"seconds": round(time.monotonic() - started, 1), "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        row |= {"versions": {"diffgen": __version__, "torch": torch.__version__}}
        on_main(accelerator, lambda: append_text(out / "results.jsonl", json.dumps(row) + "\n"))
        _tell(reporter, row, network, splits, out)
        return row


# --- what is judged -----------------------------------------------------------------------------------------------


def _check_shape(saved: Checkpoint | None, splits: Splits, name: str) -> None:
    """Require pictures, and of the size that the checkpoint makes."""
    require(splits.train.shape.pixels, f"dataset={name} holds vectors: diffgen-eval judges pictures")
    if saved:
        sizes = [
            (shape["channels"], shape["height"], shape["width"])
            for shape in (saved.config["data"], vars(splits.train.shape))
        ]
        require(sizes[0] == sizes[1], f"ckpt makes images of {sizes[0]} and dataset={name} has {sizes[1]}")


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
    shape, labels = shape_of(saved), cycle_labels(n, saved.config["data"]["num_classes"])
    batch = settings.batch_size if isinstance(settings.batch_size, int) else batch_size(shape, accelerator.device)
    started = time.monotonic()
    with reporter.progress(n, 0) as line:

        def told(done: int) -> None:
            line.update(done, f"{done} img  {count(done / (time.monotonic() - started))} img/s")

        share = draw_share(sampling, shape, labels, extractor, accelerator, batch, told)
    return gathered(share, accelerator, n)


# --- figures ------------------------------------------------------------------------------------------------------


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
