"""What a checkpoint holds beside the averaged weights, so that training can go on exactly where it stopped."""

from pathlib import Path

import torch
from torch import nn

from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import Tensors
from diffgen.training import moments


def gather(learned: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> Tensors:
    """Weights and optimizer moments under flat names: `model.<weight>` and `optimizer.model.<weight>/<moment>`."""
    return {**learned.state_dict(), **moments.gather(optimizer, [*learned.named_parameters()])}


def apply(
    tensors: Tensors, learned: nn.ModuleDict, optimizer: torch.optim.Optimizer, folder: Path, *, stepped: bool
) -> None:
    """Put back what `gather` took; a learned weighting that the run did not have before starts anew.

    Args:
        tensors: What `gather` gave.
        learned: All that has parameters.
        optimizer: Of these; it has made no step.
        folder: Where they are from, for sentences.
        stepped: Whether the run had made a step that was not skipped.

    Raises:
        CheckpointError: The weights do not fit the network, or the moments the optimizer.
    """
    saved = {part: moments.below(tensors, f"{part}.") for part in learned}
    known = [part for part in learned if part == "model" or saved[part]]
    named = [pair for part in known for pair in learned[part].named_parameters(prefix=part)]
    moments.restore(optimizer, named, tensors, folder, stepped=stepped)
    for part in known:
        check_fit(learned[part], saved[part], folder)
        learned[part].load_state_dict(saved[part])
