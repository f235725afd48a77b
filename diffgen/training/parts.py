"""The parts of a run, built from its config and fitted together, before anything is written."""

import copy
import inspect
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffgen.build import (
    MODEL_SIDE,
    data_config,
    data_shape,
    make_model,
    make_splits,
    make_trained,
    make_weighting,
    noise_size,
)
from diffgen.core import compilation, speed
from diffgen.core.compilation import Compiled
from diffgen.core.console import Reporter
from diffgen.core.errors import DataError, require, typed
from diffgen.core.paths import is_inside
from diffgen.core.processes import main_first, on_main
from diffgen.core.randomness import mix
from diffgen.core.registry import bind, build, parameters
from diffgen.core.settings import LatentSettings, LrSchedule, PreviewSettings, TrainSettings, section
from diffgen.core.signals import StopRequest
from diffgen.data import Source
from diffgen.data.base import all_x0, spread
from diffgen.data.splits import Splits
from diffgen.diffusion import knowing
from diffgen.diffusion.gaussian import Moments
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.tasks import Plan, pairs
from diffgen.diffusion.times import TIMES
from diffgen.evaluation.held_out import Config, check_apart, inherit, lineage, note
from diffgen.nets import MODELS, DataShape, casting
from diffgen.nets.casting import CastTogether, Given
from diffgen.nets.ema import EMA, Profile, profiles
from diffgen.nets.optimizers import OPTIMIZERS
from diffgen.objectives import OBJECTIVES, Objective
from diffgen.objectives.denoise import judges_parts
from diffgen.sampling.drawing import Sampling
from diffgen.storage.checkpoint import whole
from diffgen.storage.tensor_file import Tensors, check_config, digest, on_cpu
from diffgen.training import moments
from diffgen.training.encoding import encoded, goes_on_from
from diffgen.training.feed import Feed
from diffgen.training.gradients import Gradients
from diffgen.training.loggers import Loggers
from diffgen.training.lpips import Lpips, load_lpips


