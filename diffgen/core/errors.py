"""Errors that a user can mend: one sentence each, and a documented exit code."""

import difflib
import errno
from collections.abc import Iterable

EXIT_CODES = {
    0: "done",
    1: "an error inside diffgen, with a traceback: please report it",
    2: "usage: an unknown key or choice, a wrong type, a value out of range",
    3: "data: missing, damaged or unreadable",
    4: "checkpoint or weights: missing, damaged, foreign or refused",
    5: "not finite: the loss of a training that diverged, or samples",
    75: "the machine: disk, directory in use, memory, a process lost, no C compiler; mend it and type it again",
    130: "stopped by Ctrl-C",
    141: "whoever read the output went away",
}
"""What every command may end with."""

TRAINING_CODES = {
    129: "stopped by SIGHUP, a lost terminal",
    138: "stopped by SIGUSR1, or the signal that train.preemption_signal names (SIGUSR2: 140)",
    143: "stopped by SIGTERM",
}
"""What training may end with beside these; stopped, it has written a checkpoint and goes on when typed again."""


class DiffgenError(Exception):
    """Base of all errors that are told in one sentence, without a traceback."""

    exit_code = 1
    told_elsewhere = False
    """Whether another process of the run tells it."""

    alone = False
    """Whether one process of a run may meet it alone, so that each tells it."""


class UsageError(DiffgenError):
    """A setting is unknown, of the wrong type or out of range."""

    exit_code = 2


class DataError(DiffgenError):
    """A data set is missing, damaged or unreadable."""

    exit_code = 3
    alone = True


class CheckpointError(DiffgenError):
    """A checkpoint is missing, damaged, foreign or refused."""

    exit_code = 4


class NonFiniteError(DiffgenError):
    """Training diverged."""

    exit_code = 5


class EnvironmentFault(DiffgenError):
    """The machine stood in the way: disk full, not writable, in use."""

    exit_code = 75


class ProcessFault(EnvironmentFault):
    """This process ran out of memory, lost another one of its run, or cannot compile its network."""

    alone = True


WORDS = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "could not create a primitive",  # oneDNN, mostly where none of its buffers fits
    "unable to find an engine",  # cuDNN, mostly where no engine's workspace fits
    "Unable to find a valid cuDNN algorithm",
)
"""What torch and the libraries below it say when memory is gone."""

SMALLER = "choose a smaller model, image size or batch"


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the GPU or the CPU had no memory left."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, RuntimeError):
        return any(word in str(error) for word in WORDS)
    return isinstance(error, MemoryError)


def no_memory(error: BaseException, advice: str = SMALLER) -> str:
    """The sentence for such an error."""
    return f"out of memory ({first_line(error)}): {advice}"


def require(condition: bool, sentence: str) -> None:
    """Raise `UsageError(sentence)` unless the condition holds; constructors check their ranges with it."""
    if not condition:
        raise UsageError(sentence)


def first_line(error: BaseException) -> str:
    """What a person needs of a library's error: the first line that says something, or the error's name."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.endswith("raised:")]
    return printable(said[0][:200]) if said else type(error).__name__


def printable(text: str) -> str:
    """Text of unknown origin on one line: terminal codes, line breaks and invisible characters as escapes."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


def typed(value: object) -> str:
    """A setting's value as it is typed: null, true and false as YAML has them, all else as Python shows it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(typed(item) for item in value)}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def unknown(what: str, choices: Iterable[object]) -> str:
    """The sentence for `key='value'` outside its choices: all of them, and the nearest.

    Args:
        what: The offending text as the user wrote it, `schedule.name='cosin'` or `train.bach_size`.
        choices: What could have stood there.
    """
    names = sorted(str(choice) for choice in choices)
    wrong = what.rsplit("=", 1)[-1].strip("'\"")
    near = difflib.get_close_matches(wrong, names, n=1, cutoff=0.5)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{what} is unknown; choose one of [{', '.join(names)}]{hint}"
