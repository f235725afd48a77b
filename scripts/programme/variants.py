"""Ways to train or sample that diffgen does not go, each beside the way that it goes.

To try another one, add a line to `VARIANTS`: a context manager in which the package is another one. It lives in a
process of its own (`benchmark.competitor`), so it may patch whatever it likes.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from benchmark import sampling, training
from benchmark.clock import Call
from benchmark.competitor import Competitor
from benchmark.layouts import DDPM, LAYOUTS, TINY, Costs
from torch import Tensor, nn

from diffgen.data.base import Stored
from diffgen.nets import casting
from diffgen.training.trainer import Trainer
from programme import steps
from programme.work import RANDOM, Piece, Row, Work, needs_gpu

NFE = 10  # network calls of a draw
DRAWN = 256  # images


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """cuDNN tries its algorithms for each shape and takes the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """The compiled passes are recorded and replayed: one launch by the host for all their kernels.

    Weights that are cast together would be copied before each replay, as they are inputs of the network then: they are
    cast where they are used.
    """
    step = Trainer._step

    def marked(self: Trainer, stored: Stored) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        return step(self, stored)

    recorded = partial(torch.compile, mode="reduce-overhead")
    with patch.object(torch, "compile", recorded), patch.object(Trainer, "_step", marked), weights_cast_where_used():
        yield


@contextmanager
def group_norm_in_16_bits() -> Iterator[None]:
    """Autocast makes group norm float32 in and out; here both are 16 bits, and its sums are float32 all the same."""

    def forward(self: nn.GroupNorm, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)

    with patch.object(nn.GroupNorm, "forward", forward):
        yield


@contextmanager
def weights_cast_where_used() -> Iterator[None]:
    """Autocast casts each weight where it is used, as it does without `diffgen.nets.casting`."""
    with patch.dict(casting.LOW, clear=True):
        yield


@contextmanager
def channels_last() -> Iterator[None]:
    """The network that samples lies in memory as the one that trains."""
    network = sampling.our_network
    with patch.object(
        sampling,
        "our_network",
        lambda layout: network(layout).to(memory_format=torch.channels_last),
    ):
        yield


@dataclass(frozen=True)
class Variant:
    """One of them.

    Attributes:
        apply: The context in which the package is that way.
        batch: Images a step, where it should matter most.
        draws: Whether it is about sampling.
        cuda: Whether there is nothing of it without CUDA.
    """

    apply: Callable[[], AbstractContextManager[None]]
    batch: int = 512
    draws: bool = False
    cuda: bool = False


VARIANTS = {
    "cudnn.benchmark": Variant(cudnn_benchmark, cuda=True),
    "CUDA graphs": Variant(cuda_graphs, batch=128, cuda=True),
    "group norm in bfloat16": Variant(group_norm_in_16_bits),
    "weights cast where used": Variant(weights_cast_where_used, batch=128),
    "channels_last in sampling": Variant(channels_last, draws=True),
}


@contextmanager
def build(
    layout: str, name: str, variant: str | None, draws: bool, folder: str, batch: int, burst: int
) -> Iterator[Call]:
    """A builder for `benchmark.competitor`: `burst` steps, or draws, by a variant of diffgen, or by none."""
    with ExitStack() as stack:
        stack.enter_context(VARIANTS[variant].apply() if variant else nullcontext())
        if draws:
            stack.enter_context(torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()))
            yield training.repeated(drawing(layout, batch, compiles="compiled" in name), burst)
        else:
            yield stack.enter_context(training.build(layout, name, folder, batch, burst))


def drawing(layout: str, images: int, *, compiles: bool) -> Call:
    """A call that draws images."""
    which, device = LAYOUTS[layout], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network: Any = sampling.our_network(which).to(device).eval()
    network = torch.compile(network, dynamic=False) if compiles else network
    return sampling.our_draws(network, which.shape, images, device)["diffgen ddim"](NFE)


def compared(name: str, work: Work) -> Row:
    """A variant and the base, taking turns."""
    variant, which = VARIANTS[name], TINY if work.tiny else DDPM
    if variant.cuda:
        needs_gpu(work)
    batch = 2 if work.tiny else DRAWN if variant.draws else variant.batch
    cost = Costs().of("diffgen", which)
    if variant.draws:
        cost = {**cost, "gflop": cost["gflop"] / 3 * NFE}
    with ExitStack() as stack:
        settings: Row = {"folder": steps.pictured(stack, which, work), "burst": steps.turns(work)[0]}
        settings |= {"builder": "programme.variants", "batch": batch, "draws": variant.draws}
        found = {
            label: stack.enter_context(Competitor(which.name, steps.ours(work), variant=chosen, **settings))
            for label, chosen in {"base": None, name: name}.items()
        }
        rows = steps.measured(work, found, dict.fromkeys(found, batch), dict.fromkeys(found, cost))
    gain = rows[1]["images_per_second"] / rows[0]["images_per_second"]
    return {"batch": batch, "data": RANDOM, "rows": rows, "times_base": gain}


PIECES = {name: Piece(4, partial(compared, name)) for name in VARIANTS}
