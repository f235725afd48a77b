"""Write the tables of docs/performance.md from the result files of scripts/bench.py.

python scripts/bench_table.py [--check]    --check only says whether the document is up to date
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from page import finish

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- tables: written by scripts/bench_table.py -->", "<!-- end of tables -->"

Section = dict[str, Any]
Lines = list[str]


def table(head: list[str], rows: list[list[str]]) -> Lines:
    """A table with its numbers to the right."""
    marks = ["---", *["--:"] * (len(head) - 1)]
    return ["| " + " | ".join(cells) + " |" for cells in (head, marks, *rows)]


def short(number: float) -> str:
    """Three digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def per_second(section: Section) -> str:
    """The column that ratios are of."""
    return "images_per_cpu_second" if section["facts"]["ratios_of"] == "cpu" else "images_per_second"


def times(rows: list[Section], reference: str, speed: Callable[[Section], float]) -> list[str]:
    """Each row's speed over that of the reference."""
    base = [speed(row) for row in rows if row["name"] == reference]
    return [f"{speed(row) / base[0]:.2f}" if base else "-" for row in rows]


def training(section: Section) -> Lines:
    """Whole steps."""
    rows, bounds = section["rows"], section["bounds_gflops"]
    reference = "diffusers, published"
    ratios = times(rows, reference, lambda row: row[per_second(section)])
    head = ["", "parameters", "GFLOP/image", "images/s", "images/CPU s", "of the bound", "peak GB", "spread"]
    head.append(f"times {reference}")
    cells = [
        [
            row["name"],
            f"{row['parameters'] / 1e6:.2f} M",
            f"{row['gflop']:.2f}",
            short(row["images_per_second"]),
            short(row["images_per_cpu_second"]),
            f"{row['share_of_bound']:.0%}",
            f"{row['peak_gb']:.2f}" if "peak_gb" in row else "-",
            f"{row['spread']:.0%}",
            ratio,
        ]
        for row, ratio in zip(rows, ratios, strict=True)
    ]
    said = ", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in bounds.items())
    return [f"Batch {section['batch']}. Bounds: {said}.", "", *table(head, cells)]


def around(section: Section) -> Lines:
    """What of a step is not the network."""
    cells = [
        [row["name"], short(row["step_ms"]), short(row["around_ms"]), f"{row['share']:.1%}"] for row in section["rows"]
    ]
    head = ["", "step, ms", "clipping, optimizer, average, ms", "share"]
    return [*table(head, cells), "", f"A line of diffgen's log takes {section['log_ms']:.2f} ms."]


def sampling(section: Section) -> Lines:
    """Whole draws with the network."""
    column = "calls_per_cpu_second" if section["facts"]["ratios_of"] == "cpu" else "calls_per_second"
    reference = "diffusers DDIMPipeline"
    ratios = times(section["rows"], reference, lambda row: row[column])
    cells = [
        [row["name"], str(row["nfe"]), short(row["images_per_second"]), short(row["calls_per_cpu_second"]), ratio]
        for row, ratio in zip(section["rows"], ratios, strict=True)
    ]
    head = ["", "network calls", "images/s", "images x calls/CPU s", f"times {reference}"]
    return [f"{section['images']} images at once.", "", *table(head, cells)]


def overhead(section: Section) -> Lines:
    """What samplers cost beside the network."""
    cells = [[row["name"], f"{row['ms_per_step']:.3f}", f"{row['ms_per_call']:.2f}"] for row in section["rows"]]
    head = ["", "CPU ms a step", "CPU ms a call"]
    return [f"{section['images']} images of {section['shape']}.", "", *table(head, cells)]


NOISE_SHAPE = "3x32x32"


def noise(section: Section) -> Lines:
    """What the noise of images costs the host."""
    cells = []
    for row in section["rows"]:
        minutes = row["caller_us"] * 50_000 * 1000 / 60e6
        cells.append([row["name"], f"{row['us']:.1f}", f"{row['caller_us']:.2f}", f"{minutes:.1f}"])
    head = [
        "CPU time",
        "us an image and draw",
        "in the calling thread",
        "minutes of that for 50,000 images x 1000",
    ]
    beside = [[row["name"], f"{row['ms']:.2f}", f"{row['spread']:.0%}"] for row in section["beside"]]
    said = f"A caller that launches small operators, and {section['images']} images of {NOISE_SHAPE} a step:"
    lines = [f"{section['images']} images at once, {section['steps']} draws.", "", *table(head, cells)]
    return [*lines, "", said, "", *table(["", "ms a step", "spread"], beside)]


