"""A task of your own: images from the darker half of the noise.

diffgen-train run_dir=outputs/plain
diffgen-sample plugins=[docs/examples/task.py] ckpt=outputs/plain task=dark n=16
"""

from torch import Tensor

from diffgen.diffusion.tasks import TASKS, Plan, Run


@TASKS.register("dark")
def dark(run: Run, *, shift: float = -0.2) -> Plan:
    """Where the sampler starts: noise of mean `shift`."""
    sigma = float(run.schedule.sigma(run.ts[0]))

    def start(indices: list[int]) -> Tensor:
        return sigma * (run.noise(indices, None) + shift)

    return Plan(start, run.ts)
