"""Images per second that data pipelines deliver, ready for the loss: float32, flipped, with noise and times."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmark import clock
from benchmark.clock import Call, Row
from benchmark.layouts import PLAIN, compose
from diffgen.core.registry import bind, build
from diffgen.core.settings import section
from diffgen.data.base import Images
from diffgen.diffusion.schedules import SCHEDULES
from diffgen.diffusion.times import TIMES
from diffgen.objectives import Denoise
from diffgen.training.feed import Feed

BATCH = 128


class OneByOne(Dataset[Tensor]):
    """What torchvision's CIFAR10 does with its usual transforms: a picture, flipped, a tensor, normalised."""

    def __init__(self, pixels: Tensor) -> None:
        """Args: pixels: uint8 [N, C, H, W]."""
        from torchvision import transforms

        self.arrays: np.ndarray[tuple[int, ...], np.dtype[np.uint8]] = pixels.permute(0, 2, 3, 1).numpy()
        flip = transforms.RandomHorizontalFlip()
        self.transform = transforms.Compose([flip, transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)])

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, entry: int) -> Tensor:
        """One image [C, H, W]."""
        from PIL import Image

        return self.transform(Image.fromarray(self.arrays[entry]))


def ours(pixels: Tensor, *, alone: bool) -> Call:
    """The next batch of diffgen's data set and feed; `alone`: gathered, flipped and normalised, no more."""
    config = compose(*PLAIN, "train.horizontal_flip=true", f"train.batch_size={BATCH}")
    schedule, time_density = build(SCHEDULES, config["schedule"]), bind(TIMES, config["time"])
    source = Images(pixels, torch.full((len(pixels),), -1), ())
    feed = Feed(section(config, "train"), source, schedule, time_density, Denoise(), source.shape.size, slice(0, BATCH))
    batches = source.batches(feed.entries(len(pixels), 0), torch.device("cpu"))
    if alone:
        kind = source.kind
        return lambda: kind.encode(kind.mirror(next(batches).examples, torch.rand(BATCH) < 0.5))
    return lambda: feed.batch(0, next(batches))


def torchvision(pixels: Tensor, *, alone: bool) -> Call:
    """The next batch of a DataLoader in this process, with noise and times as diffusers' script draws them."""
    loader = DataLoader(OneByOne(pixels), batch_size=BATCH, shuffle=True, drop_last=True)

    def endless() -> Iterator[Tensor]:
        while True:
            yield from loader

    batches = endless()

    def call() -> object:
        if alone:
            return next(batches)
        images = next(batches)
        return images, torch.randn_like(images), torch.randint(0, 1000, (len(images),))

    return call


def pipeline(rounds: int, *, quick: bool) -> Row:
    """Images per CPU second, from uint8 noise of CIFAR-10's size."""
    count = 1280 if quick else 50_000
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), generator=rng, dtype=torch.uint8)
    calls = {
        "diffgen, images alone": ours(pixels, alone=True),
        "diffgen, with noise and times": ours(pixels, alone=False),
        "torchvision, images alone": torchvision(pixels, alone=True),
        "torchvision, with noise and times": torchvision(pixels, alone=False),
    }
    times = clock.take_turns(calls, 8 * rounds)
    rows = [
        {"name": name, "images_per_second": BATCH / time["wall"], "images_per_cpu_second": BATCH / time["cpu"]}
        for name, time in times.items()
    ]
    return {"images": count, "batch": BATCH, "rows": rows, "missing": []}
