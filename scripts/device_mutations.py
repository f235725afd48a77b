"""Plant defects of a kind that only a GPU shows, and see which of them the test on a pretended device catches.

    python scripts/device_mutations.py [--only WORD]      writes benchmarks/results/device-mutations.json
    python scripts/device_mutations.py --table [--check]  writes docs/devices.md from that; or says if it is up to date

A defect is a replacement in the text of one function of the package, compiled and put in its place in this process.
The case of `tests/device_cases.py` that should see it runs with and without it.
"""

import argparse
import ast
import importlib
import inspect
import json
import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from check_samples import machine
from page import finish

from diffgen import __version__
from diffgen.core.files import write_json

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from device_cases import Bench, on_device, prepared  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "device-mutations.json"
DOCUMENT = ROOT / "docs" / "devices.md"
BEGIN, END = "<!-- mutations: written by scripts/device_mutations.py -->", "<!-- end of mutations -->"


class Mutation(NamedTuple):
    """One planted defect.

    Attributes:
        name: What is wrong.
        where: `module:function` or `module:Class.method`, below `diffgen`.
        old: A text that stands there once.
        new: What is put in its place.
        case: Which case of the device test should see it.
    """

    name: str
    where: str
    old: str
    new: str
    case: str


MUTATIONS = [
    # --- what a step is made of
    Mutation(
        "noise drawn by a generator of the CPU", "training.feed:Feed.batch",
        "generator(device,", 'generator("cpu",', "flow",
    ),
    Mutation("a data set that stays on the CPU", "data.base:gather", "values.to(device)", "values", "flow"),
    Mutation(
        "pictures copied while the step waits", "data.pictures:Pictures.batches",
        "values.to(device, non_blocking=True)", "values.to(device)", "streamed folder",
    ),
    Mutation(
        "a schedule's table copied in every step", "diffusion.schedules:DDPMLinear._table",
        "if key not in self._tables:", "if True:", "ddpm",
    ),
    Mutation(
        "the sum of micro-batches kept on the CPU", "training.gradients:Gradients._pass",
        "torch.zeros((), device=batch.x0.device)", "torch.zeros(())", "micro-batches",
    ),
    Mutation(
        "a learned weighting left on the CPU", "training.parts:Parts._build_network",
        "self.weighting.to(self.device)", "self.weighting", "learned weighting",
    ),
    Mutation(
        "random numbers of augmentation drawn on the CPU", "data.augment:draw",
        "torch.randn(n, 8, generator=generator, device=device)", "torch.randn(n, 8)", "augmentation",
    ),
    # --- what makes a step wait
    Mutation(
        "the loss read in every step", "training.trainer:Trainer._step",
        "self.at.move_on()", "float(loss); self.at.move_on()", "flow",
    ),
    Mutation(
        "Python decides whether a fused optimizer steps", "training.clipping:clipped_step",
        'if getattr(optimizer, "_step_supports_amp_scaling", False):',
        'if getattr(optimizer, "_step_supports_amp_scaling", False) and norm.isfinite():', "bf16",
    ),
    Mutation(
        "skipped steps counted by Python", "training.tally:Tally.add",
        "self.skipped + bad", "self.skipped + int(bad)", "edm",
    ),
    # --- averages and going on
    Mutation(
        "the average of the weights kept on the CPU", "training.parts:Parts._average",
        "copy.deepcopy(self.network)", "copy.deepcopy(self.network).cpu()", "power averages",
    ),
    Mutation(
        "an optimizer's state left on the CPU by a resumed run", "training.moments:_fill",
        "value.copy_(saved)", "state[key] = saved.cpu()", "resumed",
    ),
    Mutation(
        "a checkpoint written before its copies have arrived", "training.writer:Writer.submit",
        "torch.cuda.synchronize()", "pass", "flow",
    ),
    # --- sampling
    Mutation(
        "starting noise left on the CPU", "sampling.drawing:Sampling.state",
        "x.to(self.device", "x.to(x.device", "heun, guided",
    ),
    Mutation(
        "labels left on the CPU", "sampling.drawing:Sampling._walk",
        "torch.tensor(labels, device=self.device)", "torch.tensor(labels)", "ddim, guided",
    ),
    Mutation(
        "every call of the network checked by Python", "diffusion.guidance:rescaled",
        "if share == 0:", "if share == 0 or x0_hat.isnan().any():", "heun, guided",
    ),
    Mutation("images never fetched", "sampling.drawing:Sampling.examples", ".cpu()", "", "generate"),
    Mutation(
        "frames on the way never fetched", "sampling.drawing:Sampling.films",
        "objective.seen(x, self.denoiser.schedule, t)).cpu())",
        "objective.seen(x, self.denoiser.schedule, t)))", "trajectory",
    ),
    Mutation(
        "the guide left on the CPU", "sampling.setup:make_guidance",
        "guide.model.to(device)", "guide.model", "autoguidance",
    ),
    Mutation(
        "the mask left on the CPU", "diffusion.tasks:inpaint",
        "paint.expand(x0.shape)", "paint.cpu().expand(x0.shape)", "inpaint",
    ),
    Mutation(
        "a picture left on the CPU", "sampling.setup:make_plan",
        "placed(kind.read(path, size))", "kind.read(path, size)", "img2img",
    ),
    # --- evaluation
    Mutation(
        "the classifier left on the CPU", "evaluation.extractors:Small.__init__",
        "model.to(device), device", "model, device", "judged on the way",
    ),
    Mutation(
        "labels of the samples left on the CPU", "evaluation.samples:Drawn.on",
        "self.labels.to(device)", "self.labels", "judged on the way",
    ),
    Mutation(
        "images that judge the classifier left on the CPU", "evaluation.classifier:accuracy",
        "len(source), device)", 'len(source), torch.device("cpu"))', "metrics of images",
    ),
    Mutation(
        "the state of a likelihood's ODE never fetched", "diffusion.likelihood:log_likelihood",
        "(low.alpha * x0 / radius_low).cpu()", "(low.alpha * x0 / radius_low)", "likelihood",
    ),
    Mutation(
        "noise of a bound left on the CPU", "evaluation.bits_per_dim:noised",
        "z.to(x0)", "z.double()", "variational bound",
    ),
    Mutation(
        "held-out images left on the CPU", "evaluation.model:batches",
        "(pixels[numbers]).to(device)", "(pixels[numbers])", "variational bound",
    ),
]  # fmt: skip


