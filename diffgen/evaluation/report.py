"""Results in words and pictures: the table of one row, and the table and plot of many."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffgen.core import plots
from diffgen.evaluation.few import too_few
from diffgen.evaluation.held_out import ADVICE

Row = Mapping[str, Any]

NAMES = {
    "fd": "Frechet distance",
    "kd": "kernel distance x 1000",
    "is": "inception score",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "agreement": "agreement with labels",
    "copies": "near-copies of training images",
    "cas": "classification accuracy score",
    "fd_frames": "Frechet distance of frames",
    "fd_pairs": "Frechet distance of pairs",
    "motion": "motion, grey levels off",
    "label": "frames read as asked",
    "identity": "one label on all frames",
    "shape": "one shape on all frames",
    "straight": "on straight lines with bounces",
    "ngram_1": "1-gram divergence, bits",
    "ngram_2": "2-gram divergence, bits",
    "ngram_3": "3-gram divergence, bits",
    "run": "longest run in training text",
    "whole": "stand whole in training text",
    "entropy": "entropy of tokens, bits",
    "right": "right",
    "new": "of these not trained on",
    "strays": "codes that no token has",
    "sequence_bits": "bits/sequence",
    "bits": "bits/dim",
    "vlb": "variational bound, bits/dim",
    "vlb_prior": "bound: prior, L_T",
    "vlb_steps": "bound: steps between",
    "vlb_decoder": "bound: decoder, L_0",
    "vlb_nfe": "bound: network calls an image",
    "denoising_test": "denoising error, held-out",
    "denoising_train": "denoising error, training images",
    "elbo": "bound, bits/dim",
    "elbo_rate": "bound: rate, KL from the prior",
    "elbo_distortion": "bound: distortion",
    "iwae": "importance-weighted bound",
    "psnr": "reconstructions: PSNR, dB",
    "ssim": "reconstructions: SSIM",
    "fd_reconstruction": "reconstructions: Frechet distance",
    "codes_used": "share of codes used",
    "active_channels": "active channels",
}
"""What stands in the first column; with Inception's features the first two are FID and KID."""

BETTER = {
    "fd": "lower",
    "kd": "lower",
    "copies": "lower",
    "fd_frames": "lower",
    "fd_pairs": "lower",
    "motion": "lower",
    "ngram_1": "lower",
    "ngram_2": "lower",
    "ngram_3": "lower",
    "run": "as held-out",
    "whole": "as held-out",
    "entropy": "as held-out",
    "strays": "lower",
    "sequence_bits": "lower",
    "bits": "lower",
    "vlb": "lower",
    "vlb_prior": "lower",
    "vlb_steps": "lower",
    "vlb_decoder": "lower",
    "vlb_nfe": "",
    "denoising_test": "lower",
    "denoising_train": "lower",
    "density": "near 1",
    "elbo": "lower",
    "elbo_rate": "",
    "elbo_distortion": "",
    "iwae": "lower",
    "fd_reconstruction": "lower",
}

FACTORS = {"kd": 1000}

FLOORS = {"test": " of held-out images", "halves": " of halves", "reconstruction": " of reconstructions"}

COLUMNS = {"test": "held-out", "halves": "halves", "reconstruction": "reconstructed"}
"""Heads of floors in the table; the last stands there for images that are made of latents."""

OF = {
    "bits": {"test": ", held-out images", "train": ", training images"},
    "vlb": {"test": "", "train": ", training"},
    "elbo": {"test": ", held-out images", "train": ", training images"},
}
"""What is added to a name: which examples a figure is of."""

IN_ONE_TABLE = (
    "ckpt",
    "images_seen",
    "sigma_rel",
    "pictures",
    "dataset",
    "extractor",
    "seed",
    "sampler",
    "steps",
    "nfe",
    "guidance",
    "images",
    "sequences",
    "clips",
)

AXES = {"nfe": "network calls (NFE)", "sigma_rel": "width of the average, sigma_rel", "images_seen": "training images"}
"""What a figure of a sweep may be drawn against; the first that differs is."""


def table(row: Row) -> Iterator[str]:
    """The figures of one row, each beside its floors, as lines of text."""
    kinds = [kind for kind in COLUMNS if kind != "reconstruction" or any(key.endswith(f"_floor_{kind}") for key in row)]
    wide = max([32, *(len(name(key, row)) + 1 for key in NAMES if key in row)])
    yield f"{'':<{wide}}{'value':>12}{''.join(f'{COLUMNS[kind]:>{_width(kind)}}' for kind in kinds)}   better"
    for key in NAMES:
        if key in row:
            floors = "".join(f"{_shown(row.get(f'{key}_floor_{kind}'), key):>{_width(kind)}}" for kind in kinds)
            error = row.get(f"{key}_error")
            note = f"  +- {FACTORS.get(key, 1) * error:.3g}" if error is not None and error < math.inf else ""
            note += ", upper bound" if key in ("bits", "sequence_bits") and "bits_draws" in row else ""
            yield f"{name(key, row):<{wide}}{_shown(row[key], key):>12}{floors}   {BETTER.get(key, 'higher')}{note}"
        if key == "cas" and "cas_real" in row:
            yield f"{'  of one trained on real images':<32}{row['cas_real']:>12.4f}"
        if key == "sequence_bits" and "sequence_entropy" in row:
            yield f"{'  of the true distribution':<32}{row['sequence_entropy']:>12.4g}"
        if key == "bits":
            for context, bits in enumerate(row.get("ngram_bits", ())):
                yield f"{f'  n-gram model, context of {context}':<32}{bits:>12.4g}"
    yield from _notes(row)


