"""Distance to the exact solution and Frechet distance against few network calls.

    python scripts/few_calls_plot.py FILE.json [PICTURE.png]

FILE.json is written by scripts/few_calls.py with --each; the picture is docs/images/few_calls.png unless another is
named. A line is a sampler in its best spacing from noise, the same from where a closed form leads (sampler.skip_to), or
a grid that diffgen-tune finds.
"""

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "few_calls.png"
STYLES = {"plain": ":", "skip_to": "--", "found": "-"}
PANELS = {"distance": "distance to the exact solution (RMS of a value)", "frechet": "Frechet distance"}

Row = dict[str, Any]


def lines(rows: list[Row]) -> dict[tuple[str, str], list[Row]]:
    """Rows by sampler and grid, in order of their calls, of samplers that have more than plain ones."""

    def whose(row: Row) -> tuple[str, str]:
        return row["sampler"], row["grid"]

    asked = {row["sampler"] for row in rows if row["grid"] != "plain"}  # the best of all may be of another one
    ordered = sorted(rows, key=lambda row: (*whose(row), row["calls"], row["distance"]))
    return {key: nearest(list(group)) for key, group in groupby(ordered, whose) if key[0] in asked}


def nearest(rows: list[Row]) -> list[Row]:
    """The first of each number of calls."""
    return [next(group) for _, group in groupby(rows, lambda row: row["calls"])]


def plot(result: Row, path: Path) -> None:
    """Two panels; a colour is a sampler, a style the grid."""
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=120)
    found = lines(result["rows"])
    colours = {name: f"C{number}" for number, name in enumerate(dict.fromkeys(name for name, _ in found))}
    for axes, (key, label) in zip(panels, PANELS.items(), strict=True):
        for (name, grid), rows in found.items():
            style = {"color": colours[name], "linestyle": STYLES[grid], "marker": "o", "markersize": 3}
            axes.semilogy([row["calls"] for row in rows], [row[key] for row in rows], label=f"{name}, {grid}", **style)
        axes.axhline(result["many_calls"][key], color="grey", label=f"heun, {result['many_calls']['calls']} calls")
        axes.set(xlabel="network calls (NFE)", ylabel=label)
        axes.grid(True, which="both", alpha=0.2)
    panels[1].legend(fontsize=8, handlelength=3)  # where distances lie low, and room is left
    panels[1].set_yscale("linear")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Read and draw."""
    source, picture = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else PICTURE
    plot(json.loads(source.read_text()), picture)


if __name__ == "__main__":
    main()