def launches(section: Section) -> Lines:
    """How often a step and a checkpoint call the device."""
    cells = [[row["name"], str(row["casts"]), str(row["operators"])] for row in section["rows"]]
    head = ["a pass forward and backward in bfloat16", "casts", "operators that launch something"]
    waits, tensors = section["waits"], section["tensors"]
    asked = (
        f"Whether {tensors} weights are finite: {waits['before']} waits asked one by one, {waits['after']} together."
    )
    return [f"{section['layout']}, not compiled.", "", *table(head, cells), "", asked]


def data(section: Section) -> Lines:
    """Pipelines."""
    ratios = times(section["rows"], "torchvision, images alone", lambda row: row[per_second(section)])
    cells = [
        [row["name"], short(row["images_per_second"]), short(row["images_per_cpu_second"]), ratio]
        for row, ratio in zip(section["rows"], ratios, strict=True)
    ]
    return table(["", "images/s", "images/CPU s", "times torchvision"], cells)


def checkpoint(section: Section) -> Lines:
    """A checkpoint's pause."""
    cells = [[name, f"{1e3 * seconds:.0f}"] for name, seconds in section["seconds"].items()]
    return table([f"{section['megabytes']} MB", "ms"], cells)


def commands(section: Section) -> Lines:
    """Whole processes."""
    cells = [[row["name"], f"{row['wall']:.2f}", f"{row['cpu']:.2f}"] for row in section["rows"]]
    lines = table(["", "wall s", "CPU s"], cells)
    if told := section.get("first_step"):
        begins, done = told["first_step_begins"], told["first_step_done"]
        first = f"to the first step of a digits run {begins:.2f} s, to its end {done:.2f} s."
        lines += ["", f"From the end of `import torch`, Hydra included, {first}"]
    if "images" in section:
        lines = [f"{section['images']} pictures, {section['steps']} steps of 16.", "", *lines]
    return lines


SECTIONS: dict[str, tuple[str, Callable[[Section], Lines]]] = {
    "training-mnist": ("Training steps: the MNIST network", training),
    "training-ddpm": ("Training steps: DDPM's CIFAR-10 network", training),
    "training-edm": ("Training steps: EDM's CIFAR-10 network", training),
    "around-the-network": ("What of a step is not the network", around),
    "sampling": ("Sampling with the MNIST network", sampling),
    "overhead": ("Sampling beside the network", overhead),
    "noise": ("Noise of images, drawn by the host", noise),
    "launches": ("Launches and waits, counted", launches),
    "data": ("Data pipelines, CIFAR-10's size", data),
    "checkpoint": ("A checkpoint", checkpoint),
    "start-up": ("Start-up", commands),
    "job": ("The job of diffusers' train_unconditional.py", commands),
}


def conditions(section: Section) -> str:
    """One line on where and with what a section was measured."""
    facts = section["facts"]
    where = facts["machine"] if facts["device"] == "cpu" else f"{facts['device']}, {facts['machine']}"
    packages = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    commit = f" diffgen at {facts['commit']}." if "commit" in facts else ""
    return f"{where}, {facts['threads']} thread(s); {packages}.{commit}"


def chapter(path: Path) -> Lines:
    """All tables of one result file."""
    sections = json.loads(path.read_text())
    lines = [
        f"## {path.stem}",
        "",
        f"[File](../benchmarks/results/{path.name}). Conditions are given where they change.",
    ]
    known = ""
    for name, (title, write) in SECTIONS.items():
        if name in sections:
            said = conditions(sections[name])
            notes = [
                f"Load {sections[name]['facts']['load']} at the start.",
                *map("{}.".format, sections[name]["missing"]),
            ]
            lines += ["", f"### {title}", "", *([said, ""] if said != known else []), " ".join(notes), ""]
            lines += write(sections[name])
            known = said
    return [*lines, ""]


def document(text: str, paths: list[Path]) -> str:
    """The document with new tables."""
    lines = [line for path in paths for line in chapter(path)] or ["Not measured yet.", ""]
    return text[: text.index(BEGIN)] + "\n".join([BEGIN, "", *lines]) + text[text.index(END) :]


def main() -> int:
    """Entry point."""
    new = document(DOCUMENT.read_text(), sorted(RESULTS.glob("*-threads-*.json")))
    return finish(DOCUMENT, new, "scripts/bench_table.py", check="--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
