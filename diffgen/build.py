"""From plain data to objects."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, UsageError, require
from diffgen.core.registry import bind, build, conform, named
from diffgen.data import Source
from diffgen.data.kinds import KINDS, Kind
from diffgen.data.latents import AutoencoderNetwork, Latents
from diffgen.data.opening import open_splits
from diffgen.data.splits import Splits
from diffgen.diffusion import knowing
from diffgen.diffusion.codec import Codec
from diffgen.diffusion.denoiser import Denoiser, Network
from diffgen.diffusion.gaussian import LARGEST, Gaussian, Moments
from diffgen.diffusion.masking import Predictor
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.schedules import SCHEDULES
from diffgen.diffusion.weightings import WEIGHTINGS, Weighting
from diffgen.nets import AUTOENCODERS, MODELS, DataShape
from diffgen.nets.one_hot import OneHot, one_hot
from diffgen.objectives import OBJECTIVES, Objective
from diffgen.storage import pairs  # noqa: F401  a row of DATASETS
from diffgen.storage.autoencoder_file import Found
from diffgen.storage.checkpoint import Checkpoint, assign
from diffgen.storage.tensor_file import Tensors

Config = Mapping[str, Any]

MODEL_SIDE = ("data", "model", "schedule", "parameterization", "denoiser", "objective")
"""The parts of a config that a checkpoint carries and that decide what its weights mean."""

MAX_VALUES = 2**22
"""Of one example; a network of a few kilobytes runs on images of any size, so its weights bound no memory."""

LONGEST_SIDE = 4096

Frame = Denoiser | Predictor | Codec
"""What stands around a network, by its objective."""


def make_dataset(config: Config) -> Source:
    """The examples of `config["dataset"]` to train on."""
    return make_splits(config).train


def make_splits(config: Config) -> Splits:
    """The examples of `config["dataset"]` to train on, and those to judge by, as `config["objective"]` knows them.

    Those to judge by are its own test split, or what `held_out` says: a share of the examples, chosen by
    `held_out_seed`, or the folder or file of others, read by the same settings.

    Raises:
        UsageError: A setting is wrong.
        DataError: The examples cannot be read, or those held out are of another size or of unknown classes.
    """
    splits = open_splits(config["dataset"])
    if "objective" not in config:
        return splits
    kind = splits.train.kind
    suited = build(OBJECTIVES, config["objective"]).suited(kind)
    return splits if suited == kind else splits.known_as(suited)


def data_config(
    source: Source, classes: list[str], augment_labels: int, given: int = 0, *, spans: bool = False
) -> dict[str, Any]:
    """What a run's config, and so a checkpoint, says of its data: plain data for `data_shape`.

    Args:
        source: The data set.
        classes: Those that the network is told of.
        augment_labels: Numbers by which it is told of an augmentation.
        given: Channels by which it is told of a part of x0.
        spans: Whether it is told how far a step goes.
    """
    kind = named(KINDS, source.kind)
    shape = {"size": list(source.shape.size), "num_classes": len(classes), "augment_labels": augment_labels}
    more = {**({"given": given} if given else {}), **({"spans": True} if spans else {})}
    return {"kind": kind, **shape, **more, "classes": classes}


def data_shape(config: Config) -> DataShape:
    """The shape of `config["data"]`; what a checkpoint does not say has the shape's own defaults.

    Raises:
        UsageError: It is out of range, or not what `data_config` gives.
    """
    defaults = {field.name: field.default for field in fields(DataShape) if field.default is not MISSING}
    hints = {**DataShape.__annotations__, "kind": Any, "classes": tuple[str, ...]}
    del defaults["vocabulary"], hints["vocabulary"]  # the kind has it
    data = conform("data", hints, {**defaults, "classes": [], **config["data"]})
    kind: Kind = build(KINDS, data.pop("kind"))
    classes = data.pop("classes")
    shape = DataShape(**data, vocabulary=kind.vocabulary)
    size, num_classes = shape.size, shape.num_classes
    sane = all(1 <= side <= LONGEST_SIDE for side in size) and 1 <= len(size) <= 4 and math.prod(size) <= MAX_VALUES
    if not (sane and 0 <= num_classes <= 100_000 and 0 <= shape.augment_labels <= 64):
        raise UsageError(
            f"data of {shape} and {num_classes} classes is out of range: dataset.size must "
            f"give at most {MAX_VALUES:,} values and sides of {LONGEST_SIDE}, and there may be 100,000 classes"
        )
    given = knowing.channels(shape.channels)
    require(
        shape.given in (0, given),
        f"data.given={shape.given} must be 0, or {given} here, which tell of two known frames; networks that were told "
        "of one have to be trained anew",
    )
    if len(classes) not in (0, num_classes):
        raise UsageError(f"data has {num_classes} classes but {len(classes)} names")
    return shape


def make_model(config: Config) -> nn.Module:
    """The network of `config["model"]` for the data shape of `config["data"]`."""
    shape, row = data_shape(config), MODELS.get(str(config["model"].get("name")))
    if not shape.vocabulary or getattr(row, "takes_tokens", False):
        network: nn.Module = build(MODELS, config["model"], shape)
        hears = not shape.spans or "span" in inspect.signature(network.forward).parameters
        told = f"model.name={config['model'].get('name')} is told of no `span`, which objective=mean_flow needs"
        require(hears, f"{told}: choose model=unet_tiny, dit_tiny or mlp, say")
        return network
    return OneHot(build(MODELS, config["model"], one_hot(shape)), shape.vocabulary)


def make_denoiser(config: Config, model: Network, given: int = 0) -> Denoiser:
    """The denoiser around a network; `given` channels tell it what is known."""
    return Denoiser(
        model,
        build(SCHEDULES, config["schedule"]),
        bind(PARAMETERIZATIONS, config["parameterization"]),
        **conform("denoiser", {"sigma_data": float, "scale_input": bool}, config["denoiser"]),
        self_condition=config["model"].get("self_condition") is True,
        given=given,
    )


def make_weighting(config: Config) -> Weighting:
    """The weighting of `config["weighting"]`: a function, or a module whose parameters are to be trained."""
    row = bind(WEIGHTINGS, config["weighting"])
    return build(WEIGHTINGS, config["weighting"]) if inspect.isclass(row.func) else row


@dataclass(frozen=True)
class Trained:
    """A network with all that gives its numbers a meaning, as a config names it."""

    kind: Kind
    shape: DataShape
    classes: tuple[str, ...]
    objective: Objective
    denoiser: Any
    """The frame: a `Denoiser`, of tokens a `Predictor`, of an autoencoder a `Codec`."""
    noise_size: tuple[int, ...]
    """Of the noise that an example is drawn from."""
    moments: Moments | None = None
    """Of the training examples, where they are kept."""

    @cached_property
    def gaussian(self) -> Gaussian:
        """What is known of all examples together: their moments, or that they have the deviation `sigma_data`."""
        return Gaussian.of(self.moments) if self.moments else Gaussian.isotropic(self.denoiser.sigma_data)


def make_trained(
    config: Config, network: Network, kind: Kind | None = None, moments: Mapping[str, Tensor] | None = None
) -> Trained:
    """The kind, shape, objective and denoiser of a config around a network.

    Args:
        config: Of a run or a checkpoint.
        network: In training or trained.
        kind: The config's own, with what it needs beside its settings; None: built from these.
        moments: Those of the training examples, by name, where they are kept.

    Raises:
        UsageError: A part is unknown or out of range.
    """
    kind = build(KINDS, config["data"].get("kind")) if kind is None else kind
    objective = build(OBJECTIVES, config["objective"])
    shape = data_shape(config)
    kind.check(shape.size)
    learned = "tokens" if objective.discrete else "real numbers"
    require(bool(kind.vocabulary) == objective.discrete, f"objective is for {learned}, and data.kind has others")
    frame = make_frame(config, objective, shape, network)
    classes, noise = tuple(config["data"].get("classes", ())), noise_size(network, shape)
    return Trained(kind, shape, classes, objective, frame, noise, Moments(**moments) if moments else None)


def noise_size(network: Network, shape: DataShape) -> tuple[int, ...]:
    """Of the noise that an example is drawn from: x0's own, and of an autoencoder that of its latents."""
    size: tuple[int, ...] = getattr(network, "latent_size", shape.size)
    return size


