"""What figures depend on, the machine and the versions, and the file that keeps them."""

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import resource
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffgen.core.files import write_json

ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """This process's, for one that is to import the checkout, with some variables more."""
    paths = [str(ROOT), str(ROOT / "scripts"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **more}


def machine() -> str:
    """Processor and cores, without a host name."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def commit() -> str:
    """What of diffgen was measured: its commit, or in a copy without git a digest of the package's files."""
    try:
        command = ["git", "describe", "--always", "--dirty"]
        told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        told = ""
    return told or f"source {digest(ROOT / 'diffgen')[:12]}"


def digest(folder: Path) -> str:
    """SHA-256 over the names and bytes of the Python files below a folder, in hex."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(f"{path.relative_to(folder)}\n".encode() + path.read_bytes())
    return total.hexdigest()


def version(package: str) -> str:
    """Of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def versions(*packages: str) -> dict[str, str]:
    """Of Python and of packages."""
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Wall seconds of a call, and CPU seconds, user and system, of the commands that it runs."""
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu, 1)}


def timed_once(run: Path, train: Callable[[], object], **facts: Any) -> dict[str, Any]:
    """Train a run unless it is there; what it took, where it ran, and `facts`, from the file beside it."""
    told = run.with_suffix(".json")
    if not told.exists():
        if run.exists():
            raise SystemExit(f"{run} was interrupted, and what it took is not known: delete it")
        write_json(told, timed(train) | facts | {"machine": machine(), "commit": commit()})
    found: dict[str, Any] = json.loads(told.read_text())
    return found


def slug(text: str) -> str:
    """A text as a part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def add(path: Path, name: str, section: dict[str, Any]) -> None:
    """Put one section into a result file, which keeps the others."""
    known = json.loads(path.read_text()) if path.exists() else {}
    write_json(path, {**known, name: section})
