"""What a checkpoint holds beside the averaged weights, so that training can go on exactly where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffgen.build import MODEL_SIDE
from diffgen.core.errors import CheckpointError, typed
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import Tensors
from diffgen.training import moments

FREE_TO_CHANGE = ("run_dir", "train.resume", "plugins", "logger")
"""Keys that say where a run is kept and who is told of it; a difference is not worth telling."""

AVERAGES = ("ema.profile", "ema.sigma_rel")
"""Keys that say which averages there are: one that is new would know nothing of the run so far."""


def gather(learned: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and optimizer moments under flat names: `model.<weight>` and `optimizer.model.<weight>/<moment>`."""
    return {**learned.state_dict(), **moments.gather(optimizer, [*learned.named_parameters()])}


def apply(
    tensors: Tensors, learned: nn.ModuleDict, optimizer: torch.optim.Optimizer, folder: Path, *, stepped: bool
) -> None:
    """Put back what `gather` took; a learned weighting that the run did not have before starts anew.

    Args:
        tensors: What `gather` gave.
        learned: All that has parameters.
        optimizer: Of these; it has made no step.
        folder: Where they are from, for sentences.
        stepped: Whether the run had made a step that was not skipped.

    Raises:
        CheckpointError: The weights do not fit the network, or the moments the optimizer.
    """
    saved = {part: moments.below(tensors, f"{part}.") for part in learned}
    known = [part for part in learned if part == "model" or saved[part]]
    named = [pair for part in known for pair in learned[part].named_parameters(prefix=part)]
    moments.restore(optimizer, named, tensors, folder, stepped=stepped)
    for part in known:
        check_fit(learned[part], saved[part], folder)
        learned[part].load_state_dict(saved[part])


def compare(here: Mapping[str, Any], there: Mapping[str, Any], folder: Path) -> list[str]:
    """What differs between this run's config and that of the checkpoint it goes on from, in words.

    Raises:
        CheckpointError: The parts that give the weights their meaning differ; the sentence lists the keys.
    """
    now, then = flatten(here), flatten(there)
    differ = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key) and not _free(key)]
    held = (*MODEL_SIDE, *AVERAGES) if "power" in (now.get(AVERAGES[0]), then.get(AVERAGES[0])) else MODEL_SIDE
    fixed = [key for key in differ if key in held or key.split(".")[0] in held]
    if fixed:
        keys = ", ".join(f"{key} ({typed(then.get(key))} there, {typed(now.get(key))} here)" for key in fixed[:5])
        raise CheckpointError(f"cannot go on from {folder}: it was trained with another {keys}")
    return [f"{key}: {_shown(then.get(key))} -> {_shown(now.get(key))}" for key in differ]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else typed(value)


def _free(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}
