"""Write the GPU's tables of docs/performance.md from the result files of scripts/gpu_programme.py.

python scripts/gpu_table.py [--check]    --check only says whether the document is up to date
"""

import json
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from bench_table import DOCUMENT, RESULTS, Lines, short, table
from page import finish
from programme.parts import PARTS

from diffgen.evaluation import report

PATTERN = "gpu-*.json"
BEGIN, END = "<!-- gpu: written by scripts/gpu_table.py -->", "<!-- end of gpu -->"
NOT_MEASURED = (
    "Not measured yet: no GPU was at hand. `python scripts/gpu_programme.py` does it, nine minutes at a time."
)

Row = dict[str, Any]


def percent(share: float) -> str:
    """A share."""
    return f"{share:.0%}"


def fine_percent(share: float) -> str:
    """A small share."""
    return f"{share:.2%}"


def learning_rate(rate: float) -> str:
    """Three digits of a number that may be tiny."""
    return f"{rate:.3g}"


COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "matrix_tflops": ("matrix product, TFLOP/s", short),
    "convolution_tflops": ("convolution, TFLOP/s", short),
    "copy_tb_per_second": ("copy, TB/s", short),
    "passed": ("passed", str),
    "failed": ("failed", str),
    "not_run": ("not run", str),
    "exit_code": ("exit code", str),
    "seconds_to_exit": ("from the signal to the end, s", short),
    "parameters": ("parameters", lambda count: f"{count / 1e6:.2f} M"),
    "gflop": ("GFLOP/image", short),
    "minutes": ("minutes", short),
    "images": ("images", "{:,}".format),
    "parts": ("parts", str),
    "nfe": ("network calls", str),
    "distance": ("distance to the exact solution", short),
    "fd": ("Frechet distance", short),
    "images_per_second": ("images/s", short),
    "tflops": ("TFLOP/s", short),
    "mfu": ("MFU", percent),
    "step_ms": ("step, ms", short),
    "first_step_seconds": ("first step, s", short),
    "kernels": ("kernels", short),
    "launches": ("launches", short),
    "conversions": ("layout conversions", short),
    "busy": ("GPU busy", percent),
    "bound": ("bound by", str),
    "from_cache": ("compiled before", lambda cached: "yes" if cached else "no"),
    "graphs": ("graphs", str),
    "breaks": ("graph breaks", str),
    "recompiles": ("recompiles", str),
    "peak_gb": ("peak GB", short),
    "spread": ("spread", percent),
    "times_base": ("times the base", "{:.3f}".format),
    "loss": ("last loss", "{:.4f}".format),
    "steps_skipped": ("steps skipped", "{:,}".format),
    "largest_difference": ("largest difference of a line", fine_percent),
    "last_difference": ("of the last quarter", fine_percent),
    "command_seconds": ("whole command, s", short),
    "seconds": ("seconds", short),
    "lr": ("learning rate", learning_rate),
}
"""Heading and form of what is shown of a row, in this order."""


def rows_table(rows: list[Row]) -> Lines:
    """A table of what the rows know, named in the first column; those that know nothing are left out."""
    keys = [key for key in COLUMNS if any(row.get(key) is not None for row in rows)]
    telling = [row for row in rows if any(row.get(key) is not None for key in keys)]
    cells = [[row.get("name", ""), *(cell(row, key) for key in keys)] for row in telling]
    return table(["", *(COLUMNS[key][0] for key in keys)], cells) if keys else []


def cell(row: Row, key: str) -> str:
    """One figure."""
    return "-" if row.get(key) is None else COLUMNS[key][1](row[key])


def tables(pieces: dict[str, Row]) -> Lines:
    """The tables of a part: one of all pieces, then those of each."""
    lines = rows_table([{**piece, "name": f"{name}{told(piece)}"} for name, piece in pieces.items()])
    for name, piece in pieces.items():
        if rows := piece.get("rows"):
            lines += ["", f"{name}{told(piece)}:", "", *rows_table(rows)]
        if first := piece.get("first"):
            lines += ["", f"{name}, first lines of the log:", "", *rows_table(first)]
        if figures := piece.get("figures"):
            lines += ["", f"{name}:", "", *(f"    {line}" for line in report.table(figures))]
        if picture := piece.get("picture"):
            lines += ["", f"![{name}](images/{picture})"]
        if found := piece.get("facts"):
            lines += ["", f"{', '.join(f'{key} {value}' for key, value in found.items())}."]
    return lines


def told(piece: Row) -> str:
    """What the figures of a piece depend on."""
    batch = f", batch {piece['batch']}" if "batch" in piece else ""
    return batch + "".join(f", {piece[key]}" for key in ("data", "length") if key in piece)


def notes(pieces: dict[str, Row]) -> Lines:
    """A line for each thing that is not there, or not as it should be."""
    lines = []
    for name, piece in pieces.items():
        lines += [f"- {name}: {what}." for what in piece.get("missing", [])]
        lines += [f"- {name}: **{what}**." for what in piece.get("wrong", [])]
        lines += [f"- {name}: {state}, {piece[state]}." for state in ("skipped", "unfinished") if state in piece]
        lines += [f"- {name}: **failed**, `{piece['error'][-1]}`."] if "error" in piece else []
    return ["", *lines] if lines else []


def conditions(facts: Row) -> str:
    """One line on where and with what a part was measured."""
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return f"{facts['device']}, {facts['machine']}; {facts['date']}; {packages}. diffgen at {facts['commit']}."


def chapter(name: str, parts: dict[str, Row]) -> Lines:
    """All tables of one result file."""
    lines, known = [f"### {name.removesuffix('.json')}"], ""
    for part, section in ((part, parts[part]) for part in PARTS if part in parts):
        said = conditions(section["facts"])
        lines += ["", f"#### {PARTS[part].title}", "", *([said, ""] if said != known else [])]
        lines += [*tables(section["pieces"]), *notes(section["pieces"])]
        known = said
    return [line for line, after in pairwise([*lines, "", "end"]) if line or after]


def document(text: str, paths: list[Path]) -> str:
    """The document with new tables."""
    lines = [line for path in paths for line in chapter(path.name, json.loads(path.read_text()))]
    return text[: text.index(BEGIN)] + "\n".join([BEGIN, "", *(lines or [NOT_MEASURED, ""])]) + text[text.index(END) :]


def write(*, check: bool = False) -> int:
    """Bring the document up to date, or only say whether it is."""
    new = document(DOCUMENT.read_text(), sorted(RESULTS.glob(PATTERN)))
    return finish(DOCUMENT, new, "scripts/gpu_table.py", check=check)


def main() -> int:
    """Entry point."""
    return write(check="--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
