"""The scalar settings of a training run, checked. No torch in here, so that a wrong override is answered at once.

The defaults are in `configs/train.yaml`; these classes carry names, types and ranges.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

from diffgen.core.errors import UsageError, require, typed, unknown
from diffgen.core.registry import conform, convert

FEWEST = 4
"""Images that the kernel distance and recall can be told of."""


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """`train.*`. Durations and intervals are in images seen."""

    images: int | None
    minutes: float | None
    batch_size: int
    micro_batch: int | Literal["auto"]
    precision: Literal["auto", "no", "bf16", "fp16"]
    compile: bool | Literal["auto"]
    grad_clip: float | None
    label_dropout: float
    horizontal_flip: bool
    augment: float
    known_frames: float
    perceptual: str | None
    perceptual_weight: float
    stratified_times: bool
    covariance: bool
    seed: int
    init: str | None
    resume: str
    checkpoint_every: int
    preview_every: int
    log_every: int
    eval_every: int | None
    eval_n: int
    best_by: Literal["fd", "kd", "agreement"]
    print_log: bool
    keep_checkpoints: int
    keep_every: int | None
    max_skipped: int
    preemption_signal: Literal["SIGUSR1", "SIGUSR2", "SIGHUP"] | None
    threads: int | None
    profile: bool

    def __post_init__(self) -> None:
        require(
            self.images is not None or self.minutes is not None,
            "train.images=null and train.minutes=null: give at least one of them",
        )
        require(self.images is None or self.images >= 1, f"train.images={self.images} must be at least 1")
        require(self.minutes is None or self.minutes > 0, f"train.minutes={self.minutes} must be positive")
        for name in ("batch_size", "checkpoint_every", "preview_every", "log_every", "keep_checkpoints", "max_skipped"):
            require(getattr(self, name) >= 1, f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("keep_every", "eval_every"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"train.{name}={value} must be at least 1 or null")
        require(FEWEST <= self.eval_n <= 1_000_000, f"train.eval_n={self.eval_n} must be in [{FEWEST}, 1000000]")
        require(
            self.micro_batch == "auto" or self.micro_batch >= 1,
            f"train.micro_batch={self.micro_batch} must be >= 1",
        )
        require(
            self.grad_clip is None or self.grad_clip > 0,
            f"train.grad_clip={self.grad_clip} must be positive or null",
        )
        require(0 <= self.augment <= 1, f"train.augment={self.augment} must be in [0, 1]")
        require(0 <= self.known_frames <= 1, f"train.known_frames={self.known_frames} must be in [0, 1]")
        require(self.perceptual != "", "train.perceptual is empty: give a file of LPIPS weights, or null")
        told = f"train.perceptual_weight={self.perceptual_weight:g} is of no use without train.perceptual=FILE"
        require(self.perceptual is not None or self.perceptual_weight == 1, told)
        told = f"train.perceptual_weight={self.perceptual_weight:g} must be in (0, 1000]"
        require(0 < self.perceptual_weight <= 1000, told)
        require(0 <= self.label_dropout <= 1, f"train.label_dropout={self.label_dropout} must be in [0, 1]")
        require(0 <= self.seed < 2**63, f"train.seed={self.seed} must be in [0, 2^63)")
        require(self.init != "", "train.init is empty: give a checkpoint, or null")
        require(
            self.init is None or self.resume in ("auto", "none"),
            f"train.init={self.init!r} begins a new run and train.resume={self.resume!r} goes on with one: "
            "give one of them",
        )
        require(
            self.threads is None or self.threads >= 1,
            f"train.threads={self.threads} must be at least 1 or null",
        )

    def share(self, images: int, seconds: float) -> float:
        """Share of the run that is done, by images seen or by the time it took, whichever is further."""
        return max(images / (self.images or math.inf), seconds / (60 * (self.minutes or math.inf)))


LONGEST_WARMUP = 0.1  # of a run, so that a short trial of a long recipe learns too


@dataclass(frozen=True, kw_only=True)
class LrSchedule:
    """`lr_schedule.*`: linear warm-up, then constant or falling to 0 at the end of the run."""

    warmup: int
    decay: Literal["constant", "linear", "cosine"]
    flat: float

    def __post_init__(self) -> None:
        require(self.warmup >= 0, f"lr_schedule.warmup={self.warmup} must not be negative")
        require(0 <= self.flat < 1, f"lr_schedule.flat={self.flat} must be in [0, 1)")

    def factor(self, images: int, progress: float) -> float:
        """What the learning rate is multiplied by.

        Args:
            images: Images seen when the step begins.
            progress: Share of the run that is done, by images or by wall time, in [0, 1].
        """
        warm = min(1.0, max((images + 1) / self.warmup, progress / LONGEST_WARMUP)) if self.warmup else 1.0
        done = min(max((progress - self.flat) / (1 - self.flat), 0.0), 1.0)
        falling = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return warm * falling[self.decay]


@dataclass(frozen=True, kw_only=True)
class EmaSettings:
    """`ema.*`: the profile of the average, a half-life in images with its ramp, or relative widths."""

    profile: Literal["halflife", "power"]
    halflife: float
    ramp: float
    sigma_rel: tuple[float, ...] | None

    def __post_init__(self) -> None:
        require(self.halflife > 0, f"ema.halflife={self.halflife} must be positive")
        require(0 < self.ramp <= 1, f"ema.ramp={self.ramp} must be in (0, 1]")
        if self.sigma_rel is not None:
            self._check_widths(self.sigma_rel)

    def _check_widths(self, widths: tuple[float, ...]) -> None:
        given = f"ema.sigma_rel={list(widths)}"
        require(self.profile == "power", f"{given} is for ema.profile=power, and the profile is {self.profile}")
        require(bool(widths), f"{given} is empty: give one or two widths, as [0.05,0.1]")
        named = {f"{width:.3f}" for width in widths}
        require(len(named) == len(widths), f"{given} must be widths that differ in three decimals")
        for width in widths:
            check_width(width)


def check_width(sigma_rel: float) -> None:
    """Require a relative width that a power profile can have: up to 0.2887, an average that forgets nothing."""
    require(0.005 <= sigma_rel <= 0.28, f"ema.sigma_rel={sigma_rel:g} must be in [0.005, 0.28]")


def check_fps(fps: float) -> None:
    """Require a frame rate at which films can be written."""
    require(plays(fps), f"fps={fps} must be in [0.1, 240] frames per second")


def plays(fps: float) -> bool:
    """Whether films can be written with so many frames per second."""
    return 0.1 <= fps <= 240


@dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """`preview.*`: the grids that show training's progress, always from the same noise."""

    n: int
    seed: int
    guidance: float

    def __post_init__(self) -> None:
        require(1 <= self.n <= 4096, f"preview.n={self.n} must be in [1, 4096]")
        require(0 <= self.seed < 2**63, f"preview.seed={self.seed} must be in [0, 2^63)")
        require(math.isfinite(self.guidance), f"preview.guidance={self.guidance} must be finite")


