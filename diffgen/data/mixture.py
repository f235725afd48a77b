"""Vectors from a Gaussian mixture: the one data set for which the best possible denoiser is known exactly."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.files import write_atomically
from diffgen.core.randomness import generator
from diffgen.data.base import DATASETS, Drawer
from diffgen.data.vectors import VectorSet, denoise, report_times

FRESH = 4096  # vectors that a reconstruction error is averaged over


class Mixture(VectorSet):
    """Vectors in memory, and their exact distribution: equal shares of N(means[k], std^2 I).

    Attributes:
        means: float64 [K, D].
        std: Standard deviation of each component.
    """

    def __init__(self, values: Tensor, fresh: Callable[[int, int], Tensor], means: Tensor, std: float) -> None:
        """See `VectorSet`; there are no labels."""
        super().__init__(values, torch.full((len(values),), -1), (), fresh)
        self.means, self.std = means, std

    def posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x0 | x_t = x] for x_t = alpha x0 + sigma z: what no network can do better than.

        Component k makes x_t ~ N(alpha m_k, v I) with v = alpha^2 std^2 + sigma^2, and given k the pair
        (x0, x_t) is jointly Gaussian; so the answer is the components' regression lines, weighted by their
        probabilities given x.

        Args:
            x: [n, D].
            alpha: [].
            sigma: [].

        Returns:
            float64 [n, D].
        """
        v = (alpha * self.std) ** 2 + sigma**2
        offset = x[:, None].double() - alpha * self.means  # [n, K, D]
        probability = torch.softmax(-offset.square().sum(-1) / (2 * v), dim=1)  # [n, K]
        lines = self.means + alpha * self.std**2 / v * offset
        return (probability[:, :, None] * lines).sum(1)

    def preview(self, drawer: Drawer, labels: list[int], columns: int | None, path: Path) -> str:
        """See `VectorSet.preview`; also compares the network with the exact posterior mean."""
        from diffgen.core.plots import lines

        rows = self.reconstruction(drawer)
        table = [
            f"{t:8.3f} {network:9.4f} {exact:17.4f} {mean:13.4f} {network / exact:17.3f}"
            for t, network, exact, mean in rows
        ]
        ts, network, exact, mean = zip(*rows, strict=True)
        curves = {"network": network, "exact posterior mean": exact, "guess of the mean": mean}
        errors = lines(ts, curves, "t", "mean squared error of x0_hat")
        write_atomically(path.with_stem(f"{path.stem}-reconstruction"), errors)
        text = [
            f"reconstruction of x0 from x_t: mean squared error of a value, over {FRESH:,} fresh vectors",
            "       t   network   E[x0|x_t] exact   the mean x0   network / exact",
            *table,
            *self.example(drawer),
            super().preview(drawer, labels, columns, path),
        ]
        write_atomically(path.with_suffix(".txt"), "\n".join(text) + "\n")
        return "\n".join(text)

    def reconstruction(self, drawer: Drawer) -> list[tuple[float, float, float, float]]:
        """t and the mean squared errors of network, posterior mean and plain mean, for each of several t."""
        x0, z = self.pairs(FRESH)
        rows = []
        for t in report_times(drawer.denoiser.schedule).flip(0):
            estimates = [*self.estimates(drawer, x0, z, t)[1:], self.means.mean(0)]
            rows.append((float(t), *(float((estimate - x0).square().mean()) for estimate in estimates)))
        return rows  # type: ignore[return-value]

    def pairs(self, n: int) -> tuple[Tensor, Tensor]:
        """n fresh vectors x0 and noises z, float64 [n, D] each; always the same."""
        x0 = self.fresh(n, 0).double()
        return x0, torch.randn(x0.shape, generator=generator("cpu", 0, "reconstruction"), dtype=x0.dtype)

    def estimates(self, drawer: Drawer, x0: Tensor, z: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_t, the network's x0_hat and the exact posterior mean, float64 [n, D] each."""
        schedule = drawer.denoiser.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * x0 + sigma * z
        return x, denoise(drawer, x, t), self.posterior_mean(x, alpha, sigma)

    def example(self, drawer: Drawer) -> list[str]:
        """One vector, halfway to noise and back."""
        x0, z = self.pairs(1)
        t = report_times(drawer.denoiser.schedule)[2]
        x, x0_hat, exact = self.estimates(drawer, x0, z, t)
        rows = {"x0": x0, "x_t": x, "x0_hat": x0_hat, "E[x0|x_t]": exact}
        text = [f"{name:>10} " + " ".join(f"{value:6.2f}" for value in row[0].tolist()) for name, row in rows.items()]
        return [f"one of them at t = {float(t):g}", *text]


@DATASETS.register("mixture")
def mixture(*, n: int, dim: int, components: int, std: float, seed: int) -> Mixture:
    """Draw the component means from N(0, I), then n vectors.

    Args:
        n: How many vectors.
        dim: D, values in a vector.
        components: K; 1 is a plain Gaussian.
        std: Standard deviation of each component.
        seed: Of means and vectors.
    """
    require(1 <= n <= 100_000_000, f"n={n} must be in [1, 100000000]")
    require(1 <= dim <= 65536, f"dim={dim} must be in [1, 65536]")
    require(1 <= components <= 4096, f"components={components} must be in [1, 4096]")
    require(0 < std < 100, f"std={std} must be in (0, 100)")
    require(0 <= seed < 2**63, f"seed={seed} must be in [0, 2^63)")
    means = torch.randn(components, dim, dtype=torch.float64, generator=generator("cpu", seed, "means"))

    def draw(count: int, purpose: str, number: int) -> Tensor:
        rng = generator("cpu", seed, purpose, number)
        chosen = torch.randint(components, (count,), generator=rng)
        return (means[chosen] + std * torch.randn(count, dim, dtype=torch.float64, generator=rng)).float()

    vectors = draw(n, "vectors", 0)
    return Mixture(vectors, lambda count, number: draw(count, "fresh", number), means, std)
