"""Configs that earlier versions wrote, in today's words."""

from typing import Any

NOTHING_HELD_OUT = {"held_out": None, "held_out_seed": 0}
"""What the config of a data set without a split of its own did not say before there was a choice."""


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
    dataset = config.get("dataset")
    if isinstance(dataset, dict) and "split" not in dataset:
        config = {**config, "dataset": {**NOTHING_HELD_OUT, **dataset}}
    return {"objective": {"name": "denoise"}, **config}
