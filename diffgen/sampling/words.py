"""What a run draws with, in a line each."""

from collections.abc import Mapping
from typing import Any

from diffgen.core.paths import named_file
from diffgen.diffusion.guidance import Guidance
from diffgen.storage import posthoc
from diffgen.storage.checkpoint import Checkpoint


def shown(config: Mapping[str, Any]) -> str:
    """A part's name and settings in one line."""
    settings = [f"{key} {_brief(value)}" for key, value in config.items() if key != "name" and value is not None]
    return ", ".join([str(config["name"]), *settings])


def _brief(value: object) -> object:
    """Numbers by four digits, and rows of them, as fitted weights are, by their count: all would fill the screen."""
    if not isinstance(value, list | tuple) or not value:
        return value
    if all(isinstance(row, list | tuple) for row in value):
        return f"in {len(value)} rows"
    return f"[{', '.join(f'{each:.4g}' if isinstance(each, float) else str(each) for each in value)}]"


def shown_task(config: Mapping[str, Any]) -> str:
    """The same of a task, with whether its text was read from a file: a name with a mistake in it is a text, too."""
    if config.get("text") is None:
        return shown(config)
    text = str(config["text"])
    told = f"of the file {text}" if named_file(text) else f"{text} (as it stands, no file)"
    return shown({**config, "text": told})


def shown_average(saved: Checkpoint) -> str:
    """How the weights were averaged, where that was chosen afterwards."""
    ema = posthoc.facts(saved.config)
    if not {"sigma_rel", "made_from", "missed"} <= ema.keys():
        return ""
    return f", ema.sigma_rel {ema['sigma_rel']:g} from {ema['made_from']} averages (misses {ema['missed']:.1%})"


def shown_guidance(guidance: Guidance, guide: str | None) -> str:
    """Scale, interval, rescaling and guide in one line."""
    parts = [f"{guidance.scale:g}" if guidance.scale != 1 else "off"]
    parts += [f"inside {list(guidance.interval)}"] if guidance.interval else []
    parts += [f"rescaled {guidance.rescale:g}"] if guidance.rescale else []
    return ", ".join(parts + ([f"away from {guide}"] if guide else []))