@dataclass(frozen=True, kw_only=True)
class LatentSettings:
    """`latent.*`: the autoencoder whose latents are learned from instead of pixels."""

    path: str | None
    posterior: Literal["mean", "sample"]
    embed: bool
    cache: str | None

    def __post_init__(self) -> None:
        require(self.path != "", "latent.path is empty: give a run of method=vae, or null")
        given = [f"latent.{key}" for key, plain in NO_LATENT.items() if getattr(self, key) != plain]
        told = f"{', '.join(given)} is of no use without latent.path: latent=PATH names an autoencoder"
        require(self.path is not None or not given, told)


NO_LATENT: dict[str, Any] = {"path": None, "posterior": "mean", "embed": True, "cache": None}
"""`latent.*` where there is none."""


TOP: dict[str, Any] = {"run_dir": str | None, "method": str, "conditional": bool, "plugins": tuple[str, ...]}
"""Settings of `diffgen-train` outside any group."""

SECTIONS = {
    "train": TrainSettings,
    "latent": LatentSettings,
    "lr_schedule": LrSchedule,
    "ema": EmaSettings,
    "preview": PreviewSettings,
}


def section(config: Mapping[str, Any], name: str) -> Any:
    """One checked section of a config.

    Raises:
        UsageError: A key is unknown or missing, or a value has the wrong type or range.
    """
    values = config.get(name)
    if not isinstance(values, Mapping):
        raise UsageError(f"{name} must be a group of settings, not {typed(values)}")
    return SECTIONS[name](**conform(name, get_type_hints(SECTIONS[name]), values))


