"""Plots as PNG bytes."""

import io

import numpy as np
from matplotlib.figure import Figure


def loss_curve(images: list[int], losses: list[float]) -> bytes:
    """Training loss against images seen: each logged value, and their running mean over a tenth of the run."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(images, losses, color="tab:blue", alpha=0.3, linewidth=1, label="logged")
    width = max(len(losses) // 10, 1)
    if len(losses) >= 2 * width:
        means = np.convolve(losses, np.ones(width) / width, mode="valid")
        axes.plot(images[width - 1 :], means, color="tab:blue", label=f"mean of {width}")
    axes.set(xlabel="images seen", ylabel="loss")
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
