"""Configs that earlier versions wrote, in today's words."""

from typing import Any

from diffgen.core.settings import NO_LATENT
from diffgen.data.splits import NOTHING_HELD_OUT

AS_READ: dict[str, Any] = {"background": "white", "range": None}
"""What a kind of pictures did not say before there was a choice of how files are read."""

AS_FOUND: dict[str, dict[str, Any]] = {
    "image_folder": {"labels": None, **AS_READ, "undecodable": "refuse", "max_pixels": 178_956_970}
}
"""The same of the config of a data set."""


LATER: dict[str, dict[str, Any]] = {
    "unet": {"time_layers": ["conv", "attention"]},
    "dit": {"patch_time": None, "attention": "full"},
}
"""What a model's config did not say before there were clips."""

LATER_OF_TRAIN = {"known_frames": 0.0, "perceptual": None, "perceptual_weight": 1.0, "covariance": False}
"""Nor its `train`."""

LATER_OF_SAMPLER = {"skip_to": None, "first_step": "network"}
"""Nor a sampler with a time grid, before part of the way was known in closed form."""

LATER_OF_IPNDM = {"weights": None}
"""Nor this one, before its weights could be fitted."""


def in_todays_words(config: dict[str, Any]) -> dict[str, Any]:
    """A config of a checkpoint or a run as this version would have written it.

    Before there were kinds, `data` gave channels, height and width, and whether they were pixels; a vector of D values
    stood there as an image of D channels and one pixel. The objective was always `denoise`.

    Args:
        config: Plain data of unknown origin; what makes no sense is left for the tables to refuse.
    """
    data = config.get("data")
    if isinstance(data, dict) and "channels" in data:
        sides = [data.get(side) for side in ("channels", "height", "width")]
        kept = {key: value for key, value in data.items() if key not in ("channels", "height", "width", "pixels")}
        pixels = data.get("pixels", True)
        kind = {"name": "pixels" if pixels else "vectors"}
        config = {**config, "data": {"kind": kind, "size": sides if pixels else sides[:1], **kept}}
    latent = {"latent": NO_LATENT} if "train" in config else {}  # of a run, before there were latents
    return {"objective": {"name": "denoise"}, **latent, **config, **_of_data(config), **_later(config)}


def _later(config: dict[str, Any]) -> dict[str, Any]:
    """Those of its parts that have settings which earlier versions did not know."""
    model, train, sampler = (config.get(part) for part in ("model", "train", "sampler"))
    told = dict[str, Any]()
    if isinstance(sampler, dict) and "sigmas" in sampler:
        own = LATER_OF_IPNDM if sampler.get("name") == "ipndm" else {}
        told["sampler"] = {**LATER_OF_SAMPLER, **own, **sampler}
    if isinstance(model, dict):
        told["model"] = {**LATER.get(str(model.get("name")), {}), **model}
    if isinstance(train, dict):
        told["train"] = {**LATER_OF_TRAIN, **train}
    return told


def _of_data(config: dict[str, Any]) -> dict[str, Any]:
    """Those of its parts that say what the data are."""
    data, dataset, told = config.get("data"), config.get("dataset"), dict[str, Any]()
    if isinstance(data, dict) and isinstance(kind := data.get("kind"), dict) and kind.get("name") == "pixels":
        told["data"] = {**data, "kind": {**kind, **{key: kind.get(key, value) for key, value in AS_READ.items()}}}
    if isinstance(dataset, dict) and "split" not in dataset:
        told["dataset"] = {**NOTHING_HELD_OUT, **AS_FOUND.get(str(dataset.get("name")), {}), **dataset}
    return told