def make_frame(config: Config, objective: Objective, shape: DataShape, network: Network) -> Frame:
    """What stands around a network."""
    if objective.discrete:
        target = config["parameterization"].get("name")
        told = "objective=unmask has a network that says what tokens are: parameterization=x0"
        require(target == "x0", f"parameterization={target} is of Gaussian noise, and {told}")
        return Predictor(network, build(SCHEDULES, config["schedule"]), shape.vocabulary)
    encodes = hasattr(MODELS.get(str(config["model"].get("name"))), "encode")
    told = f"model.name={config['model'].get('name')} is an autoencoder, which method=vae or fsq learns"
    require(objective.codes or not encodes, told)
    if objective.codes:
        for part, only in (("schedule", "rectified_flow"), ("parameterization", "x0")):
            told = f"{part}={config[part].get('name')} is of Gaussian noise, and objective=autoencode has none of it"
            require(config[part].get("name") == only, f"{told}: leave it to method=vae or fsq")
        told = f"objective=autoencode learns an autoencoder, and model.name={config['model'].get('name')} is none"
        require(encodes, f"{told}: model=vae_tiny, vae_f4 or vae_f8")
        return Codec(network, build(SCHEDULES, config["schedule"]))
    if objective.spans:
        _check_straight(config, shape)
    return make_denoiser(config, network, shape.given)


