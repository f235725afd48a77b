"""The denoiser as a program, x, t, label -> x0_hat: for torch.export, and for ONNX.

What is written is read again and run beside the original before it is called done.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from diffgen.build import Trained
from diffgen.core.errors import DiffgenError, EnvironmentFault, UsageError, first_line, out_of_memory
from diffgen.core.files import write_atomically, writing
from diffgen.diffusion.denoiser import NO_LABEL, Denoiser
from diffgen.storage.checkpoint import Checkpoint

FILES = {"torch": "denoiser.pt2", "onnx": "denoiser.onnx"}

MISSING = "format=onnx needs a library that is not installed ({}): pip install 'diffgen[export]'"

TOLERANCE = 1e-4
"""Largest difference from the original, as a share of the largest |x0_hat| at that t, or of 1."""

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Where in [t_min, t_max] the two are compared."""

Inputs = tuple[Tensor, Tensor, Tensor]
Program = Callable[[Tensor, Tensor, Tensor], Tensor]

README = """# A denoiser as a program

Written by diffgen-export from {path}, {images:,} images seen. `{file}` computes x0_hat = E[x0 | x_t = x].

| input | type | shape | what |
|---|---|---|---|
| x | float32 | [batch, {size}] | x_t = alpha(t) x0 + sigma(t) z; x0 of {unit}{range} |
| t | float32 | [batch] | time in [{t_min:g}, {t_max:g}] of schedule={schedule} |
| label | int64 | [batch] | {labels} |

The output is x0_hat, float32, of the shape of x. The batch may be of any size, and each example of a time of its own.
This file was compared with the original at {count} times, one batch for each and one for all: the largest difference is
{difference:.1e} of the largest |x0_hat|.{given}
"""


class Whole(nn.Module):
    """A denoiser as one module, so that its network's weights are the module's."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.model, self.denoiser = denoiser.model, denoiser

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x0_hat."""
        return self.denoiser(x, t, label)


def write(folder: Path, saved: Checkpoint, trained: Trained, format: str) -> list[str]:
    """Write the program and a README that says what goes in and comes out.

    Args:
        folder: Empty.
        saved: The checkpoint.
        trained: What it holds.
        format: One of `FILES`.

    Returns:
        What to tell the user.

    Raises:
        UsageError: The network cannot be traced, or what was written computes something else.
        EnvironmentFault: A library is missing, or the disk is full.
    """
    path = folder / FILES[format]
    if format == "onnx":
        require_onnx()
    try:
        traced = trace(trained)
        with writing(path):
            program = to_onnx(traced, path) if format == "onnx" else to_torch(traced, path)
    except DiffgenError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        raise UsageError(f"format={format} cannot hold this network: {first_line(error)}") from error
    difference = compare(program, trained)
    if not difference <= TOLERANCE:
        raise UsageError(
            f"format={format} computes something else: it differs by {difference:.1e} of the largest |x0_hat|, and "
            f"{TOLERANCE:g} is allowed; nothing was written"
        )
    write_atomically(folder / "README.md", readme(saved, trained, FILES[format], difference))
    return [f"x, t, label -> x0_hat, within {difference:.1e} of the original at {len(SHARES)} times"]


def trace(trained: Trained) -> torch.export.ExportedProgram:
    """The denoiser's graph for any number of examples."""
    whole, examples = Whole(trained.denoiser), inputs(trained, [0.5] * 3)
    whole(*examples)  # what is kept from a first call is of real numbers then, not of traced ones
    batch = torch.export.Dim("batch")
    return torch.export.export(whole, examples, dynamic_shapes=({0: batch},) * 3)


def to_torch(traced: torch.export.ExportedProgram, path: Path) -> Program:
    """Save for torch.export.load, and load that; weights lie in the archive as they are."""
    torch.export.save(traced, path)
    program: Program = torch.export.load(path).module()  # of this file alone, just written: a stranger's may run code
    return program


def require_onnx() -> None:
    """Require the libraries of the extra `export`.

    Raises:
        EnvironmentFault: One is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise EnvironmentFault(MISSING.format(error.name)) from None


def to_onnx(traced: torch.export.ExportedProgram, path: Path) -> Program:
    """Save as ONNX, and load that into ONNX Runtime."""
    import onnxruntime

    names = ["x", "t", "label"]
    exported = torch.onnx.export(traced, input_names=names, output_names=["x0_hat"], dynamo=True, verbose=False)
    assert exported is not None
    exported.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(*given: Tensor) -> Tensor:
        fed = {name: value.numpy() for name, value in zip(names, given, strict=True)}
        return torch.from_numpy(session.run(None, fed)[0])

    return run


def inputs(trained: Trained, shares: Sequence[float]) -> Inputs:
    """Random x of the size that x_t has, an example for each share of the times, labels in turn and one of none."""
    schedule, shape, count = trained.denoiser.schedule, trained.shape, len(shares)
    t = torch.tensor([schedule.t_min + share * (schedule.t_max - schedule.t_min) for share in shares])
    x = torch.randn(count, *shape.size, generator=torch.Generator().manual_seed(count))
    labels = [i % shape.num_classes if i and shape.num_classes else NO_LABEL for i in range(count)]
    size = torch.hypot(schedule.alpha(t), schedule.sigma(t)).view(-1, *[1] * len(shape.size))
    return x * size, t, torch.tensor(labels)


@torch.inference_mode()
def compare(program: Program, trained: Trained) -> float:
    """The largest difference from the denoiser, as a share of the largest |x0_hat|, or of 1.

    At each time by itself, as samplers call it, and at all in one batch, as training does.
    """
    worst = 0.0
    for shares in [*([share] * 4 for share in SHARES), SHARES]:
        x, t, label = inputs(trained, shares)
        right = trained.denoiser(x, t[0] if shares is not SHARES else t, label)
        difference = (program(x, t, label) - right).abs().max() / right.abs().max().clamp(min=1)
        worst = max(worst, float(difference.nan_to_num(nan=math.inf)))
    return worst


def readme(saved: Checkpoint, trained: Trained, file: str, difference: float) -> str:
    """What the program takes and gives, in words."""
    classes, schedule = trained.classes or range(trained.shape.num_classes), trained.denoiser.schedule
    named = ", ".join(f"{i}" if str(name) == f"{i}" else f"{i} {name}" for i, name in enumerate(classes))
    return README.format(
        path=saved.path,
        images=saved.images,
        file=file,
        size=", ".join(map(str, trained.shape.size)),
        unit=trained.kind.unit,
        range=" in [-1, 1], which is byte / 127.5 - 1" if trained.kind.bounded else "",
        t_min=schedule.t_min,
        t_max=schedule.t_max,
        schedule=saved.config["schedule"]["name"],
        labels=f"the class, or {NO_LABEL} for none: {named}" if named else f"{NO_LABEL}: it knows no classes",
        given=" The network can be told of known frames; here it is told of none." if trained.shape.given else "",
        count=len(SHARES),
        difference=difference,
    )
