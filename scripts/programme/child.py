"""A process that makes pieces of a part one after the other, and tells a line of JSON for each.

A process that met an error ends, since a GPU may then be of no more use to it; the parent starts another for the rest.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from programme.parts import PARTS
from programme.work import Piece, Row, Skipped, Unfinished, Work

LAST = 12  # lines of an error that are kept


def attempt(piece: Piece, work: Work) -> Row:
    """The row of a piece, whatever becomes of it.

    Returns:
        Its figures and the `took` seconds; with `skipped`, `unfinished` or `error` if it came to that.
    """
    began = time.monotonic()
    row: Row
    try:
        row = piece.run(work)
    except Skipped as why:
        row = {"skipped": str(why)}
    except Unfinished as how_far:
        row = {**how_far.figures, "unfinished": str(how_far)}
    except (Exception, SystemExit):
        row = {"error": traceback.format_exc().strip().splitlines()[-LAST:]}
    return {**row, "took": round(time.monotonic() - began, 1)}


def make(part: str, pieces: list[str], work: Work, tell: Callable[[Row], None]) -> None:
    """Make those pieces that the time suffices for, until one fails; `tell` hears what begins and what came of it."""
    for name in pieces:
        piece = PARTS[part].pieces[name]
        if not work.tiny and work.left() < 60 * piece.minutes:
            continue
        tell({"begins": name})
        row = attempt(piece, work)
        tell({"piece": name, "row": row})
        if "error" in row:
            return


def main() -> None:
    """Entry point: python -m programme.child ORDER"""
    order: dict[str, Any] = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries speak; only answers go to the parent
    folder = Path(order["folder"])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    data = Path(order["data"]) if order["data"] else None
    work = Work(folder, order["tiny"], data, time.monotonic() + order["seconds"])
    make(order["part"], order["pieces"], work, lambda told: print(json.dumps(told), file=answers, flush=True))


if __name__ == "__main__":
    main()
