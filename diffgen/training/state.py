"""What a checkpoint holds beside the averaged weights, so that training can go on exactly where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffgen.build import MODEL_SIDE
from diffgen.core.errors import CheckpointError
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import Tensors
from diffgen.training import moments

FREE_TO_CHANGE = ("run_dir", "train.resume", "plugins")
"""Keys that say where a run is kept; a difference is not worth telling."""

AVERAGES = ("ema.profile", "ema.sigma_rel")
"""Keys that say which averages there are: one that is new would know nothing of the run so far."""


def gather(trained: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and optimizer moments under flat names: `model.<weight>` and `optimizer.model.<weight>/<moment>`."""
    return {**trained.state_dict(), **moments.gather(optimizer, [*trained.named_parameters()])}


def apply(tensors: Tensors, trained: nn.ModuleDict, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Put back what `gather` took; a learned weighting that the run did not have before starts anew.

    Raises:
        CheckpointError: The weights do not fit the network, or the moments the optimizer.
    """
    saved = {part: moments.below(tensors, f"{part}.") for part in trained}
    known = [part for part in trained if part == "model" or saved[part]]
    named = [pair for part in known for pair in trained[part].named_parameters(prefix=part)]
    moments.restore(optimizer, named, tensors, folder)
    for part in known:
        check_fit(trained[part], saved[part], folder)
        trained[part].load_state_dict(saved[part])


def compare(here: Mapping[str, Any], there: Mapping[str, Any], folder: Path) -> list[str]:
    """What differs between this run's config and that of the checkpoint it goes on from, in words.

    Raises:
        CheckpointError: The parts that give the weights their meaning differ; the sentence lists the keys.
    """
    now, then = flatten(here), flatten(there)
    differ = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key) and key not in FREE_TO_CHANGE]
    held = (*MODEL_SIDE, *AVERAGES) if "power" in (now.get(AVERAGES[0]), then.get(AVERAGES[0])) else MODEL_SIDE
    fixed = [key for key in differ if key in held or key.split(".")[0] in held]
    if fixed:
        keys = ", ".join(f"{key} ({then.get(key)!r} there, {now.get(key)!r} here)" for key in fixed[:5])
        raise CheckpointError(f"cannot go on from {folder}: it was trained with another {keys}")
    return [f"{key}: {then.get(key)} -> {now.get(key)}" for key in differ]


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}
