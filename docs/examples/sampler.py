"""A sampler of your own: Euler's, with the implied noise scaled down.

diffgen-train plugins=[docs/examples/sampler.py] sampler=quiet_euler run_dir=outputs/quiet
diffgen-sample plugins=[docs/examples/sampler.py] ckpt=outputs/quiet n=16 sampler=quiet_euler sampler.shrink=0.98
"""

from torch import Tensor

from diffgen.diffusion.samplers.steps import SAMPLERS, Denoise, Noise, steps, z_hat
from diffgen.diffusion.schedules import Schedule


@SAMPLERS.register("quiet_euler", order=None)  # it does not converge to the solution of the ODE
def quiet_euler(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, shrink: float = 0.99
) -> Tensor:
    """Keys of the time grid stand beside its own."""
    for _, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        x = then.alpha * x0_hat + shrink * then.sigma * z_hat(x, x0_hat, now)
    return x
