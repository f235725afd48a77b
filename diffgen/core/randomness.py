"""Randomness as a function of (seed, purpose, counter).

No generator lives from one step to the next, so there is no hidden state to save: a resumed run, and a run on another
number of processes, draw the same numbers. Training noise is drawn for the global batch and each process takes its
slice; image i of a sampling run depends on (seed, i) alone.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor

from diffgen.core.devices import float_type


def generator(device: torch.device | str, seed: int, purpose: str, *counters: int) -> torch.Generator:
    """A fresh generator whose stream is a function of the arguments."""
    return torch.Generator(device).manual_seed(mix(seed, purpose, *counters))


def mix(seed: int, purpose: str, *counters: int) -> int:
    """63 bits that depend on every argument."""
    text = f"{seed}/{purpose}/" + "/".join(map(str, counters))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


@lru_cache(maxsize=2)
def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of the data set in one epoch, int64 [n]."""
    return torch.randperm(n, generator=generator("cpu", seed, "order", epoch))


def data_order(seed: int, n: int, start: int, count: int) -> Tensor:
    """Data set entries of the images number start .. start + count - 1 of a run.

    Image number p is entry permutation(seed, p // n)[p % n]: every entry once an epoch, whatever the batch size.

    Returns:
        int64 [count].
    """
    parts, position = [], start
    while position < start + count:
        epoch, offset = divmod(position, n)
        part = permutation(seed, epoch, n)[offset : offset + start + count - position]
        parts.append(part)
        position += len(part)
    return torch.cat(parts)


def uniforms(n: int, generator: torch.Generator, *, stratified: bool) -> Tensor:
    """n numbers in (0, 1), `devices.float_type` [n] on the generator's device.

    Args:
        n: How many.
        generator: Where from.
        stratified: One from each of n equal strata, in random order, instead of n independent ones.
    """
    device = generator.device
    u = torch.rand(n, generator=generator, device=device, dtype=float_type(device))
    if stratified:
        u = (torch.randperm(n, generator=generator, device=device) + u) / n
    return u.clamp(1e-6, 1 - 1e-6)


def normal(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fill `out` with standard normal noise."""
    return out.normal_(generator=generator)


def image_noise(
    shape: tuple[int, ...],
    indices: list[int],
    seed: int,
    draw: int,
    *,
    fill: Callable[[Tensor, torch.Generator], Tensor] = normal,
    dtype: torch.dtype = torch.float32,
    pinned: bool = False,
) -> Tensor:
    """Noise for the given images of a sampling run, drawn on the CPU so that devices agree.

    Args:
        shape: Of one image, (C, H, W), or of one example of another kind.
        indices: Numbers of the images.
        seed: The run's seed.
        draw: 0 for the starting noise, i + 1 for what step i of a stochastic sampler adds.
        fill: Draws the noise of one, in place; standard normal.
        dtype: Of the noise.
        pinned: Whether to draw it in pinned memory, from which a CUDA device copies while the host goes on.

    Returns:
        [len(indices), *shape].
    """
    noise = torch.empty(len(indices), *shape, dtype=dtype, pin_memory=pinned)
    rng = torch.Generator()  # one for all: to make one takes as long as to seed it
    for image, i in zip(noise.unbind(), indices, strict=True):
        fill(image, rng.manual_seed(mix(seed, "image", i, draw)))
    return noise


@contextmanager
def drawn_again(device: torch.device) -> Iterator[None]:
    """What is drawn in the block from torch's own generators is drawn once more after it: two passes, one dropout mask.

    The state of a generator lies in the host's memory, of a GPU as well, so nobody waits for the device.

    Args:
        device: Where the block draws, beside the CPU.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
