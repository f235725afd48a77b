"""Show the plugins of docs/examples in docs/architecture.md as they are.

python scripts/examples.py [--check]    --check only says whether the page is up to date
"""

import re
import sys
from pathlib import Path

from page import finish

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "architecture.md"
PLACE = re.compile(r"<!-- example: (\w+) -->\n.*?<!-- end of example -->", re.DOTALL)


def shown(place: re.Match[str]) -> str:
    """The place of an example with its file in it."""
    text = (ROOT / "docs" / "examples" / f"{place[1]}.py").read_text()
    return f"<!-- example: {place[1]} -->\n```python\n{text}```\n<!-- end of example -->"


def main() -> int:
    """Entry point."""
    new = PLACE.sub(shown, DOCUMENT.read_text())
    return finish(DOCUMENT, new, "scripts/examples.py", check="--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
