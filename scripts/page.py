"""Pages of docs/ that a script writes from result files or tests."""

from pathlib import Path

from diffgen.core.files import write_atomically


def finish(path: Path, new: str, command: str, *, check: bool) -> int:
    """Write a page anew, or only say whether it is up to date; returns the exit code.

    Args:
        path: The page.
        new: What it is to hold.
        command: What writes it.
        check: Whether to write nothing.
    """
    if not check:
        write_atomically(path, new)
        return 0
    same = path.read_text() == new
    print("up to date" if same else f"{path.name} is out of date: run python {command}")
    return int(not same)
