"""Training speed of the networks on this machine: forward, loss, backward, clipping, optimizer and EMA.

    python scripts/bench.py [--models unet_small unet_base] [--batch 8] [--steps 5] [--out FILE.json]

Prints images/s (median over steps, after a warm-up) and GFLOP/s beside the machine's own matrix product, its bound.
Comparisons with other trainers are not measured yet.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from check_samples import machine

from diffgen.build import make_denoiser, make_model
from diffgen.ema import EMA
from diffgen.header import gflop
from diffgen.losses import denoising_loss
from diffgen.weightings import unit

SHAPES = {"unet_tiny": (1, 8, 8), "unet_small": (1, 28, 28), "unet_base": (3, 32, 32), "unet_large": (3, 32, 32)}


def seconds(call: Callable[[], object], times: int) -> float:
    """Median wall time of a call, after one to warm up."""
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def training_step(name: str, batch: int, device: str) -> tuple[Callable[[], None], float]:
    """One optimizer step of a shipped network on random images, and its GFLOP per image."""
    from diffgen.cli.app import compose_group

    channels, height, width = SHAPES[name]
    data = {"channels": channels, "height": height, "width": width, "num_classes": 10, "classes": []}
    config: dict[str, Any] = {
        "data": {**data, "pixels": True, "augment_labels": 0},
        "model": compose_group("model", name),
        "schedule": compose_group("schedule", "rectified_flow"),
        "parameterization": {"name": "flow"},
        "denoiser": {"sigma_data": 0.5, "scale_input": False},
    }
    network = make_model(config).to(device)
    denoiser, ema = make_denoiser(config, network), EMA(network, copy.deepcopy(network), halflife=5e5, ramp=0.05)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)
    x0 = torch.randn(batch, channels, height, width, device=device)
    z, t, label = torch.randn_like(x0), torch.rand(batch, device=device), torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        denoising_loss(denoiser, unit, x0, label.to(device), t, z).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(batch, batch)

    return step, gflop(config)


def main() -> None:
    """Measure and print one row a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["unet_small", "unet_base"], choices=sorted(SHAPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    a = torch.randn(2048, 2048, device=device)
    ceiling = 2 * 2048**3 / seconds(lambda: a @ a, args.steps) / 1e9
    print(f"{machine()}, {device}, float32, {torch.get_num_threads()} threads; matrix product {ceiling:.0f} GFLOP/s")
    rows = []
    for name in args.models:
        step, forward = training_step(name, args.batch, device)
        pace = args.batch / seconds(step, args.steps)
        rows.append({"model": name, "images_per_second": pace, "share_of_matmul": 3 * forward * pace / ceiling})
        print(
            f"{name:12} {pace:8.1f} img/s  {3 * forward * pace:7.0f} GFLOP/s  {rows[-1]['share_of_matmul']:.0%} of it"
        )
    if args.out:
        facts = {"machine": machine(), "device": device, "batch": args.batch, "matmul_gflops": ceiling, "rows": rows}
        args.out.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