def _width(kind: str) -> int:
    """Of a column of floors."""
    return max(12, len(COLUMNS[kind]) + 2)


def _notes(row: Row) -> Iterator[str]:
    """What is to be known of some figures, or of those that are not there."""
    if left := row.get("left_out"):
        yield f"left out, for want of labels, classes or held-out images: {', '.join(left)}"
    yield from _of_latents(row)
    trained_on = any(row.get(f"{of}_of") == "train" for of in (*OF, "reconstruction"))
    if trained_on or ("denoising_train" in row and "denoising_test" not in row):
        unit = unit_in(row)
        yield f"no {unit} are held out: figures of the model are of {unit} that it was trained on; {ADVICE}"
    if rounded := row.get("rounded"):
        yield f"{rounded:,} images have values between the levels of the model: bits are of the nearest ones"
    unit = unit_in(row)
    if row.get(f"floor_{unit}", math.inf) < row.get(unit, 0):
        fewer, judged = row[f"floor_{unit}"], row[unit]
        yield f"held-out floors are of {fewer:,} {unit}, not {judged:,}: with fewer, distances rise and coverage falls"
    for why, keys in _by_reason(too_few(row)).items():
        yield f"too few {unit}: {', '.join(keys).replace('images', unit)}: {why}"


def _of_latents(row: Row) -> Iterator[str]:
    """What is to be known of reconstructions and latents."""
    if said := row.get("ssim_left_out"):
        yield str(said)
    if same := row.get("psnr_same"):
        yield f"{same:,} reconstructions are exact, and count in PSNR as if one value were one level off"
    if "codes_used" in row:
        sites, codes = row["codes_sites"], row["codes"]
        yield f"codes: {round(row['codes_used'] * codes):,} of {codes:,} at the {sites:,} sites of the images looked at"
    if rates := row.get("rate_by_channel"):
        told = ", ".join(f"{rate:.3g}" for rate in rates)
        yield f"channels of latents: {row['active_channels']} of {row['latent_channels']} active; nats in each: {told}"


def unit_in(row: Row) -> str:
    """What a row is of: images, sequences or clips."""
    return next((unit for unit in ("sequences", "clips") if unit in row), "images")


def _by_reason(reasons: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, why in reasons.items():
        figure, _, floor = key.partition("_floor_")
        found.setdefault(why, []).append(f"{NAMES[figure]}{FLOORS.get(floor, '')}")
    return found


def name(key: str, row: Row) -> str:
    """What a figure is called: FID and KID are those of Inception alone."""
    if row.get("extractor") == "inception" and key in ("fd", "kd"):
        return {"fd": "FID", "kd": "KID x 1000"}[key]
    if row.get("extractor") == "dinov2" and key == "fd":
        return "FD-DINOv2"
    if key in OF:
        of = {"sequences": "text"}.get(unit_in(row), unit_in(row))
        return row.get(f"{key}_in", NAMES[key]) + OF[key][row.get(f"{key}_of", "test")].replace("images", of)
    if key == "copies" and row.get("copies_in") == "pixels":
        return "near-copies, in pixels"
    if key == "fd":
        return f"{NAMES[key]} ({row['extractor']})"
    return NAMES[key].replace("images", unit_in(row))


def shared_name(key: str, rows: Sequence[Row]) -> str:
    """What a column of several rows is called; the general name where they are over different features."""
    names = {name(key, row) for row in rows if key in row}
    return names.pop() if len(names) == 1 else NAMES[key]


def _shown(value: float | None, key: str) -> str:
    return "" if value is None else f"{FACTORS.get(key, 1) * value:.4g}"


def many(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of a sweep: what differs between rows, and all figures."""
    facts = [key for key in IN_ONE_TABLE if len({str(row.get(key)) for row in rows}) > 1]
    figures = [key for key in NAMES if any(key in row for row in rows)]
    heads = [*facts, *(shared_name(key, rows) for key in figures)]
    cells = [
        [*(str(row.get(key, "")) for key in facts), *(_shown(row.get(key), key) for key in figures)] for row in rows
    ]
    return heads, cells


def as_text(heads: list[str], cells: list[list[str]]) -> list[str]:
    """Columns of equal width."""
    widths = [max(len(line[i]) for line in (heads, *cells)) for i in range(len(heads))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in (heads, *cells)]


def as_json(row: Row) -> str:
    """A line of JSON, which has no word for what is not a number: null."""

    def plain(value: Any) -> Any:
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return {key: plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value

    return json.dumps(plain(row), allow_nan=False) + "\n"


def as_csv(heads: list[str], cells: list[list[str]]) -> str:
    """Comma-separated values."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([heads, *cells])
    return buffer.getvalue()


def plot(rows: Sequence[Row]) -> bytes | None:
    """The first distance against what was swept, a curve for each sampler and whatever else differs.

    Returns:
        A picture, or None where the rows do not differ in anything that makes an axis.
    """
    key = next((key for key in NAMES if all(key in row for row in rows)), None)
    swept = [fact for fact in (*AXES, "guidance") if len({str(row.get(fact)) for row in rows}) > 1]
    axis = next((fact for fact in AXES if fact in swept and all(row.get(fact) is not None for row in rows)), None)
    if key is None or axis is None:
        return None
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        others = [f"{fact.replace('_', ' ')} {row.get(fact)}" for fact in swept if fact != axis]
        points.setdefault(", ".join([str(row["sampler"]), *others]), []).append(
            (row[axis], FACTORS.get(key, 1) * row[key])
        )
    return plots.curves({label: sorted(those) for label, those in points.items()}, AXES[axis], shared_name(key, rows))