@contextmanager
def planted(mutation: Mutation) -> Iterator[None]:
    """The package with a defect.

    Raises:
        SystemExit: The text to replace does not stand there once.
    """
    function = found(mutation.where)
    code, function.__code__ = function.__code__, mutated(function, mutation)
    try:
        yield
    finally:
        function.__code__ = code


def found(where: str) -> FunctionType:
    """A function of the package, without what is wrapped around it."""
    module, _, path = where.partition(":")
    target: Any = importlib.import_module(f"diffgen.{module}")
    for name in path.split("."):
        target = inspect.getattr_static(target, name)
    function: FunctionType = inspect.unwrap(getattr(target, "__func__", target))
    return function


def mutated(function: FunctionType, mutation: Mutation) -> CodeType:
    """The code of a function whose text is changed; its lines keep their numbers."""
    text = textwrap.dedent(inspect.getsource(function))
    if text.count(mutation.old) != 1:
        sys.exit(f"{mutation.where} does not hold {mutation.old!r} once: change the mutation {mutation.name!r}")
    tree = ast.parse(text.replace(mutation.old, mutation.new))
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef)
    definition.decorator_list = []
    scope: dict[str, Any] = {}
    exec(compile(tree, function.__code__.co_filename, "exec"), function.__globals__, scope)  # noqa: S102
    changed: FunctionType = scope[definition.name]
    return changed.__code__


def outcome(case: str, bench: Bench, home: Path) -> str | None:
    """What the device test says to a case; None if it passes."""
    with tempfile.TemporaryDirectory(dir=home) as out:
        try:
            on_device(case, bench, Path(out) / "run")
        except Exception as error:
            return re.sub(r"(\.py):\d+", r"\1", f"{type(error).__name__}: {error}")  # lines move
    return None


def trials(mutations: list[Mutation], bench: Bench, home: Path) -> list[dict[str, Any]]:
    """Each defect, and what the device test says of it."""
    rows = []
    for mutation in mutations:
        with planted(mutation):
            message = outcome(mutation.case, bench, home)
        rows.append({**mutation._asdict(), "caught": message is not None, "message": message})
    return rows


def measured(mutations: list[Mutation], home: Path) -> dict[str, Any]:
    """The trials, what the cases say without a defect, and where that was."""
    bench = prepared(home)
    sound = {case: outcome(case, bench, home) for case in dict.fromkeys(m.case for m in mutations)}
    rows = trials(mutations, bench, home)
    return {
        "of": len(rows),
        "caught": sum(row["caught"] for row in rows),
        "failing_without_a_defect": {case: message for case, message in sound.items() if message},
        "mutations": rows,
        "date": f"{date.today()}",
        "machine": machine(),
        "versions": {"diffgen": __version__, "torch": torch.__version__},
    }


# --- the page -----------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Rows for people."""
    rows = [
        f"| {row['name']} | `{row['where'].replace(':', '.')}` | {row['case']} | {shown(row['message'])} |"
        for row in results["mutations"]
    ]
    failing = results["failing_without_a_defect"]
    said = (
        f"{results['caught']} of {results['of']} are caught, and without a defect "
        f"{'some cases fail: ' + ', '.join(failing) if failing else 'every case passes'} "
        f"({results['date']}, {results['machine']}, torch {results['versions']['torch']})."
    )
    return "\n".join(
        [BEGIN, said, "", "| planted defect | in | case | what it says |", "|---|---|---|---|", *rows, END]
    )


def shown(message: str | None) -> str:
    """The first line of a message, in a cell."""
    if message is None:
        return "**nothing: it is missed**"
    text = re.sub(r"^\w+: (Expected all .* at least )?", "", message.splitlines()[0])
    return f"`{text}`"


def document(text: str, rows: str) -> str:
    """The document with a new table."""
    return text[: text.index(BEGIN)] + rows + text[text.index(END) + len(END) :]


def write_table(*, check: bool) -> int:
    """Write docs/devices.md, or only say whether it is up to date."""
    new = document(DOCUMENT.read_text(), table(json.loads(RESULTS.read_text())))
    return finish(DOCUMENT, new, "scripts/device_mutations.py --table", check=check)


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name or place holds this; writes nothing")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    if args.table or args.check:
        return write_table(check=args.check)
    torch.set_num_threads(1)
    chosen = [m for m in MUTATIONS if args.only in m.name or args.only in m.where]
    with tempfile.TemporaryDirectory() as home:
        results = measured(chosen, Path(home))
    for row in results["mutations"]:
        print(f"{'caught' if row['caught'] else 'MISSED'}  {row['name']}  [{row['case']}]  {row['message']}")
    print(f"{results['caught']} of {results['of']} caught; failing without: {results['failing_without_a_defect']}")
    if not args.only:
        write_json(RESULTS, results)
    return int(results["caught"] < results["of"] or bool(results["failing_without_a_defect"]))


if __name__ == "__main__":
    sys.exit(main())
