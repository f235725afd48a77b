"""Samplers: from noise to data, each a pure function (denoise, schedule, x, ts, noise, *, options) -> x.

`denoise(x, t) -> x0_hat` has label, guidance and clipping closed over; `ts` falls from t_max to 0 (`grid.time_grid`);
`noise(i)` is fresh N(0, I) like x for step i. With z_hat = (x - alpha x0_hat)/sigma the probability-flow ODE is
dx = x0_hat d(alpha) + z_hat d(sigma), for every schedule and with no derivative of either. So a step that holds x0_hat
and z_hat is x_s = alpha_s x0_hat + sigma_s z_hat: DDIM, EDM's Euler and rectified flow's Euler are this one line.
The other samplers differ in what they know of x0_hat or z_hat between the nodes:

    steps        what they share: levels of noise, the line above, the posterior of DDPM, weights of a polynomial
    single_step  nothing: ddim, euler; the posterior: ancestral, euler_ancestral; a second evaluation: heun, dpm2
    adams        a polynomial through past z_hat: lms, deis, ipndm
    exponential  a polynomial through past x0_hat: dpmpp_2m, dpmpp_2m_sde, dpmpp_3m_sde, unipc
    adaptive     steps of the size that a tolerance asks for: ode, and the way back from data to noise
    grid         where the steps end

Options are keyword-only and equal the YAML keys, beside those of the time grid.
"""

from diffgen.samplers import adams, exponential, single_step
from diffgen.samplers.adaptive import encode
from diffgen.samplers.grid import time_grid
from diffgen.samplers.steps import SAMPLERS, Denoise, Noise

__all__ = ["SAMPLERS", "Denoise", "Noise", "adams", "encode", "exponential", "single_step", "time_grid"]
