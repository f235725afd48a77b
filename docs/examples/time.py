"""A density of t of your own, as its quantile function: more of the times near the data.

diffgen-train plugins=[docs/examples/time.py] time=early time.power=3
"""

from torch import Tensor

from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.times import TIMES


@TIMES.register("early")
def early(u: Tensor, schedule: Schedule, *, power: float = 2.0) -> Tensor:
    """u in (0, 1) to t_min + (t_max - t_min) u^power."""
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u**power
