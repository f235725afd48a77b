"""Autoencoding: few latents from which pictures can be made again, by the bound on their likelihood."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.randomness import normal
from diffgen.core.registry import Table
from diffgen.diffusion.codec import Codec, log_mass, nats_to_bits_per_dim
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers.prior import PRIORS
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.tasks import Start, Wrap
from diffgen.objectives.base import OBJECTIVES, Batch, Trial, check_plain, finite


@OBJECTIVES.register("autoencode")
@dataclass(frozen=True, kw_only=True)
class Autoencode:
    """-log p(x | z) + kl KL(q(z | x) || p(z)) in bits per dimension: the bound on the likelihood where kl is 1.

    (Kingma & Welling 2014, eq. 3; with another weight Higgins et al. 2017, eq. 4. Rombach et al. 2022, app. G, take a
    tiny one, so that latents keep what pictures show.)

    Attributes:
        kl: Weight of the divergence from the prior; of quantised latents it is a constant.
        likelihood: p(x | z), of which the network learns the width for each channel.
    """

    kl: float
    likelihood: Literal["logistic", "gaussian"]
    samplers: ClassVar[Table] = PRIORS
    discrete: ClassVar[bool] = False
    noise_type: ClassVar[torch.dtype] = torch.float32
    path: ClassVar[bool] = False
    codes: ClassVar[bool] = True
    labelled: ClassVar[bool] = False
    spans: ClassVar[bool] = False
    estimates: ClassVar[bool] = False
    makes: ClassVar[str] = "is an autoencoder"

    def __post_init__(self) -> None:
        require(0 <= self.kl <= 1000, f"kl={self.kl:g} must be in [0, 1000]")

    def suited(self, kind: Any) -> Any:
        """Pictures as real numbers in [-1, 1].

        Raises:
            UsageError: They are something else.
        """
        suited = kind.as_numbers()
        told = f"objective=autoencode is for pictures, and the data is {kind.unit}"
        require(suited.judged and suited.bounded, told)
        return suited

    def check(self, weighting: object, density: object) -> None:
        """Require that nothing of a path is asked for: there is none.

        Raises:
            UsageError: A weighting or density was chosen.
        """
        check_plain(weighting, density, "objective=autoencode has no noise levels to weight or to draw")

    def noise(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal."""
        return normal(out, generator)

    def times(self, t: Tensor, schedule: Schedule) -> Tensor:
        """As they are; nothing asks for them."""
        return t

    def inputs(self, size: tuple[int, ...], noise_size: tuple[int, ...], device: torch.device) -> tuple[Tensor, ...]:
        """A picture, and noise for its latents."""
        return torch.zeros(1, *size, device=device), torch.zeros(1, *noise_size, device=device)

    def loss(self, codec: Codec, weighting: object, batch: Batch) -> Tensor:
        """What is learned, of each example, [B].

        Args:
            codec: The network in its frame.
            weighting: None.
            batch: With standard normal z of the latents' size.
        """
        decoded, log_scale, rate = codec.model(batch.x0, batch.z)
        distortion = -log_mass(batch.x0, decoded.float(), log_scale, self.likelihood).flatten(1).sum(1)
        bits = nats_to_bits_per_dim(distortion + self.kl * rate.flatten(1).sum(1), batch.x0)
        return bits if codec.perceptual is None else bits + codec.perceptual(decoded.float(), batch.x0)

    def start(self, noise: Tensor, codec: Codec, t: Tensor) -> Tensor:
        """Latents from the prior."""
        return codec.of_noise(noise)

    def noise_of(self, x0: Tensor, codec: Codec, t: Tensor, rtol: float) -> Tensor:
        """The mean of q(z | x0), as noise."""
        with torch.inference_mode():
            return codec.noise_of(codec.encode(x0).mean).to(x0)

    def keep(self, x0: Tensor, free: Tensor, start: Start) -> tuple[Start, Wrap]:
        """Nothing of a picture can be kept by its latents alone, and no task asks for it."""
        raise NotImplementedError

    def guided(
        self, codec: Codec, label: Tensor, guidance: Guidance, *, clip: bool, doubles: bool
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The decoder; there are no labels to guide by."""
        return lambda z, t: codec.decode(z)

    def seen(self, x: Tensor, schedule: Schedule, t: Tensor) -> Tensor:
        """Latents are no picture, and no task asks for them."""
        raise NotImplementedError

    def finished(self, x: Tensor) -> Tensor:
        """In single precision.

        Raises:
            NonFiniteError: A value is not finite.
        """
        return finite(x)

    def trial(self, size: tuple[int, ...]) -> Trial:
        """Latents that are their own picture."""
        one = torch.ones(1, 1, 8, 8, dtype=torch.float64)
        return Trial(lambda x, t: x, one, lambda step: one)