class Parts:
    """All that a run is made of: data, network and averages, optimizer, what a step sees, how previews are drawn.

    Attributes:
        config: Of the run, with what the data set says of its data.
        model_config: What its checkpoints say of themselves.
        network: In training; `averaged` are its averaged weights, the first of `emas`.
        learned: All that has parameters: what is optimized and saved.
        model: The network as a step calls it.
    """

    def __init__(
        self,
        config: dict[str, Any],
        settings: TrainSettings,
        accelerator: Accelerator,
        request: StopRequest | None = None,
    ) -> None:
        """Build every part; nothing is written before all of them fit together, but for latents, which are kept.

        Args:
            config: Of the run.
            settings: Its `train`.
            accelerator: Of the run.
            request: Ends what takes long.
        """
        self.request = request or StopRequest()
        self.settings, self.accelerator = settings, accelerator
        self.lr_schedule: LrSchedule = section(config, "lr_schedule")
        self.preview: PreviewSettings = section(config, "preview")
        self.device: torch.device = accelerator.device
        self.main: bool = accelerator.is_main_process
        self.local_batch = self._split_batch()
        self.reporter = Reporter(speaks=self.main)
        self.loggers = Loggers(config, self.reporter.warn, main=self.main)
        self.time_density = bind(TIMES, config["time"])
        self.splits = main_first(accelerator, lambda: self._split(config))
        self.dataset: Source = self.splits.train
        self.autoencoder: Tensors = {}
        self.began_from: list[Config] = []  # what its autoencoder has seen
        self._check_kind(config)
        self.objective: Objective = build(OBJECTIVES, config["objective"])
        self._encode(config)
        labelled = self.objective.labelled and config["conditional"]
        classes = list(self.dataset.classes) if labelled else []
        augment_labels = self.dataset.kind.augment_labels if settings.augment else 0
        given = knowing.channels(self.dataset.shape.channels) if settings.known_frames else 0
        told = data_config(self.dataset, classes, augment_labels, given, spans=self.objective.spans)
        self.config = {**config, "data": told}
        self._build_network()
        self._build_optimizer()
        self._build_steps()
        self._check_numbers()
        self.data_moments: Tensors = {}
        self._keep_moments()
        self.sampling = Sampling.from_config(
            make_trained(self.config, self.averaged, self.dataset.kind, self.data_moments),
            config["sampler"],
            guidance=Guidance(scale=self.preview.guidance),
            seed=self.preview.seed,
            device=self.device,
        )
        self.model_config = self._model_config()

    def _model_config(self) -> dict[str, Any]:
        told = {part: self.config[part] for part in (*MODEL_SIDE, "sampler")}
        told["trained"] = {**note(self.config["dataset"], self.splits.train), "method": self.config["method"]}
        told["guidance"] = self.preview.guidance
        told["ema"] = self.emas[0].profile.facts()
        inherit(told, self.began_from)
        check_config(told)  # else its own checkpoints could not be read
        return told

    def _keep_moments(self) -> None:
        """Compute mean and covariance of what is learned from, if they are asked for."""
        told = f"train.covariance=true is for Gaussian noise, and this model {self.objective.makes}: leave it out"
        require(self.objective.path or not self.settings.covariance, told)
        if self.settings.covariance:
            examples = all_x0(self.dataset, mirrored=self.settings.horizontal_flip)
            self.data_moments = Moments.of(examples, data_shape(self.config).num_classes)._asdict()

    @cached_property
    def pairs(self) -> Plan:
        """What previews of an autoencoder show: pictures, held out where some are, each beside what comes back."""
        source, drawer = self._unseen(), self.sampling
        chosen = spread(max(self.preview.n // 2, 1), len(source))
        stored = torch.cat([some for some, _ in source.batches(iter(chosen.split(64)), torch.device("cpu"))])

        def state(numbers: list[int]) -> Tensor:
            x0 = drawer.state(source.kind.encode(stored[numbers]))
            noise = self.objective.noise_of(x0, drawer.denoiser, drawer.ts[0], 0.0)
            return self.objective.start(noise, drawer.denoiser, drawer.ts[0])

        return pairs(stored, state, drawer.ts)

    def _unseen(self) -> Source:
        """Examples that are held out, or those to train on where there are none."""
        try:
            return self.splits.test or self.dataset
        except DataError as error:
            self.reporter.warn(f"{error}; previews show pictures that are trained on")
            return self.dataset

    def _encode(self, config: dict[str, Any]) -> None:
        """Take latents for the pictures, if that is asked for."""
        latent: LatentSettings = section(config, "latent")
        told = f"train.perceptual={self.settings.perceptual!r} is for autoencoders: method=vae or fsq"
        require(self.settings.perceptual is None or self.objective.codes, told)
        told = f"latent.cache={latent.cache!r} is inside run_dir={config['run_dir']!r}: choose a folder beside it"
        inside = latent.cache and config["run_dir"] and is_inside(latent.cache, config["run_dir"])
        require(not inside, told)
        if latent.path is None:
            return
        told = f"latent.path={latent.path!r} gives latents to denoise, which objective={config['objective']['name']}"
        require(self.objective.path, f"{told} does not: leave one of them out")
        told = f"train.augment={self.settings.augment:g} is for pixels, and latents cannot be turned: train.augment=0"
        require(not self.settings.augment, told)
        before = on_main(self.accelerator, lambda: goes_on_from(config, self.settings.resume))
        self.dataset, found = encoded(
            self.splits.train,
            latent,
            mirrored=self.settings.horizontal_flip,
            before=before,
            accelerator=self.accelerator,
            reporter=self.reporter,
            request=self.request,
            fits=lambda shape: self._check_learner(config, shape),
        )
        self.autoencoder = found.weights if latent.embed else {}
        self.began_from = lineage(found.said) if found.said else []

    def _check_learner(self, config: dict[str, Any], shape: DataShape) -> None:
        """Require a network and an optimizer that can be built, before what takes long; no weight is written here."""
        with torch.device("meta"):
            network = build(MODELS, config["model"], shape)
        build(OPTIMIZERS, config["optimizer"], [*network.to_empty(device="cpu").named_parameters()])

    def _split(self, config: dict[str, Any]) -> Splits:
        """What is trained on and what is held out; of what the user holds out, how much is trained on all the same."""
        splits = make_splits(config)
        if repeated := check_apart(splits) if splits.by != "split" else 0:
            of = f"{repeated:,} of the {len(splits.test or ()):,} {splits.train.kind.unit} held out"
            self.reporter.warn(f"{of} are among those to train on, to the last pixel: they will have been seen")
        return splits

    def _split_batch(self) -> int:
        world, batch = self.accelerator.num_processes, self.settings.batch_size
        require(batch % world == 0, f"train.batch_size={batch} must be a multiple of the {world} processes")
        return batch // world

    def _check_kind(self, config: dict[str, Any]) -> None:
        """Require that the data's kind can do what the settings ask for."""
        kind, settings = self.dataset.kind, self.settings
        self._check_coupling(config)
        if config["method"] == "bits":
            require(kind.textual, f"method=bits is for text, and the data is {kind.unit}")
            model = config["model"].get("name")
            sees = "self_condition" in parameters(MODELS[model]) if model in MODELS else True
            require(sees, f"method=bits needs a network that sees its own estimate: model=dit_tiny, not name={model}")
        if config["method"] in ("vae", "fsq"):
            has, wants = bool(config["model"].get("levels")), config["method"] == "fsq"
            told = "model.levels=[8,5,5,5], say" if wants else "model.levels=null"
            require(
                has == wants, f"method={config['method']} needs {told}, and levels are {config['model'].get('levels')}"
            )
            kl = config["objective"].get("kl")
            told = f"objective.kl={kl} weighs a divergence that is a constant of codes: objective.kl=0"
            require(not wants or not kl, told)
        require(
            bool(kind.augment_labels) or not settings.augment,
            f"train.augment={settings.augment:g} is for pictures: {kind.unit} cannot be turned",
        )
        require(
            kind.mirrors or not settings.horizontal_flip,
            f"train.horizontal_flip=true is for pictures: {kind.unit} cannot be mirrored",
        )
        require(
            kind.moving or not settings.known_frames,
            f"train.known_frames={settings.known_frames:g} is for clips: {kind.unit} have no frames",
        )
        if settings.eval_every is not None:
            self._check_judging(config, self.dataset.shape)

    def _check_coupling(self, config: dict[str, Any]) -> None:
        """Require that examples which come with their noise keep it, and that such are there for what asks for them."""
        settings, coupled = self.settings, self.dataset.coupled
        told = "method=reflow learns from noise and what was made of it: dataset=pairs, which diffgen-sample"
        require(coupled or config["method"] != "reflow", f"{told} save=[pairs] writes")
        wanted = {
            "train.horizontal_flip": settings.horizontal_flip,
            "train.augment": settings.augment,
            "train.known_frames": settings.known_frames,
            "train.eval_every": settings.eval_every,
            "latent.path": config["latent"]["path"],
        }
        for key in (key for key, value in wanted.items() if value and coupled):  # the first of them
            told = f"{key}={typed(wanted[key])} is for pictures as they are stored"
            require(False, f"{told}, and dataset=pairs holds what a sampler made of its noise: leave it out")

    def _check_judging(self, config: dict[str, Any], shape: DataShape) -> None:
        unit = self.dataset.kind.unit
        require(self.dataset.kind.judged, f"train.eval_every is for pictures: {unit} have no features to compare")
        require(
            shape.num_classes > 1 or config["extractor"]["name"] != "classifier",
            "train.eval_every with extractor=classifier needs labels, and the data has none: choose "
            "extractor=auto, rotation, inception, dinov2 or safetensors",
        )
        require(
            self.settings.best_by != "agreement" or (config["conditional"] and shape.num_classes > 0),
            "train.best_by=agreement needs labels, and this model is unconditional: choose one of [fd, kd]",
        )
        extractor = config["extractor"]["name"]
        require(
            self.settings.best_by != "agreement" or extractor in ("auto", "classifier", "safetensors"),
            f"train.best_by=agreement needs a classifier of the data's classes, which extractor={extractor} is not: "
            "choose one of [fd, kd]",
        )

    def _build_network(self) -> None:
        torch.manual_seed(mix(self.settings.seed, "init"))
        layout = self.dataset.kind.layout(self.device)
        self.network: nn.Module = make_model(self.config).to(device=self.device, memory_format=layout)  # type: ignore[call-overload]
        self.emas = [self._average(profile) for profile in profiles(section(self.config, "ema"))]
        self.averaged = self.emas[0].averaged
        self.model = self._stepped()
        self.denoiser = make_trained(self.config, self._autocast).denoiser
        self.denoiser.plain = self.network
        self._build_lpips()
        takes_labels = "augment" in inspect.signature(self.network.forward).parameters
        require(takes_labels or not self.settings.augment, "train.augment needs a model whose forward takes `augment`")
        require(
            not self.settings.known_frames or judges_parts(self.objective),
            f"train.known_frames={self.settings.known_frames:g} needs an error of the frames that are not known, and "
            f"objective={self.config['objective']['name']} has another `error` without its `error_of_unknown`",
        )
        self.weighting = make_weighting(self.config)
        self.learned = nn.ModuleDict({"model": self.network})
        if isinstance(self.weighting, nn.Module):
            self.learned["weighting"] = self.weighting.to(self.device)
            self.weighting = self._shared(self.weighting)

    def saved(self, averaged: nn.Module) -> Tensors:
        """What the file of averaged weights holds."""
        return whole(averaged.state_dict(), self.autoencoder, self.data_moments)

    def _average(self, profile: Profile) -> EMA:
        return EMA(self.network, copy.deepcopy(self.network).eval().requires_grad_(False), profile)

    def _stepped(self) -> nn.Module:
        """The network as a step calls it: compiled, its weights cast together, its gradients exchanged."""
        network = self.network
        # several processes exchange the first gradients while the last are computed; together they would come too late
        low = casting.LOW.get(self.accelerator.mixed_precision) if self.accelerator.num_processes == 1 else None
        names = casting.cast_names(network) if low else []
        if names:
            network = Given(network, names)
        self.compiled: Compiled | None = None
        if compilation.wanted(self.settings.compile, pays=self.device.type == "cuda"):
            network = self.compiled = Compiled(network, key="train.compile", required=self.settings.compile is True)
        return CastTogether(self.network, network, names, low) if low and names else self._shared(network)

    def _build_lpips(self) -> None:
        """Let pictures be compared as a network sees them, too, if that is asked for."""
        self.lpips: Lpips | None = None
        self.more_gflop = 0.0
        if self.settings.perceptual is None:
            return
        self.lpips = load_lpips(Path(self.settings.perceptual), "train.perceptual", self.dataset.shape).to(self.device)
        self.config["lpips"] = digest(on_cpu(self.lpips.state_dict()), "")  # another file would be another loss
        self.denoiser.perceptual = lambda decoded, x0: self.settings.perceptual_weight * self.lpips(decoded, x0)
        pictures = torch.zeros(2, 1, *self.dataset.shape.size, device=self.device)
        self.more_gflop = 1.5 * speed.gflop(self.lpips, *pictures)  # back to one of the two, and to no weights

    def _shared(self, module: Any) -> Any:
        """A module whose gradients all processes exchange."""
        if self.accelerator.num_processes == 1:
            return module
        return self.accelerator.prepare_model(module)

    def _autocast(self, *inputs: Tensor | None) -> Tensor:
        """The network in the run's precision; what is around it stays in float32."""
        with self.accelerator.autocast():
            return self.model(*inputs)

    def _build_optimizer(self) -> None:
        named = [*self.learned.named_parameters()]
        moments.check_goes_on(self.config["optimizer"], named)
        optimizer = build(OPTIMIZERS, self.config["optimizer"], named)
        self.base_lrs: list[float] = [float(group["lr"]) for group in optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def _build_steps(self) -> None:
        first = self.accelerator.process_index * self.local_batch
        share = slice(first, first + self.local_batch)
        schedule = self.denoiser.schedule
        size = noise_size(self.network, self.dataset.shape)
        self.feed = Feed(self.settings, self.dataset, schedule, self.time_density, self.objective, size, share)
        given = self.settings.micro_batch
        self.gradients = Gradients(
            self.accelerator,
            [module for module in (self.model, self.weighting) if isinstance(module, nn.Module)],
            lambda batch: self.objective.loss(self.denoiser, self.weighting, batch),
            self.settings.seed,
            given if isinstance(given, int) else self.local_batch,
            self.reporter.warn,
            self.compiled,
        )

    def _check_numbers(self) -> None:
        """Call what checks its numbers when it runs, so that a bad one is told before anything is written."""
        self.objective.check(self.weighting, self.time_density)
        t = self.time_density(torch.full((1,), 0.5, device=self.device), self.denoiser.schedule)
        if not self.objective.path:
            return
        at = self.denoiser.coefficients(t)
        self.weighting(at.alpha, at.sigma, at.c_out)
