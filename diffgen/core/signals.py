"""Ending a run by a signal: finish the step, write a checkpoint, leave with 128 + the signal's number."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock, Thread, Timer

from diffgen.core.errors import DiffgenError
from diffgen.core.paths import setting

ECHO = 2.0  # seconds in which a launcher passes on the Ctrl-C that its processes have had from the terminal already


class Stopped(DiffgenError):
    """A signal ended the run; a checkpoint was written."""

    def __init__(self, signum: int, images: int, run_dir: Path) -> None:
        name = signal.Signals(signum).name
        again = setting("run_dir", run_dir)
        super().__init__(f"stopped by {name} at {images:,} images; go on with the same command and {again}")
        self.exit_code = 128 + signum


class StoppedBefore(DiffgenError):
    """A signal ended the run before its first step."""

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} while {what}; the same command goes on")
        self.exit_code = 128 + signum


class Interrupted(Exception):
    """Something that can be left out was cut short because the run is to stop."""


class StopRequest:
    """What has been received so far; `signum` is 0 until a signal asks the run to stop."""

    signum = 0
    interrupted = 0.0  # when the first Ctrl-C came

    def __init__(self) -> None:
        self.late: Callable[[], None] | None = None
        self.telling = Lock()

    def receive(self, signum: int, frame: object = None) -> None:
        """Note the first signal; a second Ctrl-C leaves at once. Other repetitions are a launcher's, and no news."""
        now, self.signum = time.monotonic(), self.signum or signum
        if signum != signal.SIGINT:
            return
        echo = "TORCHELASTIC_RUN_ID" in os.environ and now - self.interrupted < ECHO
        if not self.interrupted:
            self.interrupted = now
        elif not echo:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, LEFT_AT_ONCE)
            os._exit(128 + signum)  # no clean-up that could wait for another thread or process

    @contextmanager
    def told_late(self, tell: Callable[[], None]) -> Iterator[None]:
        """Call `tell` in a thread, `LATE` seconds after a signal, if the block has not ended by then; never later."""
        self.late = tell
        try:
            yield
        finally:
            with self.telling:
                self.late = None

    def overdue(self) -> None:
        """Tell, if there is still somebody who wants it."""
        with self.telling:
            if self.late:
                self.late()

    def check(self) -> None:
        """Raise `Interrupted` if the run is to stop."""
        if self.signum:
            raise Interrupted


LEFT_AT_ONCE = (
    b"\nstopped at once by a second Ctrl-C: what is in no checkpoint yet is lost, the checkpoints are whole\n"
)


LATE = 25.0
"""Seconds; launchers kill what has not ended 30 after their signal."""

END = 0
"""No signal's number."""


@contextmanager
def _overdue_told(request: StopRequest, signals: set[signal.Signals]) -> Iterator[None]:
    """Notice a signal also while the main thread is in a call that does not return, and Python cannot handle it.

    So it is where a GPU waits for a process that has died: the launcher tells the others, and they cannot hear.
    """
    ear, mouth = os.pipe()
    if hasattr(os, "set_blocking"):  # on Windows since Python 3.12
        os.set_blocking(mouth, False)
    late = Timer(LATE, request.overdue)
    late.daemon = True

    def listen() -> None:
        heard = END
        while heard not in signals:  # torch handles others, of processes that decode pictures
            heard = os.read(ear, 1)[0]
            if heard == END:
                return
        late.start()

    before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
    listener = Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(mouth, bytes([END]))  # to close it would not do: processes that were forked hold it open
        listener.join()
        late.cancel()
        os.close(mouth)
        os.close(ear)


@contextmanager
def stop_requests(preemption: str | None) -> Iterator[StopRequest]:
    """Collect SIGINT, SIGTERM, SIGHUP (a lost terminal, unless nohup ignores it) and a cluster's own signal.

    Args:
        preemption: Name of the signal that the cluster sends before it takes the machine away, such as SIGUSR1.
    """
    request = StopRequest()
    signals: set[signal.Signals] = {
        signal.SIGINT,
        signal.SIGTERM,
        *([signal.Signals[preemption]] if preemption and hasattr(signal, preemption) else []),
    }
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Windows has neither
        signals.add(signal.SIGHUP)
    before = {signum: signal.signal(signum, request.receive) for signum in signals}
    try:
        with _overdue_told(request, signals):
            yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
