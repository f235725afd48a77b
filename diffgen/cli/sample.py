"""`diffgen-sample`: turn a checkpoint into pictures, clips or text."""

import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from diffgen.cli import app, configs
from diffgen.cli.train import choices_line, codes_text, indent
from diffgen.core.errors import EXIT_CODES, UsageError
from diffgen.core.settings import SampleSettings, sample_settings


def job(config: dict[str, Any], config_yaml: str) -> None:
    """Check the settings, then sample."""
    settings = check(config)
    if config["ckpt"] is None:
        raise UsageError(
            "ckpt is missing: diffgen-sample ckpt=PATH, a .safetensors file, checkpoint folder or run directory"
        )
    default_out = Path("outputs") / "samples" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    if app.is_sweep():
        settings = replace(settings, out=str(app.job_folder(settings.out)))
    from diffgen.sampling.generate import generate  # torch, and all that takes seconds to import

    generate(settings, config["sampler"], config["task"], default_out)


def check(config: dict[str, Any]) -> SampleSettings:
    """The checked settings beside the sampler and the task."""
    return sample_settings({key: value for key, value in config.items() if key not in ("sampler", "task", "plugins")})


def help_text() -> str:
    """What `--help` prints."""
    choices = "\n".join(choices_line(group, configs.groups()[group]) for group in ("sampler", "task"))
    return f"""diffgen-sample: turn a checkpoint into pictures, clips or text.

usage: diffgen-sample ckpt=PATH [sampler=CHOICE] [KEY=VALUE ...]

examples:
  diffgen-sample ckpt=outputs/digits-flow/...                  its newest checkpoint, 64 images, a grid
  diffgen-sample ckpt=model.safetensors n=100 label=3 guidance=2
  diffgen-sample ckpt=RUN sampler=dpmpp_2m sampler.steps=10
  diffgen-sample ckpt=RUN n=50000 'save=[npz]' out=samples     for an evaluator: arr_0 images, arr_1 labels
  diffgen-sample ckpt=RUN task=inpaint task.image=a.png task.mask=m.png
  diffgen-sample ckpt=RUN task=interpolate 'task.seeds=[1,2]' n=10 label=3
  diffgen-sample ckpt=TEXT_RUN n=400 out=texts                 samples.txt, a line each, and samples.npz
  diffgen-sample ckpt=TEXT_RUN task=infill 'task.text="The function ____ the value"'
  diffgen-sample -m ckpt=RUN sampler=ddim,heun sampler.steps=5,10,20

groups (confidence, first_hitting, remask and unmask are for method=masked, the other samplers for all else):
{choices}

settings:
{indent(configs.settings_text("sample"))}

exit codes:
{codes_text(EXIT_CODES)}"""


def main() -> int:
    """Entry point."""
    return app.run("sample", job, help_text)


if __name__ == "__main__":
    sys.exit(main())
