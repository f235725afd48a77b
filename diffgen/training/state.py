"""What a checkpoint holds beside the averaged weights, so that training can go on exactly where it stopped."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffgen.build import MODEL_SIDE
from diffgen.core.errors import CheckpointError
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import Tensors

FREE_TO_CHANGE = ("run_dir", "train.resume", "plugins", "logger")
"""Keys that say where a run is kept and who is told of it; a difference is not worth telling."""

AVERAGES = ("ema.profile", "ema.sigma_rel")
"""Keys that say which averages there are: one that is new would know nothing of the run so far."""


def gather(trained: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and optimizer moments under flat names: `model.<weight>` and `optimizer.model.<weight>/<moment>`."""
    tensors: Tensors = dict(trained.state_dict())
    for name, parameter in trained.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}/{key}"] = value
    return tensors


def apply(
    tensors: Tensors, trained: nn.ModuleDict, optimizer: torch.optim.Optimizer, device: torch.device, folder: Path
) -> None:
    """Put back what `gather` took; a learned weighting that the run did not have before starts anew.

    Raises:
        CheckpointError: The weights do not fit the network, or the moments the weights.
        KeyError: The moments of a weight are missing.
    """
    for part, module in trained.items():
        weights = _below(tensors, f"{part}.")
        if part == "model" or weights:
            check_fit(module, weights, folder)
            module.load_state_dict(weights)
    for name, parameter in trained.named_parameters():
        moments = _below(tensors, f"optimizer.{name}/")
        if not moments and name.startswith("model."):
            raise KeyError(f"optimizer.{name}")
        for key, value in moments.items():
            if value.shape not in (parameter.shape, ()) or not value.is_floating_point():
                raise CheckpointError(f"{folder}: the optimizer's {key[:80]!r} of {name} has another shape or type")
        optimizer.state[parameter] = {key: _placed(value, parameter, device) for key, value in moments.items()}


def _placed(moment: Tensor, parameter: Tensor, device: torch.device) -> Tensor:
    """A moment on the device and laid out in memory as its parameter is: fused optimizers go through both as one."""
    if moment.shape != parameter.shape:
        return moment.to(device)
    return torch.empty_like(parameter, dtype=moment.dtype, device=device).copy_(moment)


def _below(tensors: Tensors, prefix: str) -> Tensors:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


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
        keys = ", ".join(f"{key} ({then.get(key)!r} there, {now.get(key)!r} here)" for key in fixed[:5])
        raise CheckpointError(f"cannot go on from {folder}: it was trained with another {keys}")
    return [f"{key}: {then.get(key)} -> {now.get(key)}" for key in differ]


def _free(key: str) -> bool:
    return any(f"{key}.".startswith(f"{free}.") for free in FREE_TO_CHANGE)


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}
