"""The weights of LPIPS (Zhang et al. 2018) as one safetensors file, for train.perceptual.

    python scripts/lpips_weights.py vgg16-397923af.pth lpips.safetensors

The first file is torchvision's VGG16 (528 MB, https://download.pytorch.org/models/vgg16-397923af.pth), a pickle; it is
opened for tensors alone. The layers that weight its channels come with torchmetrics (pip install 'diffgen[eval]').
"""

import argparse
import hashlib
from importlib.resources import files
from pathlib import Path

import torch

from diffgen.nets import DataShape
from diffgen.storage.tensor_file import write_tensors
from diffgen.training.lpips import load_lpips

SHA256 = "397923af"
"""How that of torchvision's file begins: other weights make another distance."""


def main() -> None:
    """Read both, write one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vgg16", type=Path)
    parser.add_argument("to", type=Path)
    args = parser.parse_args()
    found = hashlib.sha256(args.vgg16.read_bytes()).hexdigest()
    if not found.startswith(SHA256):
        raise SystemExit(f"{args.vgg16} is not torchvision's VGG16: its SHA-256 begins with {found[:8]}, not {SHA256}")
    lines = files("torchmetrics") / "functional" / "image" / "lpips_models" / "vgg.pth"
    with lines.open("rb") as file:
        weights = torch.load(file, weights_only=True, map_location="cpu")
    network = torch.load(args.vgg16, weights_only=True, map_location="cpu")
    weights |= {name: weight for name, weight in network.items() if name.startswith("features.")}
    write_tensors(weights, args.to)
    load_lpips(args.to, "to", DataShape((3, 64, 64)))
    print(f"{args.to}: {len(weights)} tensors")


if __name__ == "__main__":
    main()
