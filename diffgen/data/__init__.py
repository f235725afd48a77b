"""Data sets as tensors: uint8 pictures and float vectors. Importing this package fills the table."""

from diffgen.data import cifar, digits, folder, mixture, mnist, points
from diffgen.data.base import DATASETS, Images, ImageSource
from diffgen.data.vectors import Vectors

__all__ = [
    "DATASETS",
    "ImageSource",
    "Images",
    "Vectors",
    "cifar",
    "digits",
    "folder",
    "mixture",
    "mnist",
    "points",
]
