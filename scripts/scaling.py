"""What data-parallel training costs in communication, computed: the table of docs/scaling.md.

    python scripts/scaling.py [--batch 512] [--mfu 0.18] [--peak 989] [--nvlink 450] [--network 50]

Nothing here is measured. DDP sums float32 gradients by rings: each GPU sends 2 (n - 1)/n of their bytes a step, in
buckets, while the backward pass goes on; what exceeds the backward pass (two thirds of a step) is waited for. Between
nodes each GPU has a network port of its own.
"""

import argparse

NETWORKS = {"DDPM, 35.7 M": (35.75, 37.3), "EDM, 55.7 M": (55.73, 127.1), "cifar10_fast, 27.9 M": (27.9, 41.4)}
"""Millions of parameters, and GFLOP per image in training."""


def step(parameters: float, gflop: float, gpus: int, given: argparse.Namespace) -> tuple[float, float, float]:
    """Seconds of computation and of communication of a step, and the efficiency beside one GPU with the same share."""
    computing = given.batch / gpus * gflop * 1e9 / (given.peak * 1e12 * given.mfu)
    bandwidth = given.nvlink if gpus <= 8 else given.network
    sending = 2 * (gpus - 1) / gpus * parameters * 1e6 * 4 / (bandwidth * 1e9)
    return computing, sending, computing / (computing / 3 + max(2 / 3 * computing, sending))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=512, help="global; 512 is the papers'")
    parser.add_argument("--mfu", type=float, default=0.18, help="measured on an H100: docs/performance.md")
    parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of a GPU in bf16")
    parser.add_argument("--nvlink", type=float, default=450, help="GB/s each way inside a node of 8")
    parser.add_argument("--network", type=float, default=50, help="GB/s each way of a GPU between nodes: 400 Gb/s")
    given = parser.parse_args()
    print("| network | GPUs | images a GPU | sent a step, each GPU | computing | communicating | expected efficiency |")
    print("|---|---|---|---|---|---|---|")
    for name, (parameters, gflop) in NETWORKS.items():
        for gpus in (8, 16, 64):
            computing, sending, efficiency = step(parameters, gflop, gpus, given)
            sent = 2 * (gpus - 1) / gpus * parameters * 4
            times = f"{1000 * computing:.1f} ms | {1000 * sending:.1f} ms"
            print(f"| {name} | {gpus} | {given.batch // gpus} | {sent:.0f} MB | {times} | {efficiency:.0%} |")


if __name__ == "__main__":
    main()
