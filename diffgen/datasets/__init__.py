"""Data sets as uint8 tensors. Importing this package fills the table."""

from diffgen.datasets import cifar, digits, folder, mnist
from diffgen.datasets.base import DATASETS, Images, ImageSource

__all__ = ["DATASETS", "ImageSource", "Images", "cifar", "digits", "folder", "mnist"]
