"""Networks compiled by torch where that works, and run as they stand where it does not."""

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from diffgen.core.errors import ProcessFault, first_line, out_of_memory

Call = Callable[..., Tensor]

SIZES = 64
"""Shapes of input to compile for: more than there ever are. Beyond its own limit of eight torch runs a network as it
stands, and only a log says so."""


def wanted(setting: bool | Literal["auto"], *, pays: bool) -> bool:
    """Whether to compile: as the setting says, and where that is `auto`, if it pays."""
    return pays if setting == "auto" else setting


class Compiled(nn.Module):
    """A network that is compiled for each shape of its inputs, or runs as it stands if it cannot be.

    torch compiles when a shape first comes, and the backward pass when it is first asked for; what goes wrong then can
    be anything, from a missing C compiler to a full disk. So both passes of a new shape are tried out before they
    count. What fails compiled and passes as it stands is the compiler's failure, whatever its error is called; what
    fails both ways is the network's own, or memory's, and is raised as it is. (Hooks on the network's forward are
    called only where it runs as it stands.)

    Attributes:
        failure: Why the compiled form is not in use, or None.
    """

    def __init__(self, network: nn.Module, *, key: str, required: bool) -> None:
        """Compile nothing yet.

        Args:
            network: What to compile; it keeps its weights and its names.
            key: The setting that asked for it, for sentences.
            required: Whether a failure ends the command, or is a warning.
        """
        super().__init__()
        self.network, self.key, self.required = network, key, required
        self.failure: str | None = None
        self.tried: set[tuple[object, ...]] = set()
        self.compiled: Call | None = None

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """What the network gives; None is an input that is not there.

        Raises:
            ProcessFault: The network cannot be compiled, and that is required.
        """
        kind = (torch.is_grad_enabled(), *(None if x is None else (x.shape, x.requires_grad) for x in inputs))
        if self.failure is None and kind not in self.tried:
            self._try(inputs)
            self.tried.add(kind)
        return self.compiled(*inputs) if self.compiled and self.failure is None else self.network(*inputs)

    def _try(self, inputs: Sequence[Tensor | None]) -> None:
        devices = [x.device for x in inputs[:1] if x is not None and x.is_cuda]
        try:
            with torch.random.fork_rng(devices):  # dropout of the pass that counts is as if there were no trial
                self.compiled = self.compiled or compiled(self.network)
                self._passes(self.compiled, inputs)
        except Exception as error:
            if out_of_memory(error):
                raise
            reason = first_line(error)
        else:
            return
        with torch.random.fork_rng(devices):
            self._passes(self.network, inputs)
        self.give_up(reason)

    def _passes(self, call: Call, inputs: Sequence[Tensor | None]) -> None:
        """Forward, and backward where that may follow; its gradients go nowhere."""
        out = call(*inputs)
        sources = [x for x in (*inputs, *self.network.parameters()) if x is not None and x.requires_grad]
        outs = [each for each in (out if isinstance(out, tuple) else (out,)) if each is not None and each.requires_grad]
        if outs:
            total = torch.stack([each.float().sum() for each in outs]).sum()
            torch.autograd.grad(total, sources, allow_unused=True)

    def give_up(self, reason: str) -> None:
        """Run the network as it stands from now on.

        Raises:
            ProcessFault: It has to be compiled.
        """
        told = f"torch cannot compile the network here ({reason})"
        if self.required:
            raise ProcessFault(f"{self.key}=true, but {told}: mend that, or choose {self.key}=auto or false")
        self.failure = reason
        warnings.warn(f"{told}: it runs as it stands, which is slower ({self.key}=false)", stacklevel=2)


def compiled(network: nn.Module) -> Call:
    """What torch's compiler makes of a network; that the compiler starts is part of what can fail."""
    # a graph for each size: one for all sizes is slower, since it cannot choose how convolutions lie in memory
    call: Call = torch.compile(network.forward, dynamic=False)
    torch._dynamo.config.recompile_limit = SIZES
    return call


def forget() -> None:
    """Let the next job of a sweep compile anew: its network and its sizes are others."""
    if "torch._dynamo" in sys.modules:  # else nothing was compiled, and to import it takes a second
        torch.compiler.reset()
