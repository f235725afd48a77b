"""Settings that others bring with them: a data set's recipe comes after the method, and would have the last word.

What is given beside them wins, and an experiment pins what it needs itself.
"""

from collections.abc import Mapping

AUTOENCODER = {"model": "vae_tiny", "optimizer": "adamw", "optimizer.lr": "2.0e-3"}

METHODS: Mapping[str, Mapping[str, str]] = {
    "vae": AUTOENCODER,
    "fsq": {**AUTOENCODER, "model.levels": "[8,5,5,5]"},  # 1000 codes a site
}
"""What a method brings."""

LATENT: Mapping[str, str] = {"denoiser.sigma_data": "1.0"}
"""What `latent=PATH` brings: the deviation of latents, which are scaled to it."""

LEARNER: Mapping[str, str] = {"model": "unet_latent", "optimizer": "muon_small", "optimizer.lr": "2.0e-3"}
"""And a network for few sites with what it learns by."""

CHAIN = ("model", "optimizer", "optimizer.lr")
"""Each was chosen for the one before it: where one is given it is not brought, nor what follows."""


def with_brought(overrides: list[str]) -> list[str]:
    """Overrides of a training run with what they bring; `latent=PATH` is `latent.path=PATH`."""
    overrides = [f"latent.path={o.partition('=')[2]}" if o.startswith("latent=") else o for o in overrides]
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    brought: dict[str, str] = {}
    methods = [name.strip() for name in given.get("method", "").split(",")]
    if all(name in METHODS for name in methods):  # of a sweep what all of its methods bring; it has to name the rest
        common = set.intersection(*(set(METHODS[name].items()) for name in methods))
        brought |= {key: value for key, value in METHODS[methods[0]].items() if (key, value) in common}
    paths = given.get("latent.path", "null").split(",")
    if not {"null", ""} & set(paths):  # a sweep over pixels, too, has to name what its jobs take
        brought |= {**LATENT, **LEARNER}
    pinned = next((at for at, key in enumerate(CHAIN) if "experiment" in given or key in given), len(CHAIN))
    wanted = {key: value for key, value in brought.items() if key not in (*given, *CHAIN[pinned:])}
    return [*(f"{key}={value}" for key, value in wanted.items()), *overrides]  # flags may end them
