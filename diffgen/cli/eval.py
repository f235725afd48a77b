"""`diffgen-eval`: numbers for a checkpoint or a folder of pictures."""

import sys
from pathlib import Path
from typing import Any

from diffgen.cli import app, configs
from diffgen.cli.train import choices_line, codes_text, indent
from diffgen.core.errors import EXIT_CODES, UsageError, unknown
from diffgen.core.eval_settings import eval_settings

ROWS: list[dict[str, Any]] = []
"""Results of the jobs of a sweep."""

FOLDERS: set[Path] = set()
"""The sweep's folder, if this is one."""

PLACES = ("root", "path", "labels", "held_out")
"""Keys of a data set that say where something is."""

PARTS = ("sampler", "extractor", "dataset", "plugins")


def job(config: dict[str, Any], config_yaml: str) -> None:
    """Check the settings, then evaluate."""
    settings = eval_settings({key: value for key, value in config.items() if key not in PARTS})
    dataset, moved = dataset_of(config["dataset"], settings.ckpt)
    from diffgen.evaluation.evaluate import evaluate  # torch, and all that takes seconds to import

    FOLDERS.update({app.sweep_folder().parent} if app.is_sweep() else ())
    ROWS.append(evaluate(settings, config["sampler"], config["extractor"], dataset, moved))


def dataset_of(given: dict[str, Any], ckpt: str | None) -> tuple[dict[str, Any], str]:
    """The data set's config, and what to say where its examples are not found.

    It is the run's own, where the checkpoint lies in a run, with the keys that were given in their place; of a
    checkpoint that stands alone the name and what was held out are known, and else the data set's own defaults hold.
    """
    typed = {key: value for key, value in given.items() if key != "name" and value is not None}
    own = _own(ckpt) if ckpt else {}
    name = own.get("name", "") if given["name"] == "auto" else given["name"]
    if ckpt is None and given["name"] == "auto":
        raise UsageError("dataset is missing: dataset=NAME says what the images are judged by")
    if name not in configs.groups()["dataset"]:
        raise UsageError(unknown(f"dataset={str(name)!r}", configs.groups()["dataset"]))
    remembered = _at(own, typed) if own.get("name") == name else {}
    config = {**configs.compose_group("dataset", name), **remembered}
    for key in typed:
        if key not in config:
            raise UsageError(f"dataset.{key} is not a setting of dataset={name}; it has [{', '.join(config)}]")
    return {**config, **typed}, _moved({key: value for key, value in remembered.items() if key not in typed})


def _own(ckpt: str) -> dict[str, Any]:
    """What is known of the data set that a checkpoint was trained on."""
    from diffgen.evaluation.held_out import noted
    from diffgen.storage import checkpoint

    about = checkpoint.describe(Path(ckpt))
    own = noted(about.config)
    run = (checkpoint.run_config(about.path) or {}).get("dataset", {})
    return {**run, **own} if run.get("name") == own["name"] else own


def _at(own: dict[str, Any], typed: dict[str, Any]) -> dict[str, Any]:
    """A run's data set with the places inside its root where that is now."""
    old, new = own.get("root"), typed.get("root")
    if old is None or new is None:
        return own
    places = {key: Path(own[key]).absolute() for key in PLACES if isinstance(own.get(key), str)}
    root = Path(old).absolute()
    inside = {key: place.relative_to(root) for key, place in places.items() if place.is_relative_to(root)}
    return {**own, **{key: str(Path(str(new)) / place) for key, place in inside.items()}}


def _moved(remembered: dict[str, Any]) -> str:
    """What to say of places that are not where the run had them."""
    places = {key: remembered[key] for key in PLACES if isinstance(remembered.get(key), str)}
    lost = [f"dataset.{key}={place!r}" for key, place in places.items() if not Path(place).expanduser().exists()]
    where = " ".join(each.partition("=")[0] + "=PATH" for each in lost)
    return f"; ckpt was trained with {', '.join(lost)}, which is not here: {where} says where it is now" if lost else ""


