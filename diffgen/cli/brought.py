"""Settings that others bring with them: a data set's recipe comes after the method, and would have the last word.

What is given beside them wins, and an experiment pins what it needs itself.
"""

from collections.abc import Mapping
from itertools import product
from typing import Any

from diffgen.cli.checkpoint_settings import settings_of, spelled, values_of
from diffgen.cli.configs import as_it_stands
from diffgen.core.errors import require

AUTOENCODER = {"model": "vae_tiny", "optimizer": "adamw", "optimizer.lr": "2.0e-3"}

METHODS: Mapping[str, Mapping[str, str]] = {
    "vae": AUTOENCODER,
    "fsq": {**AUTOENCODER, "model.levels": "[8,5,5,5]"},  # 1000 codes a site
    "mean_flow": {"preview.guidance": "1.0", "sampler.steps": "1"},  # which recipes have for samplers of many steps
}
"""What a method brings."""

LATENT: Mapping[str, str] = {"denoiser.sigma_data": "1.0"}
"""What `latent=PATH` brings: the deviation of latents, which are scaled to it."""

LEARNER: Mapping[str, str] = {"model": "unet_latent", "optimizer": "muon_small", "optimizer.lr": "2.0e-3"}
"""And a network for few sites with what it learns by."""

FEW = {"optimizer": "adamw", "optimizer.lr": "1.0e-3", "sampler.steps": "2", "preview.guidance": "1.0"}

TUNING: Mapping[str, Mapping[str, str]] = {"ect": FEW, "reflow": FEW}
"""What methods bring that go on from a trained network, beside what that was trained with: a rate for weights that are
good already, and the few steps that they are for, where a recipe has more, and guides."""

CHAIN = ("model", "optimizer", "optimizer.lr")
"""Each was chosen for the one before it: where one is given it is not brought, nor what follows."""


def with_brought(overrides: list[str]) -> list[str]:
    """Overrides of a training run with what they bring; `latent=PATH` is `latent.path=PATH`.

    Raises:
        UsageError: They are a sweep whose jobs would be brought different settings: all would get the same.
    """
    overrides = [f"latent.path={o.partition('=')[2]}" if o.startswith("latent=") else o for o in overrides]
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    pinned = next((at for at, key in enumerate(CHAIN) if "experiment" in given or key in given), len(CHAIN))
    wanted = _undone(given)
    for key, bring in (("method", _by_method), ("latent.path", _by_path)):
        jobs = [bring(value.strip()) for value in given.get(key, "").split(",")]
        free = [
            name
            for name in dict.fromkeys(name for job in jobs for name in job)
            if name not in (*given, *CHAIN[pinned:]) and not (name.startswith("sampler.") and "sampler" in given)
        ]
        differ = [name for name in free if len({job.get(name) for job in jobs}) > 1]
        told = f"{key}={given.get(key)} brings {', '.join(differ)} to some jobs of a sweep, or differs in them"
        require(not differ, f"{told}: give what all are to have, or sweep each by itself")
        wanted |= {name: jobs[0][name] for name in free}
    wanted |= _tuning(given)
    return [*(f"{key}={value}" for key, value in wanted.items()), *overrides]  # flags may end them


def _tuning(given: Mapping[str, str]) -> dict[str, str]:
    """What a method of `TUNING` brings; a group that is given by name is not brought, nor what is in it."""
    method = given.get("method", "")
    if not set(method.split(",")) & TUNING.keys():
        return {}
    told = f"method={method} would bring settings of train.init=RUN to some jobs of a sweep"
    require(method in TUNING, f"{told}: sweep each by itself")
    brought = {**TUNING[method], **settings_of(given, method)}
    return {key: value for key, value in brought.items() if not {key, key.partition(".")[0]} & given.keys()}


def _undone(given: Mapping[str, str]) -> dict[str, str]:
    """Presets set steps and more for the sampler that they name: where another one is drawn by, it has its file's."""
    named = [values_of(group, given.get(group, "null")) or [""] for group in ("experiment", "method", "sampler")]
    jobs = [_own_settings(*job) for job in product(*named)]
    told = f"sampler={given.get('sampler')} undoes settings of a preset in some jobs of a sweep, or differs in them"
    require(all(job == jobs[0] for job in jobs), f"{told}: sweep each by itself")
    return {key: value for key, value in jobs[0].items() if key.lstrip("~") not in given}


def _own_settings(experiment: str, method: str, sampler: str) -> dict[str, str]:
    """What one job's sampler has instead of settings for another one; nothing of a plugin's, whose file is not here."""
    pinned = as_it_stands("experiment", experiment)
    meant = as_it_stands("method", _groups(pinned).get("method", ""))  # by the experiment
    preset = as_it_stands("method", method) if method else meant
    of_pinned = _groups(pinned).get("sampler", _groups(meant).get("sampler", ""))
    of_preset = _groups(preset).get("sampler", "")
    drawn_by = sampler or _groups(pinned).get("sampler", of_preset)
    others = [file for file, of in ((preset, of_preset), (pinned, of_pinned)) if of != drawn_by]
    theirs = {key: value for file in others for key, value in file.get("sampler", {}).items()}
    own = as_it_stands("sampler", drawn_by)
    kept = {f"sampler.{key}": spelled(own[key]) for key in theirs if key in own}
    return kept | {f"~sampler.{key}": spelled(value) for key, value in theirs.items() if own and key not in own}


def _groups(file: Mapping[str, Any]) -> dict[str, str]:
    """The groups that a preset overrides."""
    entries = [entry for entry in file.get("defaults", []) if isinstance(entry, dict)]
    return {key.removeprefix("override /"): value for entry in entries for key, value in entry.items()}


def _by_method(name: str) -> Mapping[str, str]:
    return METHODS.get(name, {})


def _by_path(path: str) -> Mapping[str, str]:
    return {} if path in ("", "null") else {**LATENT, **LEARNER}
