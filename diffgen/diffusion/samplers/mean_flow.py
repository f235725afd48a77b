"""Steps of any size by a network that is told how far they go."""

from torch import Tensor

from diffgen.core.registry import Table
from diffgen.diffusion.samplers.steps import Denoise, Facts, Noise, euler_step, steps
from diffgen.diffusion.schedules import Schedule

JUMPERS = Table("sampler", Facts)
"""What goes with no other objective; it has all of `SAMPLERS`, too."""


@JUMPERS.register("mean_flow")
def mean_flow(denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
    """x_s = x_t + (s - t) u(x_t, s, t), with the mean velocity u of the step (Geng et al. 2025, algorithm 2).

    With x0_hat := x - t u it is Euler's step, of a denoiser that is told where the step ends. The mean velocity of a
    whole way makes it in one step.
    """
    for _, now, then in steps(schedule, ts):
        x = euler_step(x, denoise(x, now.t, then.t), now, then)
    return x
