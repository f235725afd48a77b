"""What `accelerate launch` asks of the processes that it starts: followed where it means something, else refused.

It asks by variables of the environment, which Accelerate would read by itself, each in its own way.
"""

import os
from collections.abc import Collection

from diffgen.core.errors import require

SPLITTING = ("FSDP", "DEEPSPEED", "MEGATRON_LM", "PARALLELISM_CONFIG", "TP", "SAGEMAKER")
"""Ways to split what a process holds whole here: ACCELERATE_USE_<name>."""

PRECISIONS = ("no", "bf16", "fp16")
"""What the launcher's mixed precision may be."""

NO_SPLITTING = (
    "the launcher asks for {0} (ACCELERATE_USE_{0}): each process of diffgen holds the whole network, and shares the "
    "batch; launch it without, with --multi_gpu, or by torchrun"
)

NO_ACCUMULATION = (
    "the launcher asks for gradient_accumulation_steps={} (ACCELERATE_GRADIENT_ACCUMULATION_STEPS): launch it without; "
    "train.batch_size counts the images of a step, and train.micro_batch those in memory at once"
)

NO_DYNAMO = (
    "the launcher asks for dynamo_backend={} (ACCELERATE_DYNAMO_BACKEND): launch it without; the setting compile, "
    "or train.compile, says whether the network is compiled"
)


def _asked(name: str, default: str) -> str:
    return os.environ.get(f"ACCELERATE_{name}", default).lower() or default


def wants_cpu() -> bool:
    """Whether the launcher was told `--cpu`."""
    return _asked("USE_CPU", "false") in ("1", "true", "yes", "on", "y", "t")


def check() -> None:
    """Refuse what would be ignored, or done by halves.

    Raises:
        UsageError: The launcher asks for a network in pieces, for accumulation of gradients or a compiler of its own.
    """
    for name in SPLITTING:
        require(_asked(f"USE_{name}", "false") in ("false", "0", "no"), NO_SPLITTING.format(name))
    steps, backend = _asked("GRADIENT_ACCUMULATION_STEPS", "1"), _asked("DYNAMO_BACKEND", "no")
    require(steps in ("1", "auto"), NO_ACCUMULATION.format(steps))
    require(backend == "no", NO_DYNAMO.format(backend))


def precision(setting: str, known: Collection[str]) -> str:
    """The precision of a command's setting; where that is `auto`, the launcher's if it names one.

    Its `no` names none: it is what the launcher says where nobody has said anything.

    Args:
        setting: What the command was given.
        known: What it could have been given.

    Raises:
        UsageError: The launcher's is none of those that there are.
    """
    asked = _asked("MIXED_PRECISION", "no")
    if setting != "auto" or asked == "no":
        return setting
    require(
        asked in PRECISIONS,
        f"the launcher's mixed_precision={asked} (ACCELERATE_MIXED_PRECISION) is unknown here; choose one of "
        f"[{', '.join(PRECISIONS)}]",
    )
    return asked if asked in known else setting


def told(used: str) -> str:
    """A precision, and how it agrees with the launcher's."""
    asked = _asked("MIXED_PRECISION", "no")
    if asked == "no":
        return used
    return f"{used}, the launcher's" if used == asked else f"{used} (not the launcher's {asked})"
