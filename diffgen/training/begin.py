"""A new run that begins from another's averaged weights: what fits is taken, the rest is new, and it is said."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from diffgen.build import MODEL_SIDE, Trained, restore
from diffgen.core.console import count
from diffgen.core.errors import CheckpointError
from diffgen.evaluation.held_out import inherit, lineage
from diffgen.nets.base import DataShape
from diffgen.nets.layers import Embedding, carry_channels, carry_classes
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import Tensors
from diffgen.training.changes import differences, few
from diffgen.training.parts import Parts

LEAST = 0.5
"""Share of the network's numbers that must fit, else it is another network."""

KIND = ("data.kind.name", "data.kind.symbols", "data.kind.tokenizer")
MEANING = (*(part for part in MODEL_SIDE if part != "data"), *KIND, "data.kind.hash", "data.size")
"""Parts of a config by which weights mean something else, though they fit."""

SAME = ("model", "schedule", "parameterization", "denoiser")
"""Parts that a run may share with the one that it begins from; `method=ect` and `reflow` bring all of them."""

STEM = re.compile(r"(^|\.)stem\.(0\.)?weight$")
"""In the name of a weight: it takes in x, and the channels behind x that tell what is known of x0."""


@dataclass(frozen=True)
class Fit:
    """What a network takes from another's weights.

    Attributes:
        taken: Weights by name, on the CPU.
        numbers: How many numbers in them are the other's.
        by_name: The classes whose part of each weight of labels was found by name.
        untold: Names of the weights that take in what the other was not told: that part is 0.
    """

    taken: Tensors
    numbers: int
    by_name: dict[str, list[str]]
    untold: list[str]


def begin(path: str, parts: Parts) -> str:
    """Put a checkpoint's averaged weights into a run's network and its averages; the header's row.

    Clips may begin from pictures, since their networks may see each frame as one. The run's own checkpoints note which
    data these weights have seen.

    Args:
        path: What `ckpt` of `diffgen-sample` takes.
        parts: Of a run that has made no step.

    Raises:
        CheckpointError: It is no checkpoint, of another kind of data, or under half of the network fits.
        UsageError: It is a folder of several runs.
    """
    saved = checkpoint.load(Path(path), "train.init")
    apart = not saved.autoencoder and saved.config.get("data", {}).get("kind", {}).get("name") == "latents"
    saved = supplied(saved, parts.config["latent"]["path"]) if apart else saved
    theirs, ours = restore(saved), parts.sampling.trained
    frames = ours.kind.moving and theirs.kind.judged and not theirs.objective.discrete
    if len(theirs.shape.size) != len(ours.shape.size) and not frames:
        said = f"made for {theirs.kind.unit} of {theirs.shape}, and this run's are {ours.kind.unit} of {ours.shape}"
        raise CheckpointError(f"train.init={path!r} is of another kind of data: it was {said}")
    other = differences(parts.config, saved.config, MEANING)
    found = fit(parts.network, saved.weights, ours, theirs)
    own = parts.network.state_dict()
    size = sum(weight.numel() for weight in own.values())
    if found.numbers < LEAST * size:
        raise CheckpointError(
            f"train.init={path!r} is of another network: {len(found.taken)} of {len(own)} weights fit, "
            f"{found.numbers / size:.0%} of the numbers; it was made with another {other or 'model'}"
        )
    parts.network.load_state_dict({**own, **found.taken})
    for ema in parts.emas:
        ema.averaged.load_state_dict(parts.network.state_dict())
    inherit(parts.model_config, [*lineage(saved.config), *parts.began_from])
    alike = [part for part in SAME if parts.config[part] == saved.config[part]]
    rows = [*told(saved, own, found, size), alike and f"with its {', '.join(alike)}", other and f"another {other}"]
    return "; ".join(row for row in rows if row)


def _classes(trained: Trained) -> Sequence[str]:
    """Names of the classes; before they had names, their numbers."""
    return trained.classes or [str(number) for number in range(trained.shape.num_classes)]


def fit(network: nn.Module, weights: Tensors, ours: Trained, theirs: Trained) -> Fit:
    """Of weights, those that have the name, shape and type of one of the network's; of labels, the classes by name."""
    own = network.state_dict()
    taken = {name: weights[name] for name, weight in own.items() if name in weights and _alike(weights[name], weight)}
    untold = []
    for name in filter(weights.__contains__, _of_known(own, ours.shape, theirs.shape)):
        taken.pop(name, None)
        if _widens(own[name], weights[name], ours.shape, theirs.shape):
            taken[name] = carry_channels(own[name].cpu(), weights[name])
            untold.append(name)
    by_name = {}
    here, there = _classes(ours), _classes(theirs)
    pairs = [(number, there.index(name)) for number, name in enumerate(here) if name in there]
    for name in filter(weights.__contains__, _of_labels(network) if list(here) != list(there) else []):
        taken.pop(name, None)
        if pairs and weights[name].dtype == own[name].dtype and len(weights[name]) == len(own[name]):
            taken[name] = carry_classes(own[name].cpu(), weights[name], pairs)
            by_name[name] = [here[number] for number, _ in pairs]
    numbers = sum(weights[name].numel() for name in taken if name not in by_name)
    numbers += sum(len(own[name]) * len(names) for name, names in by_name.items())
    return Fit(taken, numbers, by_name, untold)


def _of_known(own: Tensors, ours: DataShape, theirs: DataShape) -> list[str]:
    """Names of the weights that take in what is known, where one network is told of it and the other is not."""
    return [name for name in own if STEM.search(name)] if ours.given != theirs.given else []


def _widens(own: Tensor, weight: Tensor, ours: DataShape, theirs: DataShape) -> bool:
    """Whether the network takes in, ahead of what it is told, what the other did."""
    taken, more = own.shape[1] * ours.channels, weight.shape[1] * (ours.channels + ours.given)
    rest = own.select(1, 0).shape == weight.select(1, 0).shape and own.dtype == weight.dtype
    return not theirs.given and ours.channels == theirs.channels and taken == more and rest


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype


def _of_labels(network: nn.Module) -> list[str]:
    """Names of the weights that have a column for each class."""
    modules = network.named_modules()
    return [f"{name}.label.weight" for name, layer in modules if isinstance(layer, Embedding) and layer.label]


def told(saved: Checkpoint, own: Tensors, found: Fit, size: int) -> list[str]:
    """What was taken, what is new and what was not used, for the header."""
    counted = f"{len(found.taken)} of {len(own)} weights ({count(found.numbers)} of {count(size)} numbers)"
    new = [_new(name, weight, saved.weights.get(name)) for name, weight in own.items() if name not in found.taken]
    left = [name for name in saved.weights if name not in own]
    rows = [f"{saved.path} at {saved.images:,} images: {counted}"]
    for name, classes in found.by_name.items():
        rows.append(f"{name} by the names of {len(classes)} of {own[name].shape[1]} classes: {few(classes)}")
    rows += [f"{name} takes in what is known of x0 from 0 on" for name in found.untold]
    return [*rows, f"new: {few(new)}" if new else "", f"not used: {few(left)}" if left else ""]


def _new(name: str, own: Tensor, there: Tensor | None) -> str:
    was = "" if there is None or _alike(own, there) else f" (was {list(there.shape)})"
    return f"{name} {list(own.shape)}{was}"
