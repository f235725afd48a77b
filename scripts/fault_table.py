"""Write the table of docs/reliability.md from the tests that carry the mark `fault(what happens, what diffgen does)`.

python scripts/fault_table.py [--check]    --check only says whether the file is up to date
"""

import io
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

DOCUMENT = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by scripts/fault_table.py -->", "<!-- end of faults -->"


class Collector:
    """A pytest plugin that notes marked tests instead of running them."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Called by pytest with all tests."""
        for item in items:
            mark = item.get_closest_marker("fault")
            if mark:
                name = item.nodeid.split("[")[0]
                slow = " (slow)" if item.get_closest_marker("slow") else ""
                known = self.rows.get(name, ("", "", " (slow)"))[2]
                self.rows[name] = (*mark.args, slow and known)


def table() -> str:
    """The rows in the order of the tests."""
    collector = Collector()
    with redirect_stdout(io.StringIO()):
        code = pytest.main(
            ["--collect-only", "-qqq", "--no-header", "-m", "", str(DOCUMENT.parents[1] / "tests")], [collector]
        )
    if code:
        sys.exit("the tests cannot be collected")
    rows = [f"| {what} | {answer} | `{name}`{slow} |" for name, (what, answer, slow) in collector.rows.items()]
    return "\n".join([BEGIN, "| fault | what diffgen does | test |", "|---|---|---|", *rows, END])


def document(text: str, rows: str) -> str:
    """The document with a new table."""
    return text[: text.index(BEGIN)] + rows + text[text.index(END) + len(END) :]


def main() -> int:
    """Entry point."""
    old = DOCUMENT.read_text()
    new = document(old, table())
    if "--check" in sys.argv[1:]:
        print("up to date" if old == new else "docs/reliability.md is out of date: run python scripts/fault_table.py")
        return int(old != new)
    DOCUMENT.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
