"""The parts of a run, built from its config and fitted together, before anything is written."""

import copy
import inspect
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffgen.build import MODEL_SIDE, make_dataset, make_denoiser, make_model, make_weighting
from diffgen.core import compilation
from diffgen.core.compilation import Compiled
from diffgen.core.console import Reporter
from diffgen.core.devices import layout
from diffgen.core.errors import require
from diffgen.core.processes import main_first
from diffgen.core.randomness import mix
from diffgen.core.registry import bind, build
from diffgen.core.settings import LrSchedule, PreviewSettings, TrainSettings, section
from diffgen.data import ImageSource, augment
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.times import TIMES
from diffgen.nets import DataShape, casting
from diffgen.nets.casting import CastTogether, Given
from diffgen.nets.ema import EMA, Profile, profiles
from diffgen.nets.optimizers import OPTIMIZERS
from diffgen.objectives.denoise import denoising_loss
from diffgen.sampling.drawing import Sampling
from diffgen.storage.tensor_file import check_plain
from diffgen.training import moments
from diffgen.training.feed import Feed
from diffgen.training.gradients import Gradients


class Assembly:
    """All that a run is made of: data, network and averages, optimizer, what a step sees, how previews are drawn."""

    def __init__(self, config: dict[str, Any], settings: TrainSettings, accelerator: Accelerator) -> None:
        """Build every part; nothing is written before all of them fit together."""
        self.settings, self.accelerator = settings, accelerator
        self.lr_schedule: LrSchedule = section(config, "lr_schedule")
        self.preview_settings: PreviewSettings = section(config, "preview")
        self.device: torch.device = accelerator.device
        self.main: bool = accelerator.is_main_process
        self.local_batch = self._split_batch()
        self.reporter = Reporter(speaks=self.main)
        self.time = bind(TIMES, config["time"])

        self.dataset: ImageSource = main_first(accelerator, lambda: make_dataset(config))
        shape = self.dataset.shape
        classes = list(self.dataset.classes) if config["conditional"] else []
        require(shape.pixels or not settings.augment, "train.augment is for pictures: vectors cannot be turned")
        self._check_judging(config, shape)
        told = augment.LABELS if settings.augment else 0
        data = {**vars(shape), "num_classes": len(classes), "augment_labels": told, "classes": classes}
        self.config = {**config, "data": data}
        self.kept = {part: self.config[part] for part in (*MODEL_SIDE, "sampler")}
        self.kept["trained"] = {"dataset": config["dataset"]["name"], "method": config["method"]}
        self.kept["guidance"] = self.preview_settings.guidance
        check_plain(self.kept, "this run")  # else its own checkpoints could not be read
        self._build_network()
        self._build_optimizer()
        self._build_steps()
        self._rehearse()
        self.sampling = Sampling.from_config(
            make_denoiser(self.config, self.averaged),
            config["sampler"],
            guidance=Guidance(scale=self.preview_settings.guidance),
            seed=self.preview_settings.seed,
            device=self.device,
        )

    def _split_batch(self) -> int:
        world, batch = self.accelerator.num_processes, self.settings.batch_size
        require(batch % world == 0, f"train.batch_size={batch} must be a multiple of the {world} processes")
        return batch // world

    def _check_judging(self, config: dict[str, Any], shape: DataShape) -> None:
        if self.settings.eval_every is None:
            return
        require(shape.pixels, "train.eval_every is for pictures: vectors have no features to compare")
        require(
            shape.num_classes > 1 or config["extractor"]["name"] != "classifier",
            "train.eval_every with extractor=classifier needs labels, and the data has none: choose "
            "extractor=inception, dinov2 or safetensors",
        )
        require(
            self.settings.best_by != "agreement" or (config["conditional"] and shape.num_classes > 0),
            "train.best_by=agreement needs labels, and this model is unconditional: choose one of [fd, kd]",
        )
        extractor = config["extractor"]["name"]
        require(
            self.settings.best_by != "agreement" or extractor in ("classifier", "safetensors"),
            f"train.best_by=agreement needs a classifier of the data's classes, which extractor={extractor} is not: "
            "choose one of [fd, kd]",
        )

    def _build_network(self) -> None:
        torch.manual_seed(mix(self.settings.seed, "init"))
        self.network: nn.Module = make_model(self.config).to(device=self.device, memory_format=layout(self.device))  # type: ignore[call-overload]
        self.emas = [self._average(profile) for profile in profiles(section(self.config, "ema"))]
        self.averaged = self.emas[0].averaged
        self.kept["ema"] = self.emas[0].profile.facts()
        self.model = self._stepped()
        self.denoiser = make_denoiser(self.config, self._autocast)
        told = "augment" in inspect.signature(self.network.forward).parameters
        require(told or not self.settings.augment, "train.augment needs a model whose forward takes `augment`")
        self.weighting = make_weighting(self.config)
        self.trained = nn.ModuleDict({"model": self.network})  # all that has parameters: what is optimized and saved
        if isinstance(self.weighting, nn.Module):
            self.trained["weighting"] = self.weighting.to(self.device)
            self.weighting = self._shared(self.weighting)

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
        named = [*self.trained.named_parameters()]
        moments.check_goes_on(self.config["optimizer"], named)
        optimizer = build(OPTIMIZERS, self.config["optimizer"], named)
        self.base_lrs: list[float] = [group["lr"] for group in optimizer.param_groups]
        self.optimizer = self.accelerator.prepare_optimizer(optimizer)

    def _build_steps(self) -> None:
        first = self.accelerator.process_index * self.local_batch
        share = slice(first, first + self.local_batch)
        self.feed = Feed(self.settings, self.denoiser.schedule, self.time, share)
        given = self.settings.micro_batch
        self.gradients = Gradients(
            self.accelerator,
            [module for module in (self.model, self.weighting) if isinstance(module, nn.Module)],
            lambda *batch: denoising_loss(self.denoiser, self.weighting, *batch),
            self.settings.seed,
            given if isinstance(given, int) else self.local_batch,
            self.reporter.warn,
            self.compiled,
        )

    def _rehearse(self) -> None:
        """Call what checks its numbers when it runs, so that a bad one is told before anything is written."""
        t = self.time(torch.full((1,), 0.5, device=self.device), self.denoiser.schedule)
        alpha, sigma, _, _ = self.denoiser.coefficients(t)
        self.weighting(alpha, sigma, self.denoiser.c_out(t))
