"""diffgen-eval: how good a checkpoint, or a folder of pictures, is. One pass over the images, one row of results."""

import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen import __version__
from diffgen.build import Trained, restore
from diffgen.core import processes
from diffgen.core.console import Reporter, unit_of
from diffgen.core.errors import require
from diffgen.core.eval_settings import EvalSettings, What
from diffgen.core.files import append_text, cache_folder, make_writable
from diffgen.core.processes import accelerated, on_main
from diffgen.core.settings import FEWEST
from diffgen.data import Source
from diffgen.data.splits import Splits
from diffgen.evaluation import autoencoders, clips, held_out, model, text
from diffgen.evaluation.comparing import opened, suited, told_by_classes
from diffgen.evaluation.drawing import draw
from diffgen.evaluation.extractors import Extractor, shared_extractor
from diffgen.evaluation.few import too_few
from diffgen.evaluation.measure import Judged, Row, measured
from diffgen.evaluation.of_model import OfModel
from diffgen.evaluation.pictures import pictures
from diffgen.evaluation.reconstruction import Coder
from diffgen.evaluation.reference import Reference
from diffgen.evaluation.report import as_json, unit_in
from diffgen.evaluation.samples import Drawn, draw_share, featured, gathered
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.sampling.setup import check_guidance, make_sampling, resolve_sampler
from diffgen.sampling.words import shown, shown_average, shown_guidance
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.run_directory import run_of

TRAINED_ON = {
    "classifier": ", trained on labels",
    "rotation": ", trained without labels, to tell which way up pictures are",
}
"""Extractors of data with and without labels, as the header tells them apart."""

MOST = 50_000
"""Images to judge unless told otherwise; what the literature's FID-50k takes."""


