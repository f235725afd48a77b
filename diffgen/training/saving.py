"""A run as it stands, to a checkpoint and back."""

from pathlib import Path

from torch import Tensor

from diffgen.core.errors import CheckpointError
from diffgen.evaluation import held_out
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint
from diffgen.training import changes, state
from diffgen.training.parts import Parts
from diffgen.training.progress import Progress
from diffgen.training.tally import Tally
from diffgen.training.writer import Snapshot


def load(folder: Path, parts: Parts, at: Progress) -> list[str]:
    """Put a run where a checkpoint left it; returns what of its config has changed since, in words.

    Raises:
        CheckpointError: It is not whole, or of another model.
    """
    saved = checkpoint.load(folder)
    counters, tensors = checkpoint.load_state(folder)
    told = changes.compare(parts.config, counters["config"], folder)
    held_out.inherit(parts.model_config, held_out.ancestors(saved.config))
    others = [checkpoint.load(folder / f"model-{ema.profile}.safetensors") for ema in parts.emas[1:]]
    for ema, average in zip(parts.emas, [saved, *others], strict=True):
        checkpoint.check_fit(ema.averaged, average.weights, folder)
        ema.averaged.load_state_dict(average.weights)
    accelerator = parts.accelerator
    try:
        at.tally = Tally.from_tensors(tensors, accelerator.process_index, accelerator.num_processes, parts.device)
        at.step, at.images = counters["step"], counters["images"]
        stepped = at.step > int(at.tally.skipped)
        try:
            state.apply(tensors, parts.learned, parts.optimizer.optimizer, folder, stepped=stepped)
        except CheckpointError as error:
            changes.check_optimizer(error, parts.config, counters["config"], folder)
            raise
        if counters["scaler"] and accelerator.scaler:
            accelerator.scaler.load_state_dict(counters["scaler"])
        at.watch.go_on(counters["seconds"])
        told += _other_images(parts, saved, counters["data_images"])
        if parts.settings.micro_batch == "auto":
            parts.gradients.micro_batch = min(parts.local_batch, counters["micro_batch"])
    except KeyError as error:
        raise CheckpointError(f"{folder} is not a whole training state: it lacks {error}") from None
    where = (at.images, at.watch.seconds)
    return told + changes.learning_rate(parts.config, counters["config"], parts.base_lrs[0], *where)


def _other_images(parts: Parts, saved: Checkpoint, then: int) -> list[str]:
    """That the data set has other images now, which is fatal to a share that is held out from it."""
    share, now = parts.config["dataset"].get("held_out"), len(parts.dataset)
    if isinstance(share, float) and (then != now or not held_out.same_examples(saved.config, parts.model_config)):
        what = f"and has {now:,}" if then != now else "and has as many, but others"
        raise CheckpointError(
            f"cannot go on from {saved.path.parent}: the data set had {then:,} {parts.dataset.kind.unit} to train on "
            f"{what}, so that dataset.held_out={share:g} would hold out some that it has seen"
        )
    return [f"{parts.dataset.kind.unit} in the data set: {then:,} -> {now:,}"] if then != now else []


def snapshot(parts: Parts, at: Progress, losses: Tensor) -> Snapshot:
    """What a checkpoint of the run holds; `losses` are those of all processes since the last line of the log."""
    scaler = parts.accelerator.scaler
    counters = {
        "step": at.step,
        "images": at.images,
        "seconds": at.watch.seconds,
        "micro_batch": parts.gradients.micro_batch,
        "data_images": len(parts.dataset),
        "stays": bool(parts.settings.keep_every and at.crossed(parts.settings.keep_every)),
        "scaler": scaler.state_dict() if scaler else None,
        "config": parts.config,
    }
    tensors = state.gather(parts.learned, parts.optimizer.optimizer) | at.tally.tensors(losses)
    model_config = parts.model_config
    others = {
        str(ema.profile): ({**model_config, "ema": ema.profile.facts()}, parts.saved(ema.averaged))
        for ema in parts.emas[1:]
    }
    return Snapshot(at.images, model_config, parts.saved(parts.averaged), tensors, counters, others)