@dataclass(frozen=True, kw_only=True)
class DrawSettings:
    """How images are drawn: what `diffgen-sample` and `diffgen-eval` share, beside the sampler."""

    ckpt: str | None
    latent: str | None
    seed: int
    guidance: float | Literal["auto"]
    guidance_interval: tuple[float, ...] | None
    guidance_rescale: float
    guide: str | None
    batch_size: int | Literal["auto"]
    precision: Literal["auto", "no", "bf16"]
    compile: bool | Literal["auto"]
    sigma_rel: float | None
    out: str | None

    def __post_init__(self) -> None:
        if self.sigma_rel is not None:
            check_width(self.sigma_rel)
        require(0 <= self.seed < 2**63, f"seed={self.seed} must be in [0, 2^63)")
        require(
            self.guidance == "auto" or math.isfinite(self.guidance),
            f"guidance={self.guidance} must be finite or auto",
        )
        require(
            self.batch_size == "auto" or self.batch_size >= 1,
            f"batch_size={self.batch_size} must be at least 1",
        )
        require(
            self.guidance_interval is None or len(self.guidance_interval) == 2,
            f"guidance_interval={self.guidance_interval} must be [low, high], levels of sigma/alpha, or null",
        )

    def sampling(self, n: int) -> "SampleSettings":
        """How to draw n images, every class in turn."""
        shared = {field.name: getattr(self, field.name) for field in fields(DrawSettings)}
        return SampleSettings(**shared, n=n, label="auto", save="grid", fps=None, overwrite=False)


@dataclass(frozen=True, kw_only=True)
class SampleSettings(DrawSettings):
    """The settings of `diffgen-sample`, beside the sampler."""

    n: int
    label: bool | int | str | float | tuple[bool | int | str | float, ...] | None
    save: str | tuple[str, ...]
    fps: float | None
    overwrite: bool

    def __post_init__(self) -> None:
        if self.fps is not None:
            check_fps(self.fps)
        require(1 <= self.n <= 10_000_000, f"n={self.n} must be in [1, 10000000]")
        super().__post_init__()

    @property
    def saves(self) -> tuple[str, ...]:
        """What to save, as a tuple."""
        return (self.save,) if isinstance(self.save, str) else self.save


def sample_settings(config: Mapping[str, Any]) -> SampleSettings:
    """The checked settings of `diffgen-sample`."""
    return SampleSettings(**converted(SampleSettings, config, "sampler"))


@dataclass(frozen=True, kw_only=True)
class TuneSettings(DrawSettings):
    """The settings of `diffgen-tune`, beside task, sampler, extractor and data set."""

    cache: str | None
    overwrite: bool

    def __post_init__(self) -> None:
        require(bool(self.ckpt), "ckpt is missing: diffgen-tune ckpt=PATH, a checkpoint or a run directory")
        told = f"compile={str(self.compile).lower()} does not pay for few images of many networks: compile=false"
        require(self.compile is False, told)
        super().__post_init__()


def tune_settings(config: Mapping[str, Any]) -> TuneSettings:
    """The checked settings of `diffgen-tune`."""
    return TuneSettings(**converted(TuneSettings, config, "tune", "sampler", "extractor", "dataset"))


def converted(settings: type[DrawSettings], config: Mapping[str, Any], *groups: str) -> dict[str, Any]:
    """The values of a config in the types of the settings; `groups` are what may stand beside them."""
    hints = get_type_hints(settings)
    width = {"sigma_rel": hints.pop("sigma_rel")}
    for key in config:
        if key not in (*hints, "ema"):
            raise UsageError(unknown(key, [*hints, "ema", *groups]))
    return {key: convert(key, config[key], hint) for key, hint in hints.items()} | conform("ema", width, config["ema"])


@dataclass(frozen=True, kw_only=True)
class ExportSettings:
    """The settings of `diffgen-export`."""

    ckpt: str | None
    to: str | None
    format: Literal["diffusers", "onnx", "torch", "diffgen"]
    overwrite: bool

    def __post_init__(self) -> None:
        require(
            bool(self.ckpt), "ckpt is missing: ckpt=PATH, a checkpoint, or a folder of diffusers with format=diffgen"
        )
        require(bool(self.to), "to is missing: to=FOLDER says where to write")


def export_settings(config: Mapping[str, Any]) -> ExportSettings:
    """The checked settings of `diffgen-export`."""
    hints = get_type_hints(ExportSettings)
    for key in config:
        require(key in hints, unknown(key, hints))
    return ExportSettings(**{key: convert(key, config[key], hint) for key, hint in hints.items()})
