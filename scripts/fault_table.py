"""Write the table of docs/reliability.md from the tests that carry the mark `fault(what happens, what diffgen does)`.

python scripts/fault_table.py [--check]    --check only says whether the file is up to date
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

from page import finish

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: written by scripts/fault_table.py -->", "<!-- end of faults -->"


def rows(path: Path) -> Iterator[str]:
    """The rows of one file, read off its text: to import all tests takes long."""
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef):
            continue
        marks = {mark(decorator): decorator for decorator in node.decorator_list}
        slow = " (slow)" if "slow" in marks else ""
        if isinstance(fault := marks.get("fault"), ast.Call):
            what, answer = map(ast.literal_eval, fault.args)
            yield f"| {what} | {answer} | `{path.relative_to(ROOT)}::{node.name}`{slow} |"


def mark(decorator: ast.expr) -> str:
    """The last name of a decorator: `fault` of `@fault(...)` and of `@pytest.mark.fault(...)`."""
    return ast.unparse(decorator.func if isinstance(decorator, ast.Call) else decorator).rpartition(".")[2]


def table() -> str:
    """The rows in the order of the tests."""
    found = [
        row for path in sorted((ROOT / "tests").rglob("test_*.py"), key=lambda path: path.name) for row in rows(path)
    ]
    return "\n".join([BEGIN, "| fault | what diffgen does | test |", "|---|---|---|", *found, END])


def document(text: str, rows: str) -> str:
    """The document with a new table."""
    return text[: text.index(BEGIN)] + rows + text[text.index(END) + len(END) :]


def main() -> int:
    """Entry point."""
    new = document(DOCUMENT.read_text(), table())
    return finish(DOCUMENT, new, "scripts/fault_table.py", check="--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
