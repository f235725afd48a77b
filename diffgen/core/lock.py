"""One run at a time in a run directory.

The lock is the kernel's, on the file `.lock` (a POSIX record lock): it goes with its process, however that ends, so
what a killed run leaves behind never blocks the next. Unlike flock it is not inherited by worker processes, which may
outlive the run for a moment, and network file systems know it. On Windows it is msvcrt's.
"""

import errno
import json
import os
import platform
from datetime import datetime
from pathlib import Path
from types import TracebackType

from diffgen.core.errors import EnvironmentFault
from diffgen.core.files import writing

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
"""What a file system answers that knows no locks; a run there goes on without."""

BEYOND = 2**20
"""Where no byte of the file is."""


class RunLock:
    """Holds a run directory until the block ends."""

    def __init__(self) -> None:
        self.file = -1

    def __enter__(self) -> "RunLock":
        return self

    def take(self, run_dir: Path) -> None:
        """Lock a directory for this process.

        Raises:
            EnvironmentFault: Another process holds it; the sentence says which.
        """
        path = run_dir / ".lock"
        with writing(path):
            self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(self.file)
            except (BlockingIOError, PermissionError):
                raise EnvironmentFault(
                    f"run_dir={str(run_dir)!r} is in use by {_holder(path)}: wait for it, or choose another run_dir"
                ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
            who = {"pid": os.getpid(), "host": platform.node(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
            os.truncate(self.file, 0)
            os.lseek(self.file, 0, os.SEEK_SET)
            os.write(self.file, json.dumps(who).encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file >= 0:
            os.close(self.file)  # the file stays: deleting it could take it away under a run that begins just now
            self.file = -1


def _lock(file: int) -> None:
    """Lock an open file; raises BlockingIOError or PermissionError where another process has."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        os.lseek(file, BEYOND, os.SEEK_SET)  # what is locked there cannot be read, and who holds it should be
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    else:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _holder(path: Path) -> str:
    try:
        who = json.loads(path.read_text())
        return f"process {who['pid']} on {who['host']}, since {who['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
