"""A competitor of the training benchmark in a process of its own, as its users run it.

So a setting that one library makes for its process (of the allocator, of waiting threads) is not a gift to the others,
and peak memory is that of one library. The process does nothing but wait while it is not its turn.
"""

import importlib
import json
import os
import resource
import subprocess
import sys
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch

from benchmark import clock, trace
from benchmark.clock import Call, Elsewhere, Row
from benchmark.facts import environment

LOOK = "look"
"""What the parent says instead of an empty line to have a turn looked at instead of timed."""


class Competitor:
    """The parent's end: each call is one turn.

    Attributes:
        missing: The module that is not installed, if one is.
        peak: Peak memory in GB: of the process, or of the GPU's tensors.
    """

    def __init__(self, layout: str, name: str, *, builder: str = "benchmark.training", **settings: Any) -> None:
        """Start the process, and wait until it has built everything.

        Args:
            layout: What to train, for the builder.
            name: Who trains, and how.
            builder: The module whose `build(layout, name, **settings)` is a context with the call.
            settings: Of the builder.
        """
        known = environment(OMP_NUM_THREADS=str(torch.get_num_threads()))
        if name.startswith("diffgen"):
            known.setdefault("GOMP_SPINCOUNT", "3000")  # as its commands do
        text = json.dumps({"builder": builder, "layout": layout, "name": name, **settings})
        command = [sys.executable, "-m", "benchmark.competitor", text]
        self.process = subprocess.Popen(command, env=known, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.name, self.peak = name, 0.0
        self.missing: str | None = self._answer().get("missing")

    def __call__(self) -> Elsewhere:
        """One turn, timed there."""
        told = self._ask("")
        self.peak = told["peak"]
        return Elsewhere(told["wall"], told["cpu"])

    def look(self) -> Row:
        """What the device does in a turn, and what the compiler did: see `trace.profiled` and `trace.compiled`."""
        return self._ask(LOOK)

    def _ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> "Competitor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.process.communicate()


def peak() -> float:
    """Peak memory of this process so far, in GB: of its tensors on a GPU, else of all of it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def serve(call: Call) -> None:
    """Take a turn for each line of standard input."""
    for line in sys.stdin:
        answer = look(call) if line.strip() == LOOK else turn(call)
        print(json.dumps(answer), file=sys.__stdout__, flush=True)


def turn(call: Call) -> Row:
    """Take a turn, timed."""
    wall, cpu = clock.measured(call)
    return {"wall": wall, "cpu": cpu, "peak": peak()}


def look(call: Call) -> Row:
    """Take turns that are looked at."""
    return {**(trace.profiled(call) if torch.cuda.is_available() else {}), **trace.compiled()}


def main() -> None:
    """The child's end."""
    sys.stdout = sys.stderr  # libraries speak; only answers go to the parent
    settings = json.loads(sys.argv[1])
    build = importlib.import_module(settings.pop("builder")).build
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        with ExitStack() as stack:
            call = stack.enter_context(build(**settings))
            ready = stack.pop_all()
    except ImportError as error:
        print(json.dumps({"missing": error.name}), file=sys.__stdout__, flush=True)
        return
    with ready:
        print(json.dumps({}), file=sys.__stdout__, flush=True)
        serve(call)


if __name__ == "__main__":
    main()
