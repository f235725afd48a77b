"""Mean and covariance of a model's data, computed once and kept with it."""

from diffgen.build import data_shape
from diffgen.core.console import count
from diffgen.core.errors import require
from diffgen.data.base import all_x0
from diffgen.data.latents import Latents
from diffgen.diffusion.gaussian import Moments
from diffgen.storage import checkpoint
from diffgen.tuning.job import TUNES, Job


@TUNES.register("covariance")
def covariance(job: Job) -> None:
    """Write a copy of a checkpoint that keeps the moments of the data it was trained on."""
    saved, kind = job.saved, job.trained.kind
    told = "task=covariance looks at pictures, and ckpt was trained on latents: train with train.covariance=true"
    require(not isinstance(kind, Latents), told)
    out, train = job.place("covariance"), job.splits().train
    of_run = (checkpoint.run_config(saved.path) or {}).get("train")
    mirrored = isinstance(of_run, dict) and of_run.get("horizontal_flip") is True
    unknown = "" if of_run else " (whether their mirror images were seen is not known outside of a run)"
    job.reporter.header(
        f"diffgen-tune: {saved.path}",
        {
            "task": "covariance",
            "examples": f"{len(train):,} {kind.unit}{' and their mirror images' if mirrored else unknown}",
        },
    )
    shape = data_shape(saved.config)
    moments = Moments.of(all_x0(train, mirrored=mirrored), shape.num_classes)
    weights = checkpoint.whole(saved.weights, saved.autoencoder, moments._asdict())
    checkpoint.save_model(out, saved.config, saved.images, weights)
    size = sum(part.numel() * part.element_size() for part in moments)
    job.reporter.say(f"weights: {out} (with {count(size)}B of moments)")
    job.reporter.say(f"next:    diffgen-sample ckpt={out} sampler=ipndm sampler.steps=6 sampler.skip_to=10")