def _check_straight(config: Config, shape: DataShape) -> None:
    """Require the straight path by its own clock, and a network that is told how far a step on it goes.

    Raises:
        UsageError: It is something else.
    """
    for part, only in (("schedule", "rectified_flow"), ("parameterization", "flow")):
        told = f"{part}={config[part].get('name')} has no mean velocity that objective=mean_flow could learn"
        require(config[part].get("name") == only, f"{told}: {part}={only}")
    shift = config["schedule"].get("shift")
    require(shift == 1, f"schedule.shift={shift} is another clock than objective=mean_flow goes by: schedule.shift=1")
    sees = config["model"].get("self_condition") is True
    require(not sees, "model.self_condition=true shows a network what objective=mean_flow has none of: give false")
    require(shape.spans, "data.spans must be true for objective=mean_flow, whose network is told how far a step goes")


def restore(checkpoint: Checkpoint) -> Trained:
    """What a checkpoint holds, its network in evaluation mode on the CPU.

    The network is built on the meta device, so a config cannot make it take memory: the weights in the file must match
    it first.

    Raises:
        CheckpointError: The config lacks a part, names something unknown, or does not match the weights.
    """
    config = checkpoint.config
    with refused(checkpoint):
        missing = [part for part in (*MODEL_SIDE, "sampler") if not isinstance(config.get(part), Mapping)]
        if missing:
            raise UsageError(f"{missing[0]} is missing")
        with torch.device("meta"):
            network = make_model(config)
        kind = _kind_of(checkpoint)
        _check_moments(checkpoint, data_shape(config))
        trained = make_trained(config, network, kind, checkpoint.moments)
    assign(network, checkpoint.weights, checkpoint.path)
    network.eval().requires_grad_(False)
    return trained


def _check_moments(checkpoint: Checkpoint, shape: DataShape) -> None:
    """Require moments of examples of this shape, if a checkpoint keeps any.

    Raises:
        CheckpointError: They are something else.
    """
    values, given = math.prod(shape.size), checkpoint.moments
    fits = {name: tuple(part.shape) for name, part in given.items()} == Moments.shapes(values, shape.num_classes)
    sound = fits and all(part.dtype == torch.float32 for part in given.values())
    sound = sound and values <= LARGEST and bool((given["counts"] >= 0).all()) and bool(given["counts"].sum() > 0)
    if given and not sound:
        raise CheckpointError(
            f"{checkpoint.path}: its moments are not those of {shape} and {shape.num_classes} classes"
        )


def _kind_of(checkpoint: Checkpoint) -> Kind:
    """The kind of a checkpoint's examples, with the autoencoder of latents.

    Raises:
        CheckpointError: That is kept apart, or does not fit.
        UsageError: The config names something unknown.
    """
    kind: Kind = build(KINDS, checkpoint.config["data"].get("kind"))
    if not isinstance(kind, Latents):
        for name in checkpoint.autoencoder:
            raise CheckpointError(
                f"{checkpoint.path}: weight {name[:80]!r} is of an autoencoder, which no config names"
            )
        return kind
    if not checkpoint.autoencoder:
        told = f"{checkpoint.path} keeps its autoencoder, {kind.hash[:12]}, apart (latent.embed=false)"
        raise CheckpointError(f"{told}: latent=PATH says where it is")
    require(isinstance(kind.autoencoder, Mapping), "data.kind.autoencoder must be a group of settings")
    network = make_autoencoder(kind.autoencoder, kind.size, checkpoint.autoencoder, checkpoint.path)
    size = tuple(checkpoint.config["data"].get("size", ()))
    told = f"data.size={list(size)} is not that of the autoencoder's latents, {list(network.latent_size)}"
    require(size == tuple(network.latent_size), told)
    whole = Found(dict(kind.autoencoder), checkpoint.autoencoder).hash == kind.hash
    require(whole, f"data.kind.hash={kind.hash[:12]!r} is not that of its autoencoder")
    return kind.with_network(network)


def make_autoencoder(config: Config, size: tuple[int, ...], weights: Tensors, path: Path) -> AutoencoderNetwork:
    """An autoencoder of pictures of a size, in evaluation mode on the CPU; it is never trained.

    Args:
        config: Of a row of `AUTOENCODERS`.
        size: (C, H, W).
        weights: By name.
        path: Where they come from, for sentences.

    Raises:
        UsageError: The config names something unknown, or is of other pictures.
        CheckpointError: The weights are another network's.
    """
    within = len(size) == 3 and all(1 <= side <= LONGEST_SIDE for side in size) and math.prod(size) <= MAX_VALUES
    require(within, f"data.kind.size={list(size)} is out of range")
    with torch.device("meta"):
        network = build(AUTOENCODERS, config, DataShape(tuple(size)))
    assign(network, weights, path)
    network.eval().requires_grad_(False)
    made: AutoencoderNetwork = network
    return made


@contextmanager
def refused(checkpoint: Checkpoint) -> Iterator[None]:
    """Turn what is wrong with a setting into what is wrong with a checkpoint's config.

    Raises:
        CheckpointError: For every UsageError.
    """
    try:
        yield
    except UsageError as error:
        hint = "; a part of a plugin needs plugins=[...]" if "is unknown" in str(error) else ""
        raise CheckpointError(f"{checkpoint.path} is refused: its config says {str(error)[:500]}{hint}") from None
