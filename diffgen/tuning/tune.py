"""`diffgen-tune`: the table of what can be found for a trained model, and the command."""

from collections.abc import Mapping
from typing import Any

from diffgen.core.processes import accelerated
from diffgen.core.registry import bind
from diffgen.core.settings import TuneSettings
from diffgen.tuning import covariance, grid, neon
from diffgen.tuning.job import TUNES, Job

__all__ = ["TUNES", "covariance", "grid", "neon", "tune"]


def tune(
    settings: TuneSettings,
    task: Mapping[str, Any],
    sampler: Mapping[str, Any],
    extractor: Mapping[str, Any],
    dataset: tuple[Mapping[str, Any], str],
) -> None:
    """Find what the task is for, tell it, and write it.

    Args:
        settings: Checked settings.
        task: Config of a row of `TUNES`.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        extractor: Config of a row of `EXTRACTORS`.
        dataset: Config of the data set, and what to say where its examples are not found.

    Raises:
        DiffgenError: Something cannot be used.
    """
    with accelerated(settings.precision) as accelerator:
        bind(TUNES, task)(Job.of(settings, sampler, extractor, dataset, accelerator))
