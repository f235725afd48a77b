"""A process that makes one piece after the other, and tells lines of JSON about each.

A process that met an error ends, since a GPU may then be of no more use to it; the parent starts another for the rest.
"""

import gc
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffgen.core import memory
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
    gc.collect()
    memory.give_back()  # else a GPU's would be missing in the next one
    return {**row, "took": round(time.monotonic() - began, 1)}


def make(wanted: list[list[str]], work: Work, tell: Callable[[Row], None]) -> None:
    """Make those pieces that the time suffices for, until one fails.

    Args:
        wanted: Part and piece by name.
        work: What each of them is given.
        tell: Hears which one begins, and then what came of it.
    """
    for part, name in wanted:
        piece = PARTS[part].pieces[name]
        if not work.tiny and work.left() < 60 * piece.minutes:
            continue
        tell({"piece": [part, name]})
        row = attempt(piece, work)
        tell({"row": row})
        if "error" in row:
            return


def main() -> None:
    """Entry point: python -m programme.child ORDER"""
    order: dict[str, Any] = json.loads(sys.argv[1])
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries speak; only answers go to the parent
    folder = Path(order["folder"])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
    data = Path(order["data"]) if order["data"] else None
    work = Work(folder, order["tiny"], data, time.monotonic() + order["seconds"], order["speed_run_minutes"])
    make(order["wanted"], work, lambda told: print(json.dumps(told), file=answers, flush=True))


if __name__ == "__main__":
    main()
