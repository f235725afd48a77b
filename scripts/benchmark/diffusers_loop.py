"""The training loop of diffusers' examples/unconditional_image_generation/train_unconditional.py.

The script is not part of the package, so this is what it does each step, with its default settings and its libraries:
a DataLoader over pictures decoded and transformed one by one, DDPMScheduler.add_noise, AdamW, a cosine schedule,
EMAModel with warm-up, Accelerate, a progress bar. Two things are cheaper here than in the script: torchvision's
ImageFolder stands for `datasets`, and nothing is written for TensorBoard.

`tuned` is what the libraries allow without a change to them: the pictures as one uint8 tensor in memory, fused AdamW,
EMAModel(foreach=True), channels_last on a GPU, no progress bar and no loss read back.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmark.layouts import Layout, diffusers_network


class Loop:
    """One run of the script, or of its tuned form."""

    def __init__(
        self, layout: Layout, folder: Path, batch: int, *, precision: str, tuned: bool, compiles: bool = False
    ) -> None:
        """Build everything.

        Raises:
            ImportError: diffusers is not installed.
        """
        from diffusers import DDPMScheduler
        from diffusers.optimization import get_scheduler
        from diffusers.training_utils import EMAModel
        from tqdm.auto import tqdm

        self.accelerator = Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
        network: Any = diffusers_network(layout)
        if tuned and torch.cuda.is_available():
            network = network.to(memory_format=torch.channels_last)
        ema = {"decay": 0.9999, "use_ema_warmup": True, "inv_gamma": 1.0, "power": 0.75, "foreach": tuned}
        self.ema = EMAModel(network.parameters(), model_cls=type(network), model_config=network.config, **ema)
        self.scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8, fused=tuned or None
        )
        loader = DataLoader(dataset(folder, layout.shape), batch_size=batch, shuffle=True)
        lr = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=100_000)
        prepared = self.accelerator.prepare(network, optimizer, loader, lr)
        self.network, self.optimizer, self.loader, self.lr = prepared
        self.ema.to(self.accelerator.device)
        self.model: nn.Module = torch.compile(self.network) if compiles else self.network  # type: ignore[assignment]
        self.tuned, self.batch = tuned, batch
        self.bar = tqdm(disable=tuned, file=io.StringIO())
        self.batches = self._resident() if tuned else self._decoded()

    def _decoded(self) -> Iterator[Tensor]:
        while True:
            for images, _ in self.loader:
                yield images

    def _resident(self) -> Iterator[Tensor]:
        images = torch.cat([image for image, _ in self.loader])
        pixels = ((images + 1) * 127.5).round().to(torch.uint8)
        while True:
            for chosen in torch.randperm(len(pixels), device=pixels.device).split(self.batch):
                if len(chosen) == self.batch:
                    yield pixels[chosen].float() / 127.5 - 1

    def step(self) -> None:
        """One step of the script."""
        self.update(self.backward(next(self.batches)))

    def backward(self, images: Tensor) -> Tensor:
        """Noise, forward and backward pass; returns the loss."""
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),), device=images.device)
        noisy = self.scheduler.add_noise(images, noise, t)
        with self.accelerator.accumulate(self.network):
            loss = F.mse_loss(self.model(noisy, t).sample, noise)
            self.accelerator.backward(loss)
        return loss

    def update(self, loss: Tensor) -> None:
        """Clip, optimizer, schedule, average and log."""
        self.accelerator.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.lr.step()
        self.optimizer.zero_grad()
        self.ema.step(self.network.parameters())
        if not self.tuned:
            self.bar.update(1)
            self.bar.set_postfix(loss=loss.detach().item(), lr=self.lr.get_last_lr()[0])


def dataset(folder: Path, shape: tuple[int, int, int]) -> Any:
    """The pictures with the script's transforms."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    channels, size, _ = shape
    steps = [
        transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize([0.5], [0.5]),
    ]
    mode = "L" if channels == 1 else "RGB"
    return ImageFolder(str(folder), transforms.Compose(steps), loader=lambda path: Image.open(path).convert(mode))
