"""The gradient of a batch, accumulated over micro-batches that fit into memory.

The loss is the mean over the batch, so the update does not depend on how the batch is cut, except for rounding and
dropout.
"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffgen import memory
from diffgen.errors import ProcessFault, out_of_memory
from diffgen.feed import Batch, part
from diffgen.randomness import mix

Loss = Callable[..., Tensor]
"""(x0, label, t, z, told) -> loss of each image, [B]."""


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
    ) -> None:
        """Args: modules: what the loss calls and processes exchange gradients of; say: is told of a new size."""
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
                if self.accelerator.num_processes > 1:  # the others wait in an exchange that cannot be taken back
                    rank = self.accelerator.process_index
                    raise ProcessFault(
                        f"out of memory on process {rank} with micro-batches of {self.micro_batch} images: "
                        "start again with a smaller train.micro_batch; the batch stays what it is"
                    ) from None
            self._halve(len(batch[0]))  # outside the handler, whose traceback keeps the tensors alive

    def rehearse(self, step: int, batch: Batch) -> None:
        """Find a micro-batch that fits on every process, before the first step: a pass that changes nothing.

        One process alone finds it when memory runs out, at any step.
        """
        while self.accelerator.num_processes > 1:
            fits = self._try(step, batch)
            told = self.accelerator.gather(torch.tensor([fits], dtype=torch.int64, device=self.accelerator.device))
            self._clear()
            if int(told.min()):
                return
            self._halve(len(batch[0]))

    def _try(self, step: int, batch: Batch) -> bool:
        try:
            self._pass(step, batch, exchange=False)
        except Exception as error:
            if not out_of_memory(error):
                raise
            return False
        return True

    def _pass(self, step: int, batch: Batch, *, exchange: bool) -> Tensor:
        size = len(batch[0])
        starts = range(0, size, self.micro_batch)
        total = torch.zeros((), device=batch[0].device)
        for number, start in enumerate(starts):
            torch.manual_seed(mix(self.seed, "dropout", step, self.accelerator.process_index, number))
            with ExitStack() as alone:
                for module in self.modules if not exchange or number < len(starts) - 1 else ():
                    alone.enter_context(self.accelerator.no_sync(module))
                loss = self.loss(*part(batch, start, start + self.micro_batch)).sum() / size
                self.accelerator.backward(loss)
            total += loss.detach()
        return total

    def _halve(self, size: int) -> None:
        tried = min(self.micro_batch, size)
        if tried == 1:
            raise ProcessFault(memory.ONE_IMAGE)
        self.micro_batch = (tried + 1) // 2
        self._clear()
        memory.give_back()
        self.say(
            f"out of memory with {tried} images at once: going on with micro-batches of {self.micro_batch}; "
            f"the batch stays what it is, its gradients add up"
        )

    def _clear(self) -> None:
        for module in self.modules:
            module.zero_grad()
