"""The parent's end of `programme.child`: pieces come back row by row, also from a process that hangs or dies."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Timer

from programme.child import LAST
from programme.commands import environment
from programme.work import Row, Work

GRACE = 20.0  # seconds past its time after which a process is killed


def answers(wanted: list[tuple[str, str]], work: Work) -> Iterator[tuple[str, str, Row]]:
    """Part, piece and row of those pieces that were made, until one fails; its row has the `error`."""
    log = work.folder / "programme.log"
    seconds = work.left()
    process = started(wanted, work, log)
    begun, killer = None, Timer(max(seconds, 0) + GRACE, kill, [process])
    killer.start()
    try:
        assert process.stdout
        for line in process.stdout:
            told = json.loads(line)
            if begun and "row" in told:
                yield *begun, told["row"]
            begun = told.get("piece")
        code, said = process.wait(), log.read_text(errors="replace")
        if begun:
            yield *begun, lost(code, seconds, said)
        elif code:
            raise SystemExit(f"nothing could be measured:\n{said[-1500:]}")
    finally:
        killer.cancel()
        kill(process)


def started(wanted: list[tuple[str, str]], work: Work, log: Path) -> subprocess.Popen[str]:
    """The process that makes pieces; what libraries say goes to the log."""
    order = {"wanted": wanted, "folder": str(work.folder), "tiny": work.tiny, "seconds": work.left()}
    order |= {"data": str(work.data) if work.data else None, "speed_run_minutes": work.speed_run_minutes}
    # in tiny: threads that wait for each other are no test, and to compile takes minutes on a CPU
    alone = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"} if work.tiny else {}
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "programme.child", json.dumps(order)],
            env=environment(**alone), stdout=subprocess.PIPE, stderr=file, text=True, start_new_session=True,
        )  # fmt: skip


def lost(code: int, seconds: float, log: str) -> Row:
    """The row of a piece whose process is gone."""
    late = code == -signal.SIGKILL
    what = f"killed, perhaps since it took longer than {seconds:.0f} s" if late else f"its process ended with {code}"
    return {"error": [*log.strip().splitlines()[-LAST:], what], "took": seconds}


def kill(process: subprocess.Popen[str]) -> None:
    """End a process with all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
