"""The gradient of a batch, accumulated over micro-batches that fit into memory.

The loss is the mean over the batch, so the update does not depend on how the batch is cut, except for rounding and
dropout.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from diffgen.core import memory
from diffgen.core.compilation import Compiled
from diffgen.core.errors import ProcessFault, first_line, out_of_memory
from diffgen.core.randomness import mix
from diffgen.objectives import Batch

Loss = Callable[[Batch], Tensor]
"""The loss of each example of a batch, [B]."""


class Gradients:
    """Forward and backward passes of this process's share of a batch.

    Attributes:
        micro_batch: Images in memory at once; halved when memory runs out.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        modules: list[nn.Module],
        loss: Loss,
        seed: int,
        micro_batch: int,
        say: Callable[[str], None],
        compiled: Compiled | None = None,
    ) -> None:
        """Take what a pass needs.

        Args:
            accelerator: Of the run.
            modules: What the loss calls, and processes exchange gradients of.
            loss: Of each image.
            seed: Of dropout.
            micro_batch: Images at once, to begin with.
            say: Is told of a new size.
            compiled: The compiled network among the modules, if there is one.
        """
        self.compiled = compiled
        self.accelerator, self.modules, self.loss, self.seed = accelerator, modules, loss, seed
        self.micro_batch, self.say = micro_batch, say

    def accumulate(self, step: int, batch: Batch) -> Tensor:
        """Add the gradient of the batch's mean loss to the parameters; returns that loss, [].

        Raises:
            ProcessFault: Out of memory with a single image, or on one of several processes.
        """
        while True:
            try:
                return self._pass(step, batch, exchange=True)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                reason = first_line(error)
                if self.accelerator.num_processes > 1:  # the others wait in an exchange that cannot be taken back
                    rank = self.accelerator.process_index
                    raise ProcessFault(
                        f"out of memory on process {rank} with micro-batches of {self.micro_batch} images: "
                        "start again with a smaller train.micro_batch; the batch stays what it is"
                    ) from None
            self._halve(len(batch.x0), reason)  # outside the handler, whose traceback keeps the tensors alive

    def find_micro_batch(self, step: int, batch: Batch) -> None:
        """Find a micro-batch that fits on every process, before the first step: a pass that changes nothing.

        If one of them cannot compile, none goes on compiled: they would wait for it in every step. One process alone
        finds out in its steps.
        """
        while self.accelerator.num_processes > 1:
            reason = self._try(step, batch)
            reasons = [each for each in gather_object([reason]) if each]
            self._clear()
            if not reasons:
                return self._agree_on_compiling()
            self._halve(len(batch.x0), reasons[0])

    def _agree_on_compiling(self) -> None:
        if self.compiled:
            failures = [failure for failure in gather_object([self.compiled.failure]) if failure]
            if failures and self.compiled.failure is None:
                self.compiled.give_up(failures[0])

    def _try(self, step: int, batch: Batch) -> str | None:
        """Why a pass does not fit, in a library's words; None if it does."""
        try:
            self._pass(step, batch, exchange=False)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return first_line(error)
        return None

    def _pass(self, step: int, batch: Batch, *, exchange: bool) -> Tensor:
        size = len(batch.x0)
        starts = range(0, size, self.micro_batch)
        total = torch.zeros((), device=batch.x0.device)
        for number, start in enumerate(starts):
            torch.manual_seed(mix(self.seed, "dropout", step, self.accelerator.process_index, number))
            with ExitStack() as alone:
                for module in self.modules if not exchange or number < len(starts) - 1 else ():
                    alone.enter_context(self.accelerator.no_sync(module))
                loss = self.loss(batch.part(start, start + self.micro_batch)).sum() / size
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _halve(self, size: int, reason: str) -> None:
        tried = min(self.micro_batch, size)
        if tried == 1:
            raise ProcessFault(memory.ONE_IMAGE.format(reason))
        self.micro_batch = (tried + 1) // 2
        self._clear()
        memory.give_back()
        self.say(
            f"out of memory with {tried} images at once: going on with micro-batches of {self.micro_batch}; "
            f"the batch stays what it is, its gradients add up ({reason})"
        )

    def _clear(self) -> None:
        for module in self.modules:
            module.zero_grad()
