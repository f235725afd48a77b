"""The likelihood of token sequences under masked diffusion: its bound, by masks of a fixed number of tokens.

-log p(x) <= sum over k = 1 .. N of 1/k E[sum over k masked tokens of -log p(x_i | the known ones)], where the k masked
ones are any with equal chance. It is the bound in continuous time, whatever the schedule, and that of a model which
makes the tokens one by one in a random order (Ou et al. 2024, theorem 2). Drawing k evenly, and multiplying by N,
scatters less than drawing a time (Nie et al. 2025 report so).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from diffgen.core.randomness import generator, mix
from diffgen.diffusion.masking import HIDDEN

DRAWS = 8
"""Masks of each sequence."""

Predict = Callable[[Tensor, Tensor], Tensor]
"""Tokens int64 [B, *size], some of them `HIDDEN`, and labels int64 [B] -> log p of each, [B, *size, vocabulary]."""


@torch.inference_mode()
def bound(
    predict: Predict, tokens: Tensor, labels: Tensor, numbers: Sequence[int], *, seed: int, draws: int = DRAWS
) -> Tensor:
    """Upper bound on -log2 p of sequences, estimated; in expectation it is the bound itself.

    Args:
        predict: What a network says of each token, given the known ones; called once a draw.
        tokens: int64 [B, *size], of N tokens each, on the network's device.
        labels: int64 [B], -1 for none.
        numbers: Of the sequences: the masks are a function of (seed, number, draw), whatever is in the batch.
        seed: Of the masks.
        draws: Masks of each sequence.

    Returns:
        Bits a sequence, float64 [B] on the CPU, each the mean over its draws.
    """
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for draw in range(draws):
        masked = torch.stack([mask(tokens[0].numel(), i, draw, draws, seed) for i in numbers])
        hidden = masked.view(tokens.shape).to(tokens.device)
        log_p = predict(tokens.masked_fill(hidden, HIDDEN), labels)
        nats = -log_p.gather(-1, tokens[..., None]).squeeze(-1).masked_fill(~hidden, 0)
        total += nats.flatten(1).cpu().double().sum(1) * masked.shape[1] / masked.sum(1)
    return total / (draws * math.log(2))


def mask(size: int, number: int, draw: int, draws: int, seed: int) -> Tensor:
    """Which of N tokens of a sequence to mask in a draw: k of them, any with equal chance, bool [size].

    k is even on 1 .. N; one comes from each of `draws` equal parts of it. Where in these is a matter of each sequence
    alone: the standard error over sequences takes them to be independent.
    """
    place = mix(seed, "masks", number) / 2**63
    k = 1 + int(size * (draw + place) / draws)
    return torch.randperm(size, generator=generator("cpu", seed, "mask", number, draw)) < min(k, size)
