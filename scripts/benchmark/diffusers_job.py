"""The whole job of diffusers' train_unconditional.py: python -m benchmark.diffusers_job PICTURES OUT STEPS

One epoch with its default settings and --use_ema, then one batch of samples from the average and save_pretrained. Its
default of 1000 sampling steps is cut to STEPS. See `diffusers_loop` for what is cheaper here than in the script.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from benchmark.diffusers_loop import Loop
from benchmark.layouts import MNIST


def main(root: str, out: str, steps: int) -> None:
    """Train, sample and save."""
    from diffusers import DDPMPipeline

    loop = Loop(replace(MNIST, shape=(3, 32, 32)), Path(root), 16, precision="no", tuned=False)
    loop.network.train()
    for _ in range(len(loop.loader)):
        loop.step()
    network = loop.accelerator.unwrap_model(loop.network)
    loop.ema.store(network.parameters())
    loop.ema.copy_to(network.parameters())
    pipeline = DDPMPipeline(unet=network, scheduler=loop.scheduler)
    generator = torch.Generator(device=pipeline.device).manual_seed(0)
    pipeline(generator=generator, batch_size=16, num_inference_steps=steps, output_type="np")
    pipeline.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
