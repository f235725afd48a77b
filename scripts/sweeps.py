"""The variants of `recipe_sweep.py`: a name, the variant it comes from, and what it sets instead."""

from typing import Any

Variants = dict[str, tuple[str, dict[str, Any]]]

QUIET = {"train.threads": 1, "train.preview_every": 10**9, "train.checkpoint_every": 10**9, "preview.n": 10}
USUAL = {"train.batch_size": 64, "train.label_dropout": 0.1}
FLOW: dict[str, Any] = {"method": "flow", "time": "logit_normal", "optimizer": "adamw"}

DIGITS: Variants = {
    "before": (
        "",
        {
            **QUIET,
            **USUAL,
            **FLOW,
            "model": "unet_tiny",
            "optimizer.lr": 4e-3,
            "train.images": 51_200,
            "lr_schedule.warmup": 3_200,
            "ema.halflife": 3_000,
            "denoiser.sigma_data": 0.75,
        },
    ),
    "longer": ("before", {"train.images": 67_200}),
    "muon": ("longer", {"optimizer": "muon_small", "optimizer.lr": 1e-2}),
    "muon-slower": ("muon", {"optimizer.lr": 5e-3}),
    "latent-net": (
        "muon",
        {"model": "unet_latent", "model.patch": 2, "model.channel_mult": "[1]", "train.images": 57_600},
    ),
    "noisier": ("muon", {"time.mean": 0.5, "train.label_dropout": 0.05}),
    "wider": ("muon", {"model.channels": 24, "train.images": 44_800}),
    "smaller-batch": ("muon", {"train.batch_size": 32, "train.images": 57_600}),
    "dit": ("muon", {"model": "dit_tiny", "train.images": 76_800}),
    "dit-noisier": ("dit", {"time.mean": 0.5}),
    "dit-batch-128": ("dit", {"train.batch_size": 128, "train.images": 115_200}),
    "dit-label-dropout": ("dit", {"train.label_dropout": 0.05}),
    "dit-previews": (
        "dit",
        {"train.preview_every": 12_800, "train.checkpoint_every": 25_600, "preview.n": 50},
    ),
    "dit-width-128": ("dit", {"model.width": 128, "train.images": 51_200}),
    "dit-patch-2": ("dit", {"model.patch": 2, "model.width": 64, "train.images": 51_200}),
    "dit-128-images": ("dit", {"train.batch_size": 128, "train.images": 96_000}),
    "dit-augmented": ("dit-128-images", {"train.augment": 0.15}),
    "dit-dropout": ("dit-128-images", {"model.dropout": 0.1}),
    "muon-128-images": ("muon", {"train.batch_size": 128, "train.images": 76_800}),
    "cosine": ("muon-128-images", {"lr_schedule.decay": "cosine"}),
    "uniform-times": ("muon-128-images", {"time": "uniform"}),
    "faster": ("muon-128-images", {"optimizer.lr": 2e-2}),
    "longer-average": ("muon-128-images", {"ema.halflife": 6_000}),
    "cleaner": ("muon-128-images", {"time": "logit_normal_cleaner"}),
    "min-snr": ("muon-128-images", {"weighting": "min_snr"}),
    "minute": ("", {"experiment": "digits_minute"}),
}

MNIST: Variants = {
    "before": (
        "",
        {
            **QUIET,
            **USUAL,
            **FLOW,
            "model": "unet_small",
            "optimizer.lr": 2e-3,
            "train.images": 32_000,
            "lr_schedule.warmup": 10_000,
            "ema.halflife": 15_000,
            "denoiser.sigma_data": 0.6162,
        },
    ),
    "muon": ("before", {"optimizer": "muon_small", "optimizer.lr": 5e-3, "ema.halflife": 3_000}),
    "patch-4": ("muon", {"model": "unet_latent", "model.patch": 4, "train.images": 51_200}),
    "patch-4-noisier": ("patch-4", {"time.mean": 1.0}),
    "full": ("patch-4", {"time.mean": 0.7, "train.label_dropout": 0.05, "train.images": 128_000}),
    "full-70k": ("full", {"train.images": 69_952}),
    "full-5-minutes": ("full", {"train.minutes": 5, "train.threads": "null"}),
    "minutes-one-thread": (
        "",
        {"experiment": "mnist_minutes", **QUIET, "train.minutes": "null", "train.images": 176_000},
    ),
    "minutes": ("", {"experiment": "mnist_minutes"}),
    "dit": ("muon", {"model": "dit_tiny", "model.patch": 7, "time.mean": 1.0, "train.images": 51_200}),
}

VARIANTS: dict[str, Variants] = {"digits": DIGITS, "mnist": MNIST}
