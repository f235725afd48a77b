"""The settings of `diffgen-eval`, checked, and what it can measure of what. No torch in here, as in `settings`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from diffgen.core.errors import require, unknown
from diffgen.core.settings import DrawSettings, converted

OF_MODEL = ("bits", "vlb", "denoising")
OF_AUTOENCODERS = ("elbo", "reconstruction")
"""What autoencoders alone have: the bound on the likelihood of pictures, and how these come back; of a model that was
trained in latents the latter is its autoencoder's."""

NO_SAMPLES = (*OF_MODEL, *OF_AUTOENCODERS)
"""Metrics of the model itself."""

OF_IMAGES = ("fd", "kd", "is", "pr", "dc", "agreement", "copies", *OF_MODEL, "cas", *OF_AUTOENCODERS)
"""What `diffgen-eval` can measure of pictures: Frechet and kernel distance, inception score, precision and recall,
density and coverage, agreement with the asked labels, copies of training images, bits per dimension, their variational
bound, denoising error by noise level, classification accuracy score. Those of the model itself need no samples."""

OF_TEXT = ("ngrams", "runs", "entropy", "right", "bits")
"""And of text: distance of n-gram statistics, runs that stand in the training text, entropy of single tokens, share of
right samples where the data can tell, bits per character."""

OF_CLIPS = ("fd_frames", "fd_pairs", "motion", "checks", *OF_MODEL)
"""And of clips: Frechet distance of single frames and of consecutive ones, how much moves, and, where data can tell,
whether a clip shows one and the same thing on the path that it should."""

METRICS = tuple(dict.fromkeys((*OF_IMAGES, *OF_TEXT, *OF_CLIPS)))

UNASKED = {
    "images": ("fd", "kd", "is", "pr", "dc", "agreement", "copies"),
    "text": OF_TEXT,
    "clips": ("fd_frames", "fd_pairs", "motion", "checks"),
    "autoencoders": OF_AUTOENCODERS,
}
"""What `metrics=auto` stands for."""

What = Literal["images", "text", "clips", "autoencoders"]
"""What can be judged."""

OF: dict[What, tuple[str, ...]] = {
    "images": OF_IMAGES,
    "text": OF_TEXT,
    "clips": OF_CLIPS,
    "autoencoders": tuple(name for name in OF_IMAGES if name not in ("agreement", "cas")),  # which need labels
}

TOGETHER = ("auto", "all")

OF_INCEPTION = {"fid": "fd", "kid": "kd"}
"""What two of them are called over Inception's features, and only then."""


@dataclass(frozen=True, kw_only=True)
class EvalSettings(DrawSettings):
    """The settings of `diffgen-eval`, beside sampler, extractor and data set."""

    images: str | None
    metrics: str | tuple[str, ...]
    n: int | Literal["auto"]
    cache: str | None

    def __post_init__(self) -> None:
        require(
            (self.ckpt is None) != (self.images is None),
            "give either ckpt=PATH, a checkpoint, or images=PATH, a folder of pictures or an .npz",
        )
        for name in self.named:
            require(name in (*METRICS, *OF_INCEPTION, *TOGETHER), unknown(f"metrics={name!r}", [*METRICS, *TOGETHER]))
            require(
                self.ckpt is not None or name not in NO_SAMPLES,
                f"metrics={name} is a metric of a model and needs ckpt=PATH; images={self.images!r} are pictures",
            )
        require(bool(self.named), f"metrics=[] names none; choose some of [{', '.join(METRICS)}, all]")
        require(self.n == "auto" or 1 <= self.n <= 10_000_000, f"n={self.n} must be in [1, 10000000], or auto")
        super().__post_init__()

    @property
    def named(self) -> tuple[str, ...]:
        """The metrics as the user calls them."""
        return (self.metrics,) if isinstance(self.metrics, str) else self.metrics

    def check_names(self, extractor: str) -> None:
        """Require Inception for what is called FID or KID."""
        for name in self.named if extractor != "inception" else ():
            require(
                name not in OF_INCEPTION,
                f"metrics={name} is over Inception's features: extractor=inception, or "
                f"metrics={OF_INCEPTION.get(name)} over those of extractor={extractor}",
            )

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics, as a tuple, once `suited` has been asked what there are."""
        return tuple(OF_INCEPTION.get(name, name) for name in self.named)

    def suited(self, what: What, *, without: Mapping[str, str] | None = None) -> "EvalSettings":
        """The same with the metrics that `auto` and `all` stand for.

        Args:
            what: What is judged.
            without: Metrics that cannot be told of it, each with why.

        Raises:
            UsageError: Another one was named.
        """
        why = dict(without or {}) | ({} if self.ckpt else dict.fromkeys(NO_SAMPLES, ""))
        known = [name for name in OF[what] if name not in why]
        for name, metric in zip(self.named, self.wanted, strict=True):
            told = why.get(metric) or f"metrics={name} is not a metric of {what}"
            require(metric in (*known, *TOGETHER), f"{told}: choose some of [{', '.join(known)}, all]")
        unasked = [name for name in UNASKED[what] if name in known]
        meant = [{"all": known, "auto": unasked}.get(name, [name]) for name in self.named]
        return replace(self, metrics=tuple(dict.fromkeys(name for names in meant for name in names)))

    @property
    def needs_samples(self) -> bool:
        """Whether any metric is one of samples."""
        return any(name not in NO_SAMPLES for name in self.wanted)

    @property
    def needs_features(self) -> bool:
        """Whether any metric looks at features of pictures."""
        return self.needs_samples or "reconstruction" in self.wanted


def eval_settings(config: Mapping[str, Any]) -> EvalSettings:
    """The checked settings of `diffgen-eval`."""
    return EvalSettings(**converted(EvalSettings, config, "sampler", "extractor", "dataset"))