def _tell_sweep(folder: Path) -> None:
    """One table and one plot of all jobs, in the sweep's folder."""
    from diffgen.core.files import write_atomically, write_json
    from diffgen.evaluation import report

    heads, cells = report.many(ROWS)
    print("\n".join(report.as_text(heads, cells)))
    write_json(folder / "results.json", ROWS)
    write_atomically(folder / "results.csv", report.as_csv(heads, cells))
    picture = report.plot(ROWS)
    if picture:
        write_atomically(folder / "plot.png", picture)
    print(
        f"table: {folder / 'results.csv'}, {folder / 'results.json'}"
        + (f"   plot: {folder / 'plot.png'}" if picture else "")
    )


def help_text() -> str:
    """What `--help` prints."""
    choices = "\n".join(choices_line(group, configs.groups()[group]) for group in ("sampler", "extractor", "dataset"))
    return f"""diffgen-eval: numbers for a checkpoint of pictures, clips or text, or a folder of pictures or films.

usage: diffgen-eval ckpt=PATH [metrics=NAME,...] [KEY=VALUE ...]
       diffgen-eval images=FOLDER|FILE.npz dataset=NAME [KEY=VALUE ...]

examples:
  diffgen-eval ckpt=outputs/digits-flow/...                      its table, each figure beside its floors
  diffgen-eval ckpt=... dataset.root=data n=5000                 where the data is now, and fewer images
  diffgen-eval ckpt=... extractor=inception n=50000              FID-50k, with the published network
  diffgen-eval ckpt=... metrics=bits n=256                       bits/dim of held-out images
  diffgen-eval ckpt=... metrics=vlb n=256                        their variational bound, for ddpm_linear
  diffgen-eval ckpt=VAE_RUN                                      of an autoencoder: bounds, how pictures come back
  diffgen-eval ckpt=TEXT_RUN metrics=bits                        bits/char of held-out text, beside n-gram models
  diffgen-eval images=my/pictures dataset=cifar10
  diffgen-eval images=clips.npz dataset=moving_digits            of clips: frames, pairs of them, motion, exact checks
  diffgen-eval -m ckpt=A,B sampler=ddim,heun,dpmpp_2m sampler.steps=5,10,20     one table and one plot
  torchrun --nproc_per_node 8 --no-python diffgen-eval ckpt=...

groups:
{choices}

settings:
{indent(configs.settings_text("eval"))}

metrics of pictures: fd Frechet distance, kd kernel distance, is inception score, pr precision and recall, dc density
and coverage, agreement with the asked labels, copies of training images, bits per dimension, vlb its variational bound,
denoising error by noise level, cas classification accuracy score. bits, vlb and denoising draw no images. FID and KID
are the names of the first two with extractor=inception, and only then.

metrics of autoencoders: elbo, bounds on the bits per dimension of held-out images; reconstruction, how these come back
(PSNR, SSIM, Frechet distance) and how much of the latents is used, which a model trained in latents has too; and those
of pictures that its prior makes (fd, kd, is, pr, dc, copies).

metrics of clips: fd_frames and fd_pairs Frechet distances of frames and of consecutive ones, motion how much changes
between them, checks of one moving digit (labels, shape, straight lines); bits, vlb and denoising as of pictures.

metrics of text: ngrams distance of n-gram statistics to held-out text, runs that stand in the training text, entropy of
single tokens, right samples where the data can tell, bits per token. Each stands beside its floor.

exit codes:
{codes_text(EXIT_CODES)}"""


def main() -> int:
    """Entry point; `dataset=NAME` is a setting here, since a recipe for training is not wanted."""
    sys.argv[1:] = [f"dataset.name={a.partition('=')[2]}" if a.startswith("dataset=") else a for a in sys.argv[1:]]
    sys.argv[1:] = [f"++{a}" if a.startswith("dataset.") else a for a in sys.argv[1:]]  # of any data set
    sys.argv[1:] = [
        f"metrics=[{a[8:]}]" if a.startswith("metrics=") and a[8:9] not in ("[", "") else a for a in sys.argv[1:]
    ]
    ROWS.clear()
    FOLDERS.clear()
    code = app.run("eval", job, help_text, checked_by_job=("dataset",))
    for folder in FOLDERS if ROWS else ():
        _tell_sweep(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
