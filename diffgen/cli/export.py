"""`diffgen-export`: a checkpoint to formats of others, and diffusers' folders to checkpoints."""

import sys
from typing import Any

from diffgen.cli import app, configs
from diffgen.cli.train import codes_text, indent
from diffgen.core.errors import EXIT_CODES
from diffgen.core.settings import export_settings

SAMPLERS = ("ancestral", "ddim")
"""Those by which the schedulers of diffusers draw that are read."""


def job(config: dict[str, Any], config_yaml: str) -> None:
    """Check the settings, then export."""
    settings = export_settings({key: value for key, value in config.items() if key != "plugins"})
    samplers = {name: configs.compose_group("sampler", name) for name in SAMPLERS}
    from diffgen.exporting.export import export  # torch, and all that takes seconds to import

    export(settings, samplers)


def help_text() -> str:
    """What `--help` prints."""
    return f"""diffgen-export: a checkpoint in a format of others, and the way in from diffusers.

usage: diffgen-export ckpt=PATH to=FOLDER [format=diffusers|onnx|torch|diffgen] [KEY=VALUE ...]

examples:
  diffgen-export ckpt=RUN to=exported                      for diffusers: DDPMPipeline.from_pretrained("exported")
  diffgen-export ckpt=RUN to=program format=onnx           the denoiser x, t, label -> x0_hat for ONNX Runtime
  diffgen-export ckpt=RUN to=program format=torch          the same for torch.export
  diffgen-export ckpt=ddpm-cifar10-32 to=cifar format=diffgen      a folder of diffusers as a checkpoint: ckpt=cifar

settings:
{indent(configs.settings_text("export"))}

exit codes:
{codes_text(EXIT_CODES)}"""


def main() -> int:
    """Entry point."""
    return app.run("export", job, help_text)


if __name__ == "__main__":
    sys.exit(main())
