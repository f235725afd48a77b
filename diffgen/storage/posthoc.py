"""Another length of the average, after the run (Karras et al. 2024, sec. 3.2).

A run with `ema.profile=power` keeps a few averages of each checkpoint. Each is an integral of the weights over the run
so far under a known profile, so a combination of them is one under the combined profile: what comes nearest to the
profile that is wanted, in the sense of least squares, gives the weights that come nearest to its average.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffgen.core.errors import CheckpointError
from diffgen.nets.ema import Power, gamma_of
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import Tensors

T = TypeVar("T")

WORST = 0.1
"""Share of a profile that a combination may miss; what is further off would not be the average that was asked for."""


@dataclass(frozen=True)
class Average:
    """One kept average: its time in images, and the width of its profile."""

    images: int
    sigma_rel: float


def of_length(saved: Checkpoint, sigma_rel: float | None) -> Checkpoint:
    """A checkpoint with another length of its average; null leaves it as it is.

    Args:
        saved: A checkpoint of a run trained with `ema.profile=power`, in that run's directory.
        sigma_rel: The width that is wanted, in [0.005, 0.28].

    Raises:
        CheckpointError: The run kept no such averages, or too few to come near.
    """
    own = facts(saved.config)
    if sigma_rel is None or own == Power(sigma_rel).facts():
        return saved
    if own.get("profile") != "power":
        raise CheckpointError(
            f"ema.sigma_rel={sigma_rel:g} needs a run trained with ema.profile=power, and that of {saved.path} was "
            "not: leave ema.sigma_rel out"
        )
    if saved.images < 1:
        raise CheckpointError(f"{saved.path} has seen no images: there is nothing to average")
    files = _averages(saved)
    found, missed = combination(list(files.values()), Average(saved.images, sigma_rel))
    if missed > WORST and len(files) == 1:
        raise CheckpointError(
            f"ema.sigma_rel={sigma_rel:g} is made from all averages of a run, and {saved.path} stands alone: "
            "give ckpt=RUN, or a checkpoint inside its folder checkpoints"
        )
    if missed > WORST:
        tracked = sorted({average.sigma_rel for average in files.values()})
        raise CheckpointError(
            f"ema.sigma_rel={sigma_rel:g} cannot be made from the {len(files)} averages of widths {tracked} beside "
            f"{saved.path}: {missed:.0%} of its profile would be missed; choose a width nearer to these, a later "
            "checkpoint, or a smaller train.checkpoint_every for the next run"
        )
    weights = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in saved.weights.items()}
    for path, share in zip(files, found.tolist(), strict=True):
        _add(weights, _without(path, checkpoint.load), share)
    made = {name: _as(weight, saved.weights[name].dtype) for name, weight in weights.items()}
    how = {**Power(sigma_rel).facts(), "made_from": len(files), "missed": round(missed, 4)}
    return replace(saved, weights=made, config={**saved.config, "ema": how})


def facts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's config says of its average; empty where it says nothing that makes sense."""
    kinds = {"profile": str, "halflife": float, "ramp": float, "sigma_rel": float, "made_from": int, "missed": float}
    said = config.get("ema")
    if not isinstance(said, Mapping) or not all(isinstance(said[key], kinds.get(key, ())) for key in said):
        return {}
    sane = said.get("profile") != "power" or 0.001 < said.get("sigma_rel", 0) < 0.288
    return dict(said) if sane else {}


def _averages(saved: Checkpoint) -> dict[Path, Average]:
    """All averages of the run up to this checkpoint."""
    found = {}
    for folder in checkpoint.numbered(saved.path.resolve().parent.parent):
        if int(folder.name) <= saved.images:
            for path in sorted(folder.glob("model*.safetensors")):
                about = _without(path, checkpoint.describe)
                said = facts(about.config)
                if about.images > 0 and said.get("profile") == "power":
                    found[path] = Average(about.images, said["sigma_rel"])
    return found or {saved.path: Average(saved.images, facts(saved.config)["sigma_rel"])}


def _as(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A sum in its own type; what counts is whole."""
    return weight.to(dtype) if dtype.is_floating_point else weight.round().to(dtype)


def _without(path: Path, read: Callable[[Path], T]) -> T:
    """What is read from one of many averages; an error says that the others would do."""
    try:
        return read(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; ema.sigma_rel can do without it: move it away") from None


def _add(total: Tensors, average: Checkpoint, share: float) -> None:
    """Add a share of one average, in place."""
    if {name: weight.shape for name, weight in average.weights.items()} != {n: w.shape for n, w in total.items()}:
        raise CheckpointError(f"{average.path} is of another network than the checkpoint beside it")
    for name, weight in average.weights.items():
        total[name].add_(weight, alpha=share)


def combination(averages: Sequence[Average], wanted: Average) -> tuple[Tensor, float]:
    """The shares of averages that together come nearest to the one that is wanted, and what they miss of it.

    Args:
        averages: What there is, at times > 0 and not after the wanted time.
        wanted: What to come near to.

    Returns:
        Shares, float64 [len(averages)], that sum to 1; and the distance of the profiles over the wanted one's norm.
    """
    overlaps = torch.tensor([[overlap(a, b) for b in averages] for a in averages], dtype=torch.float64)
    aims = torch.tensor([overlap(a, wanted) for a in averages], dtype=torch.float64)
    # not inverted: averages of neighbouring times are nearly the same
    shares = torch.linalg.lstsq(overlaps, aims[:, None], rcond=1e-12, driver="gelsd").solution[:, 0]
    shares = shares / shares.sum()
    whole = overlap(wanted, wanted)
    missed = whole - 2 * shares @ aims + shares @ overlaps @ shares
    return shares, math.sqrt(max(float(missed) / whole, 0.0))


def overlap(a: Average, b: Average) -> float:
    """Inner product of two profiles (gamma + 1) / T (t / T)^gamma on [0, T], per image (ibid., app. C)."""
    gamma_a, gamma_b = gamma_of(a.sigma_rel), gamma_of(b.sigma_rel)
    power = gamma_b if a.images < b.images else -gamma_a
    product = (gamma_a + 1) * (gamma_b + 1) * (a.images / b.images) ** power
    return product / ((gamma_a + gamma_b + 1) * max(a.images, b.images))
