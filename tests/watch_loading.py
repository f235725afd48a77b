"""Run by `test_security.py` in a process of its own: load files and report all that loading them did.

    python watch_loading.py good.safetensors FILE ...

Prints a JSON list with, for each file, how it ended, what Python's audit events told (opened files, sockets, processes,
imports, code), which environment variables were read, and how long it took. The address space may grow by `ROOM` only.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from diffgen.build import restore
from diffgen.core.errors import CheckpointError
from diffgen.sampling.walk import check_sampler
from diffgen.storage import checkpoint

ROOM = 256 * 2**20  # bytes that loading may add to the address space; beyond, allocation fails

HARMLESS = {
    "builtins.id",
    "object.__getattr__",
    "object.__setattr__",
    "sys._getframe",
    "gc.get_objects",
    "code.__new__",
}

events: list[str] = []
variables: list[str] = []
watching = False


class Environment(dict[str, str]):
    """The environment, noting what is read."""

    def __getitem__(self, key: str) -> str:
        if watching:
            variables.append(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        if watching:
            variables.append(key)
        return super().get(key, default)


def note(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook; it cannot be removed, and sees what libraries written in Python do too."""
    if watching and event not in HARMLESS:
        events.append(f"{event} {' '.join(repr(argument)[:200] for argument in arguments[:2])}")


def end_of(path: str) -> str:
    """How loading ends: `loaded`, or the refusal; other exceptions are named."""
    try:
        saved = checkpoint.load(Path(path))
        check_sampler(saved, restore(saved))
    except CheckpointError as error:
        return f"refused: {error}"
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def limit_memory() -> None:
    """Let the address space grow by `ROOM` from here."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    size = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, size + ROOM))


def main() -> None:
    global watching
    torch.set_num_threads(1)
    good, *files = sys.argv[1:]
    assert end_of(good) == "loaded"  # what is imported late is there from now on
    os.environ = Environment(os.environ)  # type: ignore[assignment]  # noqa: B003
    sys.addaudithook(note)
    limit_memory()
    results = []
    for file in [good, *files]:
        events.clear()
        variables.clear()
        started = time.process_time()
        watching = True
        ended = end_of(file)
        watching = False
        seconds = time.process_time() - started
        result = {"file": file, "ended": ended, "seconds": seconds}
        results.append({**result, "events": [*events], "variables": [*variables]})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