def evaluate(
    settings: EvalSettings,
    sampler: Mapping[str, Any],
    extractor: Mapping[str, Any],
    dataset: Mapping[str, Any],
    moved: str = "",
) -> Row:
    """Judge what `settings` name, print it, and append it to results.jsonl.

    Args:
        settings: Checked settings.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        extractor: Config of the extractor, a row of `EXTRACTORS`.
        dataset: Config of the data set, a row of `DATASETS`.
        moved: What to say where its examples are not found.

    Returns:
        The row of results, on every process.

    Raises:
        DiffgenError: Something cannot be used; nothing is written if that can be known beforehand.
    """
    with accelerated(settings.precision) as accelerator:
        reporter = Reporter(speaks=accelerator.is_main_process)
        saved = supplied(checkpoint.load(Path(settings.ckpt)), settings.latent) if settings.ckpt else None
        saved = posthoc.of_length(saved, settings.sigma_rel) if saved else None
        trained = restore(saved) if saved else None
        textual = trained is not None and trained.kind.textual
        _check_extractor(settings, str(extractor.get("name")), textual=textual)
        splits, apart, held = opened(saved, dataset, moved, accelerator)
        what = _what(trained, splits)
        splits = suited(trained, splits, str(dataset["name"]))
        splits, classes = told_by_classes(trained, splits, str(dataset["name"]))
        if trained:
            check_guidance(settings, classes, trained.kind.unit)
        settings = settings.suited(what, without=_untold(what, saved, trained, splits, str(dataset["name"])))
        given = pictures(settings.images, splits.train, str(dataset["name"])) if settings.images else None
        out = _out(settings, saved)
        cache = Path(settings.cache) if settings.cache else cache_folder() / "eval"
        cache = cache / str(dataset["name"])
        n = _number(settings, splits, given)
        texts = text.Texts(splits, n) if textual else None
        unit = {"text": "sequences", "clips": "clips"}.get(what, "images")
        row: Row = {unit: n, "dataset": dataset["name"], "seed": settings.seed, **held}
        started = time.monotonic()
        if saved and trained:
            sampling, facts = _sampling(settings, sampler, saved, trained, accelerator, n)
            row |= facts
        else:
            row["pictures"] = settings.images
        looks = settings.needs_features and not textual
        seen = clips.in_frames(splits) if looks and what == "clips" else splits
        network = _extractor(extractor, seen, cache, accelerator, reporter) if looks else None
        on_main(accelerator, lambda: make_writable(out))
        found = splits.train.found if textual else given.found if given else ""
        _header(reporter, settings, row, network, found, apart, processes.told(accelerator))
        for note in texts.notes if texts else ():
            reporter.say(note)
        labels = [classes[i] if classes else i for i in cycle_labels(n, len(classes))]
        if network:
            row |= {"extractor": network.name, "extractor_hash": network.hash, "features": network.dim}
        whose = sampling if saved else given
        if network and what == "clips":
            row |= _of_clips(settings, whose, labels, clips.Films(splits, network, n), accelerator, reporter)
        reference = _reference(trained, splits, network, cache, accelerator) if network else None
        if reference and what != "clips" and settings.needs_samples:
            drawn = _with_features(settings, whose, labels, reference.extractor, accelerator, reporter)
            row |= {"nfe": sampling.nfe} if saved else {}
            row |= _of_images(settings, drawn, reference, out, accelerator)
        if texts and settings.needs_samples:
            row |= _of_text(settings, sampling, texts, accelerator, reporter)
        if saved:
            alone = OfModel(settings, sampling, splits, texts, reference, n, out, reporter)
            row |= on_main(accelerator, alone.figures)
        row["too_few"] = list(too_few(row))
        row |= {"seconds": round(time.monotonic() - started, 1), "time": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        row |= {"versions": {"diffgen": __version__, "torch": torch.__version__}}
        on_main(accelerator, lambda: append_text(out / "results.jsonl", as_json(row)))
        _tell(reporter, row, out)
        return row


# --- what is judged -----------------------------------------------------------------------------------------------


def _what(trained: Trained | None, splits: Splits) -> What:
    """What is judged."""
    if trained and trained.kind.textual:
        return "text"
    if trained and autoencoders.is_autoencoder(trained):
        return "autoencoders"
    return "clips" if splits.train.kind.moving else "images"


def _untold(what: What, saved: Checkpoint | None, trained: Trained | None, splits: Splits, name: str) -> dict[str, str]:
    """Metrics that cannot be told of a checkpoint, or by a data set of this name, each with why."""
    without = dict[str, str]()
    if saved and trained:
        without = model.untold(trained, saved.config["schedule"]["name"]) | autoencoders.untold(trained)
    by_data = {"text": text.untold, "clips": clips.untold}.get(what)
    return without | (by_data(splits, name) if by_data else {})


def _check_extractor(settings: EvalSettings, extractor: str, *, textual: bool) -> None:
    """Require an extractor for pictures alone, and Inception for what is called FID or KID.

    Raises:
        UsageError: It is for something else.
    """
    if textual:
        require(extractor == "auto", f"extractor={extractor} is for pictures, and ckpt makes text: leave it out")
    else:
        settings.check_names(extractor)


def _number(settings: EvalSettings, splits: Splits, given: Source | None) -> int:
    """How many images or sequences to judge."""
    known, kind = len(held_out.judge(splits)[0]), splits.train.kind
    textual = kind.textual
    most = min(text.MOST, known) if textual else min(clips.MOST if kind.moving else MOST, len(splits.train))
    most = len(given) if given is not None else most
    n = most if settings.n == "auto" else settings.n
    require(given is None or n <= most, f"n={n} is more than the {most} {kind.unit} in {settings.images}")
    if not settings.needs_samples:
        return min(n, known)  # of which metrics of the model are
    require(n >= FEWEST or textual, f"n={n} is too few: metrics of {kind.unit} need at least {FEWEST}")
    return n


def _out(settings: EvalSettings, saved: Checkpoint | None) -> Path:
    """`<run>/eval` for a checkpoint inside a run directory, else outputs/eval."""
    if settings.out:
        return Path(settings.out)
    run = run_of(saved.path) if saved else None
    return (run or Path("outputs")) / "eval"


def _extractor(
    config: Mapping[str, Any], splits: Splits, cache: Path, accelerator: Accelerator, reporter: Reporter
) -> Extractor:
    if not cache.exists():
        reporter.say(f"the extractor is made ready for {cache.name}, once: it is kept in {cache}")
    return shared_extractor(config, splits, cache, accelerator)


def _reference(
    trained: Trained | None, splits: Splits, network: Extractor, cache: Path, accelerator: Accelerator
) -> Reference:
    """What pictures are compared with; those that are made of latents also with others that went there and back."""
    coder = Coder.of(trained.denoiser, trained.kind) if trained else None

    def through(pixels: Tensor) -> Tensor:
        assert coder is not None
        return coder.to(accelerator.device).through(pixels.to(accelerator.device))

    return Reference(splits, network, cache, through if coder else None)


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
    config = resolve_sampler(sampler, saved, trained.kind)
    sampling = make_sampling(settings.sampling(n), config, saved, trained, accelerator.device)
    facts: Row = {
        "ckpt": str(saved.path),
        "images_seen": saved.images,
        "sampler": config["name"],
        "steps": config.get("steps"),
    }
    facts["sampler_settings"] = shown(config)
    facts["guidance"] = shown_guidance(sampling.guidance, settings.guide)
    facts["ema"] = posthoc.facts(saved.config)
    facts["sigma_rel"] = facts["ema"].get("sigma_rel")
    facts["weights"] = f"{saved.images:,} {unit_of(saved.images, trained.kind.unit)} seen{shown_average(saved)}"
    return sampling, facts


def _with_features(
    settings: EvalSettings,
    whose: Sampling | Source | None,
    labels: list[int],
    network: Extractor,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Drawn:
    """Pictures that are drawn, or read, and what the extractor says of them."""
    n = len(labels)
    if isinstance(whose, Sampling):
        share = partial(draw_share, whose, labels, network, accelerator)
        return gathered(draw(settings, whose, share, accelerator, reporter, n), accelerator, n)
    assert whose is not None
    with reporter.progress(n, 0) as line:
        return featured(whose, network, n, lambda done: line.update(done, "pictures seen"))


# --- figures ------------------------------------------------------------------------------------------------------


def _of_images(settings: EvalSettings, drawn: Drawn, reference: Reference, out: Path, accelerator: Accelerator) -> Row:
    """Metrics of images.

    Raises:
        UsageError: There is none that can be told of them.
    """

    def judge() -> Row:
        return measured(settings.wanted, Judged.of(drawn, reference, out, settings.seed, accelerator.device))

    row: Row = on_main(accelerator, judge)
    require(
        set(row.get("left_out", ())) != set(settings.wanted),
        f"metrics={','.join(settings.wanted)} need labels, classes or held-out images, and there are none",
    )
    return row


def _of_clips(
    settings: EvalSettings,
    whose: Sampling | Source | None,
    labels: list[int],
    films: clips.Films,
    accelerator: Accelerator,
    reporter: Reporter,
) -> Row:
    """Metrics of clips that are drawn, or read."""
    if isinstance(whose, Sampling):
        share = partial(clips.draw_share, whose, labels, accelerator)
        drawn = draw(settings, whose, share, accelerator, reporter, films.n)
        made, row = clips.gathered(drawn, accelerator, films.n), Row(nfe=whose.nfe)
    else:
        assert whose is not None
        made, row = clips.given(whose, films.n), Row()
    figures: Row = on_main(accelerator, lambda: clips.of_samples(settings.wanted, made, films))
    return row | figures


def _of_text(
    settings: EvalSettings, sampling: Sampling, texts: text.Texts, accelerator: Accelerator, reporter: Reporter
) -> Row:
    """Metrics of drawn text."""
    share = partial(text.draw_share, sampling, texts.n, accelerator)
    drawn = text.gathered(draw(settings, sampling, share, accelerator, reporter, texts.n), accelerator, texts.n)
    figures: Row = on_main(accelerator, lambda: text.of_samples(settings.wanted, drawn, texts))
    return {"nfe": sampling.nfe, **figures}


# --- what is told -------------------------------------------------------------------------------------------------


def _header(
    reporter: Reporter,
    settings: EvalSettings,
    row: Row,
    extractor: Extractor | None,
    found: str,
    apart: str,
    device: str,
) -> None:
    unit = unit_in(row)
    rows = {
        unit: f"{row[unit]:,}, seed {row['seed']}",
        **({"found": found} if found else {}),
        "reference": f"{row['dataset']}: {row[f'training_{unit}']:,} training {unit}, {apart}",
        "metrics": ", ".join(settings.wanted),
        "device": device,
    }
    if extractor:
        rows["extractor"] = f"{extractor.name} {extractor.hash[:12]}, {extractor.dim} features{_made(extractor, unit)}"
    if "ckpt" in row:
        rows["weights"] = row["weights"]
    if settings.needs_samples and "ckpt" in row:
        rows |= {"sampler": row["sampler_settings"], "guidance": row["guidance"]}
    reporter.header(f"diffgen-eval: {row.get('ckpt') or row['pictures']}", rows)


def _made(extractor: Extractor, unit: str) -> str:
    """What a network that was trained here was trained on, and how well it knows it."""
    facts: Mapping[str, Any] = getattr(extractor, "facts", {})
    what = "frames" if unit == "clips" else unit
    which = {"test_accuracy": f"held-out {what}", "train_accuracy": f"its training {what}"}
    known = [f", {facts[key]:.1%} right on {words}" for key, words in which.items() if key in facts]
    return f"{TRAINED_ON.get(extractor.name, '')}{''.join(known)}"


def _tell(reporter: Reporter, row: Row, out: Path) -> None:
    from diffgen.evaluation.report import table

    for line in table(row):
        reporter.say(line)
    reporter.say(
        f"results: {out / 'results.jsonl'}" + (f"   nearest pairs: {out / 'pairs.png'}" if "copies" in row else "")
    )
