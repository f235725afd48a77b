"""Settings that others bring with them: a data set's recipe comes after the method, and would have the last word.

What is given beside them wins, and an experiment pins what it needs itself.
"""

from collections.abc import Mapping

AUTOENCODER = {"model": "vae_tiny"}

METHODS: Mapping[str, Mapping[str, str]] = {
    "vae": AUTOENCODER,
    "fsq": {**AUTOENCODER, "model.levels": "[8,5,5,5]"},  # 1000 codes a site
}
"""What a method brings."""

LATENT: Mapping[str, str] = {"model": "unet_latent", "denoiser.sigma_data": "1.0"}
"""What `latent=PATH` brings: a network for few sites, and the deviation of latents, which are scaled to it."""


def with_brought(overrides: list[str]) -> list[str]:
    """Overrides of a training run with what they bring; `latent=PATH` is `latent.path=PATH`."""
    overrides = [f"latent.path={o.partition('=')[2]}" if o.startswith("latent=") else o for o in overrides]
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    brought: dict[str, str] = {}
    methods = [name.strip() for name in given.get("method", "").split(",")]
    if all(name in METHODS for name in methods):  # a sweep over others, too, has to name its networks
        brought |= METHODS[methods[0]]
    if given.get("latent.path", "null") not in ("null", ""):
        brought |= LATENT
    if "experiment" in given:
        brought.pop("model", None)
    return [*overrides, *(f"{key}={value}" for key, value in brought.items() if key not in given)]
