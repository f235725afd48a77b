"""A time grid for few network calls, and a table of what it is worth."""

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgen.core.console import unit_of
from diffgen.core.errors import require
from diffgen.core.paths import setting
from diffgen.core.randomness import mix
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.sampling.setup import check_guidance, make_sampling, resolve_sampler
from diffgen.sampling.words import shown_guidance
from diffgen.storage import grid_file
from diffgen.tuning.job import TUNES, Job
from diffgen.tuning.search import PURE, Search

MAX_SEEN = 2**20
"""Values of all images whose paths are kept, of each some kilobytes."""

MOST = 32
"""Steps; with more the plain spacings are as good."""

PLAIN = ("uniform", "karras", "logsnr")
"""Spacings that a found grid is compared with."""


@TUNES.register("grid")
def grid(job: Job, *, n: int) -> None:
    """Find a grid, check it by other images, and write it.

    Args:
        job: With the sampler and its steps.
        n: Images to look at.
    """
    most = max(MAX_SEEN // math.prod(job.trained.shape.size), 1)
    require(1 <= n <= most, f"task.n={n} must be in [1, {most}]: the paths of all images are kept")
    sampler = _sampler(job)
    name, steps = str(sampler["name"]), int(sampler["steps"])
    kept = grid_file.place(job.saved.path, name, steps)
    out = Path(job.settings.out) / kept.name if job.settings.out else kept
    job.check_free(out)
    labels = cycle_labels(n, job.trained.shape.num_classes)
    check_guidance(job.settings, labels, job.trained.kind.unit)
    sampling = make_sampling(job.settings.sampling(n), sampler, job.saved, job.trained, job.accelerator.device)
    _header(job, sampling, name, n)
    started = time.monotonic()
    with job.accelerator.autocast():
        search = Search(sampling, sampler, labels, job.settings.seed)
        with job.reporter.progress(1, 0) as line:
            found = search.found(lambda done, of: line.update(done / of, f"{done} of {of} grids"))
        check = Search(sampling, sampler, labels, mix(job.settings.seed, "grid", 1))
        table = _errors(check, sampler, found)
    about = {"sampler": name, "steps": len(found["sigmas"]), "n": n, "seed": job.settings.seed, "errors": table}
    about |= {"guidance": sampling.guidance.scale, "images_seen": job.saved.images}
    grid_file.save(out, job.saved.config["schedule"], found, about)
    job.reporter.say("\n".join(_told(table, found, job.trained.kind.unit)))
    job.reporter.say(f"grid: {out} ({time.monotonic() - started:.0f} s)")
    where = grid_file.KEPT if out == kept else str(out)
    asked = f"sampler={name} sampler.steps={steps} {setting('sampler.spacing', where)}{job.guided()}"
    job.reporter.say(f"next: diffgen-sample {setting('ckpt', str(job.settings.ckpt))} {asked}")


def _sampler(job: Job) -> dict[str, Any]:
    """The sampler's config.

    Raises:
        UsageError: It is one without a grid to find.
    """
    told = f"task=grid follows the ODE of E[x0 | x_t], and this model {job.trained.objective.makes}"
    require(job.trained.objective.estimates, told)
    sampler = resolve_sampler(job.sampler, job.saved, job.trained.kind)
    given = grid_file.laid_out(job.sampler)
    require(not given, f"task=grid finds {' and '.join(given)}: leave out what is to be found")
    sampler = grid_file.without_grid(sampler)
    name, steps = sampler.get("name"), sampler.get("steps")
    still = sorted(row for row, facts in SAMPLERS.facts.items() if facts.order and not facts.noise)
    told = f"sampler={name} does not follow the path of the ODE in steps of a grid: choose one of [{', '.join(still)}]"
    require(name in still and not sampler.get("eta") and not sampler.get("s_churn"), told)
    require(
        isinstance(steps, int) and 2 <= steps <= MOST, f"sampler.steps={steps} must be in [2, {MOST}] for task=grid"
    )
    return sampler


def _header(job: Job, sampling: Sampling, name: str, n: int) -> None:
    keeps = job.trained.moments is not None
    starts = "noise, and in closed form" if keeps else "noise (a start in closed form needs train.covariance=true)"
    job.reporter.header(
        f"diffgen-tune: {job.saved.path}",
        {
            "task": f"grid, {n} {unit_of(n, job.trained.kind.unit)}, seed {job.settings.seed}",
            "sampler": f"{name}, {len(sampling.ts) - 1} steps, {sampling.expected_nfe()} network calls",
            "starts": starts,
            "guidance": shown_guidance(sampling.guidance, job.settings.guide),
        },
    )


def _errors(check: Search, sampler: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, float]:
    """The error of the median image by each grid, of images that none was chosen by."""
    configs = {spacing: {**sampler, "spacing": spacing} for spacing in PLAIN} | {"found": dict(found)}
    return {name: round(float(check.error(config).median()), 6) for name, config in configs.items()}


def _told(table: Mapping[str, float], found: Mapping[str, Any], unit: str) -> list[str]:
    """The errors, and what was found."""
    first = "noise" if found["skip_to"] is None else f"a start in closed form, down to {found['skip_to']:.3g}"
    analytic = ", the first call in closed form" if found["first_step"] == "analytic" else ""
    levels = ", ".join("pure noise" if level >= PURE else f"{level:.3g}" for level in found["sigmas"])
    plain = min(PLAIN, key=lambda spacing: table[spacing])
    no_better = f"this is no better than sampler.spacing={plain}: look at more {unit}, task.n"
    return [
        f"distance to the exact solution (RMS of a value, median of {unit} not looked at before):",
        *(f"{spacing:>10}  {error:.4f}" for spacing, error in table.items()),
        f"from {first}{analytic}: sigma/alpha {levels}",
        *([no_better] if table["found"] >= table[plain] else []),
    ]
