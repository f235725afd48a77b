"""`diffgen-tune`: better or faster samples of a trained model, without training it."""

import sys
from typing import Any

from diffgen.cli import app, configs
from diffgen.cli.eval import dataset_of
from diffgen.cli.train import choices_line, codes_text, indent
from diffgen.core.errors import EXIT_CODES, UsageError
from diffgen.core.settings import tune_settings

PARTS = ("tune", "sampler", "extractor", "dataset", "plugins")


def job(config: dict[str, Any], config_yaml: str) -> None:
    """Check the settings, then tune."""
    settings = tune_settings({key: value for key, value in config.items() if key not in PARTS})
    if app.is_sweep() and settings.out is not None:
        raise UsageError(f"out={settings.out} is one place, and a sweep has many results: leave it out")
    dataset = dataset_of(config["dataset"], settings.ckpt)
    from diffgen.tuning.tune import tune  # torch, and all that takes seconds to import

    tune(settings, config["tune"], config["sampler"], config["extractor"], dataset)


def help_text() -> str:
    """What `--help` prints."""
    choices = "\n".join(choices_line(group, configs.groups()[group]) for group in ("tune", "sampler", "extractor"))
    return f"""diffgen-tune: better or faster samples of a trained model, without training it.

usage: diffgen-tune ckpt=PATH [task=grid|covariance|neon] [sampler=CHOICE] [KEY=VALUE ...]

examples:
  diffgen-tune ckpt=RUN sampler=ipndm sampler.steps=6          a time grid for six network calls, kept in the run
  diffgen-sample ckpt=RUN sampler=ipndm sampler.steps=6 sampler.spacing=tuned             and samples by it
  diffgen-tune -m ckpt=RUN sampler=ipndm,deis sampler.steps=5,7
  diffgen-tune ckpt=RUN task=neon task.tuned=SELF_TRAINED guidance=1     weights away from those trained on own samples
  diffgen-tune ckpt=RUN task=covariance                        keeps the data's mean and covariance for sampler.skip_to

groups:
{choices}

settings:
{indent(configs.settings_text("tune"))}

exit codes:
{codes_text(EXIT_CODES)}"""


def main() -> int:
    """Entry point; `task=NAME` is a group of its own here, and `dataset=NAME` a setting."""
    renamed = {"task=": "tune=", "task.": "tune.", "dataset=": "dataset.name=", "dataset.": "++dataset."}
    for old, new in renamed.items():
        sys.argv[1:] = [new + a.removeprefix(old) if a.startswith(old) else a for a in sys.argv[1:]]
    return app.run("tune", job, help_text, checked_by_job=("dataset",))


if __name__ == "__main__":
    sys.exit(main())
