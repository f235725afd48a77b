"""Fill the GPU's memory but for so many GiB, say so, and hold it until standard input ends: python hog.py GIB"""

import sys

import torch


def main() -> None:
    """Entry point."""
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(max(free - int(float(sys.argv[1]) * 2**30), 0), dtype=torch.uint8, device="cuda")
    print(f"holding {held.numel() / 2**30:.1f} GiB", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
