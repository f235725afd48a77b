"""`diffgen-export`: what is read, what is written, and the folder that it lies in."""

from collections.abc import Mapping
from pathlib import Path

from diffgen.build import Config, Trained, restore
from diffgen.core.console import Reporter
from diffgen.core.errors import UsageError, require
from diffgen.core.files import folder_atomically
from diffgen.core.paths import setting
from diffgen.core.settings import ExportSettings
from diffgen.data.latents import Latents
from diffgen.exporting import from_diffusers, programs, to_diffusers
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint

WRITTEN = {"README.md", "model_index.json", "unet", "scheduler", *programs.FILES.values(), "model.safetensors"}
"""What an export may hold: a folder that holds more is not replaced."""


def export(settings: ExportSettings, samplers: Mapping[str, Config]) -> None:
    """Write a checkpoint in another format, or a folder of diffusers as a checkpoint.

    Args:
        settings: Checked settings.
        samplers: Configs of the samplers of an incoming folder, by name.

    Raises:
        UsageError: The format cannot hold the checkpoint, or the folder is not free.
        CheckpointError: What is to be read is missing, damaged or refused.
        EnvironmentFault: A library is missing, or the folder cannot be written. Nothing is left of it then.
    """
    source, folder = Path(str(settings.ckpt)), Path(str(settings.to))
    check_folder(folder, source, overwrite=settings.overwrite)
    reporter = Reporter(speaks=True)
    if settings.format == "diffgen":
        found = from_diffusers.read(source, samplers)
        checkpoint.save_model(folder, found.config, found.images, found.weights)
        notes = [*found.notes, f"next: diffgen-sample {setting('ckpt', folder)}"]
    else:
        if (source / "model_index.json").exists():
            raise UsageError(f"ckpt={str(source)!r} is a folder of diffusers: format=diffgen makes a checkpoint of it")
        saved = checkpoint.load(source)
        trained = restore(saved)
        _check_denoiser(saved, trained)
        with folder_atomically(folder) as temporary:
            if settings.format == "diffusers":
                notes = to_diffusers.write(temporary, saved, trained)
            else:
                notes = programs.write(temporary, saved, trained, settings.format)
    for line in (f"written: {folder}", *notes):
        reporter.say(line)


def _check_denoiser(saved: Checkpoint, trained: Trained) -> None:
    """Require what every format holds: a function x, t, label -> x0_hat.

    Raises:
        UsageError: It is something else.
    """
    held = f"ckpt={str(saved.path)!r} cannot be exported: formats hold x, t, label -> x0_hat, and"
    require(trained.objective.path, f"{held} this model {trained.objective.makes}")
    require(not isinstance(trained.kind, Latents), f"{held} this model makes latents, which nothing there would decode")
    require(
        not trained.denoiser.self_condition,
        f"{held} this network sees its own last estimate, too (model.self_condition=true)",
    )


def check_folder(folder: Path, source: Path, *, overwrite: bool) -> None:
    """Require a folder that is not there, empty, or an earlier export that may be replaced.

    Raises:
        UsageError: It is something else, or holds what is to be read.
    """
    what = f"to={str(folder)!r}"
    if folder.suffix == ".safetensors":
        raise UsageError(f"{what} names a file: give a folder; format=diffgen writes model.safetensors in it")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UsageError(f"{what} is a file: give a folder")
    there = sorted(path.name for path in folder.iterdir())
    if there and source.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"{what} holds ckpt={str(source)!r}, which is to be read: choose another folder")
    if there and not overwrite:
        raise UsageError(f"{what} already holds {there[0]}: choose another folder, or overwrite=true")
    for name in there:
        if name not in WRITTEN:
            raise UsageError(f"{what} holds {name}, which is of no export, and is not replaced: choose another folder")
