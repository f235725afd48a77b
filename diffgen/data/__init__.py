"""What examples are and where they come from: kinds, data sets, augmentation."""

from diffgen.data import (
    arrays,
    cifar,
    clips,
    digits,
    mixture,
    mnist,
    moving,
    numbers,
    parquet,
    pictures,
    points,
    python_docs,
    text,
    text8,
    tokens,
    videos,
)
from diffgen.data.base import DATASETS, Images, InMemory, Source
from diffgen.data.vectors import VectorSet

__all__ = [
    "DATASETS",
    "Images",
    "InMemory",
    "Source",
    "VectorSet",
    "arrays",
    "cifar",
    "clips",
    "digits",
    "mixture",
    "mnist",
    "moving",
    "numbers",
    "parquet",
    "pictures",
    "points",
    "python_docs",
    "text",
    "text8",
    "tokens",
    "videos",
]
