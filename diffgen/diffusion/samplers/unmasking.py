"""Samplers of masked diffusion: from hidden tokens to a whole example.

A sampler is a function (predict, schedule, x, ts, noise, *, options) -> x as those of Gaussian noise are, of tokens:
`predict(x, t)` gives log-probabilities [B, *size, V] with label and guidance closed over; x int64 [B, *size] holds
`HIDDEN` where a token is to be found, and what else it holds is given and stays; `noise(i)` is draw number i of uniform
numbers in [0, 1) like x, each used once.

Which tokens appear is decided first, and what they are then, each by a number of its own. To draw both at once, from
V + 1 chances by Gumbel noise, would need more than float32: the largest number below 1 bounds that noise, so that rare
events never come, and samples are less varied than the model (Zheng et al. 2024, sec. 4).
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from diffgen.core.devices import float_type
from diffgen.core.errors import require
from diffgen.core.registry import Table
from diffgen.diffusion.masking import HIDDEN
from diffgen.diffusion.samplers.steps import Denoise, Noise
from diffgen.diffusion.schedules import Schedule

UNMASKERS = Table("sampler")

Grid = Literal["linear", "cosine"]


@UNMASKERS.register("unmask")
def unmask(
    predict: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, steps: int, grid: Grid
) -> Tensor:
    """The reverse process: from t to s a hidden token appears with chance (alpha_s - alpha_t) / (1 - alpha_t).

    The network is asked where one does; in other steps its last answer would still hold (Sahoo et al. 2024, sec. 3.5,
    keep it for them), since it is told no time. So there are at most as many calls as steps.

    Args:
        predict: See the module, as `x` and `noise`.
        schedule: alpha(t).
        x: Where to start.
        ts: The first is t_max.
        noise: Uniform.
        steps: Of the grid of times.
        grid: `linear` in t, or `cosine`, t = cos(pi/2 (1 - u)) for even u, in smaller steps while most is hidden (Shi
            et al. 2024, sec. 4).
    """
    return remask(predict, schedule, x, ts, noise, steps=steps, grid=grid, eta=0.0)


@UNMASKERS.register("remask")
def remask(
    predict: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, steps: int, grid: Grid, eta: float
) -> Tensor:
    """The same with a way back: a token that appeared is hidden again with chance r, and so can be mended.

    r = eta min(1, (1 - alpha_s) / alpha_t), and a hidden token appears with chance (alpha_s - (1 - r) alpha_t) /
    (1 - alpha_t), so that as many are hidden at each time as in `unmask` (Wang et al. 2025, ReMDM, eq. 5-7 and the
    rescaled schedule of sec. 4.1). Tokens that vanish together are drawn anew apart, so that more steps do not lead to
    the model's own distribution exactly. `eta` is in [0, 1]; 0 is `unmask`.
    """
    require(0 <= eta <= 1, f"sampler.eta={eta} must be in [0, 1]")
    given = x != HIDDEN
    for i, (alpha, later) in enumerate(chances(schedule, ts, steps, grid)):
        back = eta * min(1.0, (1 - later) / alpha) if alpha > 0 else 0.0
        hidden, draws = x == HIDDEN, noise(2 * i)
        appears = hidden & (draws < (later - (1 - back) * alpha) / (1 - alpha))
        vanishes = ~hidden & ~given & (draws < back)
        if appears.any():
            x = revealed(x, appears, predict(x, ts[0]), noise(2 * i + 1))
        x = torch.where(vanishes, HIDDEN, x)
    return x


@UNMASKERS.register("first_hitting")
def first_hitting(predict: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """The reverse process without a grid: one token after the other, in random order (Zheng et al. 2024, sec. 3).

    In continuous time no two tokens appear at once, and the next to appear is each of the hidden with the same chance.
    When it does matters to nobody, since the network is told no time. So this is exact, in a network call a token.
    """
    order = noise(0)
    for i in range(most_hidden(x)):
        last = order.masked_fill(x != HIDDEN, -1.0).flatten(1).argmax(1, keepdim=True)
        appears = torch.zeros_like(x, dtype=torch.bool).flatten(1).scatter(1, last, True).reshape(x.shape)
        x = revealed(x, appears & (x == HIDDEN), predict(x, ts[0]), noise(i + 1))
    return x


@UNMASKERS.register("confidence")
def confidence(predict: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, steps: int) -> Tensor:
    """Draw every hidden token, keep the likeliest draws, hide the others again (Chang et al. 2022; Nie et al. 2025).

    Samples look better and are less varied: this is NOT the distribution of the model, and no likelihood is of it. In
    each of the steps as many become known; at most one step for each token is made.
    """
    require(1 <= steps <= MOST_STEPS, f"sampler.steps={steps} must be in [1, {MOST_STEPS}]")
    hidden_at_first = (x == HIDDEN).flatten(1).sum(1, keepdim=True)
    steps = min(steps, most_hidden(x))
    for i in range(steps):
        hidden, log_p = x == HIDDEN, predict(x, ts[0])
        drawn = revealed(x, hidden, log_p, noise(i))
        sure = log_p.gather(-1, drawn.clamp(min=0)[..., None])[..., 0].masked_fill(~hidden, -math.inf).flatten(1)
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        due = hidden_at_first * (i + 1) // steps - hidden_at_first * i // steps
        x = torch.where(hidden & (rank < due).reshape(x.shape), drawn, x)
    return x


MOST_STEPS = 100_000


def chances(schedule: Schedule, ts: Tensor, steps: int, grid: Grid) -> Iterator[tuple[float, float]]:
    """alpha at both ends of each step, from t_max to data.

    Raises:
        UsageError: The number of steps is out of range.
    """
    require(1 <= steps <= MOST_STEPS, f"sampler.steps={steps} must be in [1, {MOST_STEPS}]")
    u = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu")
    share = torch.sin(u * math.pi / 2) if grid == "cosine" else u
    alphas = schedule.alpha(float(ts[0]) * share).tolist()
    return pairwise(alphas)


def most_hidden(x: Tensor) -> int:
    """Hidden tokens of the example that has most of them."""
    return int((x == HIDDEN).flatten(1).sum(1).max())


def revealed(x: Tensor, appears: Tensor, log_p: Tensor, u: Tensor) -> Tensor:
    """x with tokens drawn where they appear, by the inverse of their distribution function in double precision.

    Args:
        x: int64 [B, *size].
        appears: Where, bool [B, *size].
        log_p: [B, *size, V].
        u: Uniform in [0, 1), [B, *size].

    Returns:
        Like x. A token whose chances are no numbers stays hidden, and whoever finds one in a sample says so.
    """
    below = log_p[appears].to(float_type(x.device)).exp().cumsum(-1)  # [n, V], of these tokens alone: V may be large
    drawn = (~(below > u[appears].to(below)[:, None] * below[:, -1:])).sum(-1)
    x = x.clone()
    x[appears] = torch.where(drawn == log_p.shape[-1], HIDDEN, drawn)
    return x
