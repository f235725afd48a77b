"""Where Python has no fcntl, no resource, no SIGHUP and opens no folders, as on Windows, the commands work too."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Python = Callable[..., "subprocess.CompletedProcess[str]"]

WINDOWS = """
import os, signal, sys, types
import torch, accelerate, hydra, PIL.Image, safetensors.torch, torch.distributed  # which know the system they are on
import torch.utils.tensorboard  # noqa: F401
for name in ("fcntl", "resource"):
    sys.modules[name] = None
locked = []
def locking(file, mode, size):
    if locked and mode == 2:
        raise PermissionError(13, "Permission denied")
    locked.append((os.lseek(file, 0, os.SEEK_CUR), size))
sys.modules["msvcrt"] = types.SimpleNamespace(LK_NBLCK=2, locking=locking)
for module, names in (
    (signal, ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")), (os, ("O_DIRECTORY", "pwrite", "pread", "fork")),
):
    for name in names:
        delattr(module, name)
open_ = os.open
def no_folders(path, *arguments, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_(path, *arguments, **options)
os.open = no_folders
"""

RUN = """
from diffgen.cli import train, sample
sys.argv[1:] = ["train.images=64", "model.channel_mult=[1]", "train.log_every=16", "run_dir=run", "train.compile=false"]
assert train.main() == 0
assert locked == [(2**20, 1)], locked
locked.clear()
sys.argv[1:] = ["ckpt=run", "n=2", "out=s"]
assert sample.main() == 0
"""

HELD = """
from pathlib import Path

import pytest
from diffgen.core.errors import EnvironmentFault
from diffgen.core.lock import RunLock
with RunLock() as one, RunLock() as two:
    one.take(Path())
    try:
        two.take(Path())
    except EnvironmentFault as error:
        print(error)
"""


@pytest.mark.slow
def test_a_run_on_windows(python: Python, tmp_path: Path) -> None:
    (tmp_path / "run.py").write_text(WINDOWS + RUN)
    done = python("run.py")
    assert done.returncode == 0, done.stderr
    assert "memory unknown" in done.stdout
    assert (tmp_path / "s" / "grid.png").is_file()
    assert (tmp_path / "run" / "checkpoints" / "latest").is_file()


def test_one_run_at_a_time_on_windows(python: Python, tmp_path: Path) -> None:
    (tmp_path / "held.py").write_text(WINDOWS + HELD)
    done = python("held.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("run_dir='.' is in use by process ")
