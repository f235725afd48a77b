"""The shipped recipes for CIFAR-10 on random pictures: a builder for `benchmark.competitor`."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from benchmark.clock import Call
from benchmark.layouts import Config, compose, counted, with_data
from benchmark.training import repeated, stepping

from diffgen.build import make_model
from programme import random_images
from programme.work import Row

BATCH = 512
SHAPE = (3, 32, 32)

RECIPES = {name: [f"experiment={name}"] for name in ("cifar10_ddpm", "cifar10_edm", "cifar10_fast", "cifar10_dit")}
ON_GPU = ["train.precision=bf16", "train.compile=true"]


def config_of(settings: list[str], *more: str) -> Config:
    """A recipe with random pictures in place of CIFAR-10, and nothing logged."""
    config = compose(*settings, "train.log_every=1000000000", *more)
    return {**config, "dataset": random_images.CONFIG}


def cost(settings: list[str]) -> Row:
    """Parameters and GFLOP of a recipe's network; its labels cost next to nothing and are left out."""
    config = with_data(config_of(settings), SHAPE)
    return counted(lambda: make_model(config), SHAPE)


@contextmanager
def build(layout: str, name: str, settings: list[str], folder: str, burst: int) -> Iterator[Call]:
    """A call that takes `burst` whole steps of a recipe.

    Args:
        layout: Not used.
        name: Not used.
        settings: The recipe, for `config_of`.
        folder: Where the run directory may be.
        burst: Steps a turn.
    """
    with ExitStack() as stack:
        place = stack.enter_context(tempfile.TemporaryDirectory(dir=folder))
        yield repeated(stepping(stack, config_of(settings, f"run_dir={place}/run"))[1], burst)
