"""Plots as PNG bytes."""

import io

from matplotlib.figure import Figure


def loss_curve(images: list[int], losses: list[float]) -> bytes:
    """Training loss against images seen."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(images, losses, color="tab:blue", linewidth=1.2)
    axes.set(xlabel="training images seen", ylabel="loss")
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
