"""A task of diffgen-tune of your own: a copy with rounded weights, to see how many digits matter.

diffgen-train run_dir=outputs/plain
diffgen-tune plugins=[docs/examples/tune.py] ckpt=outputs/plain task=rounded out=outputs/rounded
"""

from diffgen.storage import checkpoint
from diffgen.tuning.job import TUNES, Job


@TUNES.register("rounded")
def rounded(job: Job, *, digits: int = 3) -> None:
    """Write the checkpoint with so many digits behind the point of each weight."""
    saved, out = job.saved, job.place("rounded")
    weights = {name: weight.mul(10**digits).round().div(10**digits) for name, weight in saved.weights.items()}
    checkpoint.save_model(out, saved.config, saved.images, weights)
    job.reporter.say(f"weights: {out}")
