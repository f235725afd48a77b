"""Write docs/python.ipynb: the text and the code of docs/python.md as a notebook, not yet run.

python scripts/notebook.py [--check]    --check only says whether the notebook is up to date
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from page import finish

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")
CODE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def cells(page: str) -> list[tuple[str, str]]:
    """The parts of a page in turn, each `code` or `markdown` with its text, all of it in the same order."""
    parts = CODE.split(page)  # text, code, text, ..., text
    kinds = ["markdown", "code"] * len(parts)
    return [(kind, part.strip()) for kind, part in zip(kinds, parts, strict=False) if part.strip()]


def cell(number: int, kind: str, text: str) -> dict[str, Any]:
    """One cell as a notebook file holds it."""
    ran: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True), **ran}


def notebook(page: str) -> str:
    """The file."""
    python = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {
        "cells": [cell(number, *part) for number, part in enumerate(cells(page))],
        "metadata": {"kernelspec": python},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(whole, indent=1) + "\n"


def main() -> int:
    """Entry point."""
    return finish(NOTEBOOK, notebook(PAGE.read_text()), "scripts/notebook.py", check="--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
