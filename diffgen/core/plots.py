"""Plots as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from itertools import cycle

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def loss_curve(images: list[int], losses: list[float], label: str = "loss", unit: str = "images") -> bytes:
    """Training loss against images seen; `label` says what it is measured in, and `unit` what images are here."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(images, losses, color="tab:blue", linewidth=1.2)
    axes.set(xlabel=f"training {unit} seen", ylabel=label)
    axes.grid(alpha=0.3)
    return png(figure)


def lines(x: Sequence[float], curves: Mapping[str, Sequence[float]], x_label: str, y_label: str) -> bytes:
    """Named curves over one axis, y from 0."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, y), style in zip(curves.items(), cycle(["-", "--", ":"]), strict=False):  # equal curves stay visible
        axes.plot(x, y, style, marker="o", markersize=3, label=name)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def curves(points: Mapping[str, Sequence[tuple[float, float]]], x_label: str, y_label: str) -> bytes:
    """Named curves, each through points of its own."""
    figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (name, those), style in zip(points.items(), cycle(["-", "--", ":"]), strict=False):
        axes.plot([x for x, _ in those], [y for _, y in those], style, marker="o", markersize=3, label=name)
    axes.set(xlabel=x_label, ylabel=y_label, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return png(figure)


def scatter(panels: Mapping[str, tuple[Tensor, Tensor]]) -> bytes:
    """Sets of vectors side by side on equal axes, coloured by label; of longer vectors the first two values.

    Args:
        panels: By title, vectors [n, D] and labels int64 [n], -1 for none.
    """
    figure, row = _panels(len(panels))
    for axes, (title, (vectors, labels)) in zip(row, panels.items(), strict=True):
        x, y = vectors[:, 0], vectors[:, min(1, vectors.shape[1] - 1)]
        axes.scatter(x, y, s=3, c=labels, cmap="tab10", vmin=-1, vmax=8)
        axes.set_title(title)
    return png(figure)


def vector_field(times: Sequence[float], clouds: Tensor, places: Tensor, directions: Tensor) -> bytes:
    """Arrows over a cloud of points for each of T times: length one everywhere, dark where the field is weak.

    Args:
        times: T.
        clouds: [T, n, 2].
        places: [T, m, 2].
        directions: [T, m, 2].
    """
    figure, row = _panels(len(times), share=False)
    for axes, t, cloud, place, direction in zip(row, times, clouds, places, directions, strict=True):
        strength = direction.norm(dim=1)
        arrows = direction / strength.clamp(min=1e-12)[:, None]
        axes.scatter(cloud[:, 0], cloud[:, 1], s=3, color="lightgrey")
        axes.quiver(*place.T, *arrows.T, strength, angles="xy", scale=25, width=0.004, cmap="plasma")
        (left, bottom), (right, top) = place.amin(0), place.amax(0)
        axes.set(title=f"t = {t:.3g}", xlim=(left, right), ylim=(bottom, top))
    return png(figure)


def trajectories(states: Tensor) -> bytes:
    """Paths [steps + 1, n, 2] from noise (grey) to data (blue)."""
    figure, (axes,) = _panels(1)
    axes.add_collection(LineCollection(list(states.transpose(0, 1).numpy()), colors="grey", linewidths=0.4, alpha=0.5))
    axes.scatter(states[0, :, 0], states[0, :, 1], s=6, color="grey", label="noise")
    axes.scatter(states[-1, :, 0], states[-1, :, 1], s=6, color="tab:blue", label="data")
    axes.legend(loc="upper right")
    return png(figure)


def _panels(n: int, *, share: bool = True) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4 * n, 4.2), dpi=120, layout="constrained")
    row = list(figure.subplots(1, n, sharex=share, sharey=share, squeeze=False)[0])
    for axes in row:
        axes.set_aspect("equal", adjustable="datalim" if n == 1 else "box")
    return figure, row
