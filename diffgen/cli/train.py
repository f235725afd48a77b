"""`diffgen-train`: train a diffusion or flow-matching model as YAML and the command line say."""

import sys
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

from diffgen.cli import app, configs
from diffgen.core.errors import EXIT_CODES, TRAINING_CODES, UsageError
from diffgen.core.registry import convert
from diffgen.core.settings import SECTIONS, TOP, section


def job(config: dict[str, Any], config_yaml: str) -> None:
    """Check the settings, then train."""
    default_run_dir = check(config)
    if app.is_sweep():
        config["run_dir"] = str(app.job_folder(config["run_dir"]))
    from diffgen.training.trainer import train  # torch, and all that takes seconds to import

    train(config, config_yaml, default_run_dir)


def check(config: dict[str, Any]) -> str:
    """Check the settings outside the tables, and convert those outside any group, in place.

    Args:
        config: As it was composed, plain data.

    Returns:
        Where a new run goes if `run_dir` is null.

    Raises:
        UsageError: A setting has the wrong type or range.
    """
    if config["run_dir"] == "":
        raise UsageError("run_dir is empty: give a folder, or null for outputs/<dataset>-<method>/<time>")
    config.update({key: convert(key, config[key], hint) for key, hint in TOP.items()})
    for name in SECTIONS:
        section(config, name)
    name = f"{config['dataset']['name']}-{config['method']}"
    return str(Path("outputs") / name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))


def help_text() -> str:
    """What `--help` prints."""
    choices = "\n".join(
        choices_line(*group) for group in configs.groups().items() if group[0] not in ("recipe", "task")
    )
    return f"""diffgen-train: train a diffusion or flow-matching model.

usage: diffgen-train [GROUP=CHOICE ...] [KEY=VALUE ...] [-m] [--cfg job]

examples:
  diffgen-train                                        the embedded digits, under a minute anywhere
  diffgen-train dataset=cifar10                        the recipe that suits CIFAR-10
  diffgen-train dataset=mnist train.minutes=8
  diffgen-train dataset=cifar10 method=ddpm model=unet_large train.batch_size=256
  diffgen-train dataset=image_folder dataset.root=my/pictures dataset.size=64
  diffgen-train 'logger=[jsonl,tensorboard]'           event files for TensorBoard, too
  diffgen-train run_dir=outputs/digits-flow/...        go on with an interrupted run
  diffgen-train -m dataset=mnist method=edm,flow train.seed=1,2
  torchrun --nproc_per_node 8 --no-python diffgen-train dataset=cifar10

groups (GROUP=CHOICE; a data set brings its recipe, a method sets schedule to sampler; every key stays yours):
{choices}

settings (KEY=VALUE; a data set's recipe changes some of these defaults: --cfg job shows the values of a command):
{indent(configs.settings_text("train"))}

--cfg job prints the whole config; -m sweeps over comma-separated values; -sc install=bash gives tab completion.

exit codes:
{codes_text({**EXIT_CODES, **TRAINING_CODES})}"""


def choices_line(group: str, names: list[str]) -> str:
    """A group and its choices, folded."""
    return textwrap.fill(", ".join(names), 118, initial_indent=f"  {group:<18}", subsequent_indent=20 * " ")


def codes_text(codes: dict[int, str]) -> str:
    """Exit codes and what they mean, a line each."""
    return "\n".join(f"  {code:<4} {meaning}" for code, meaning in sorted(codes.items()))


def indent(text: str) -> str:
    """Two spaces before each line."""
    return "\n".join(f"  {line}" if line else "" for line in text.splitlines())


DEMO = "experiment=quickstart"
"""What is trained where nothing is asked for."""


def main() -> int:
    """Entry point; without arguments it is `DEMO`."""
    if len(sys.argv) == 1:
        sys.argv.append(DEMO)
    return app.run("train", job, help_text)


if __name__ == "__main__":
    sys.exit(main())
