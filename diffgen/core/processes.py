"""What the processes of one run share: an accelerator, and the fate of what only the main one does."""

import os
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs, broadcast_object_list, gather_object

from diffgen.core import compilation, launcher, memory
from diffgen.core.errors import DiffgenError, ProcessFault, require

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long a process waits for one that hangs: the main one may be downloading, or drawing a preview in 1000 steps.

One that dies is noticed at once by the launcher, and by gloo; NCCL waits this long.
"""

DRAWN_IN = ("no", "bf16")
"""Precisions of a network that draws."""

DRIVER = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidiactl"), Path("/dev/nvidia0"))
"""What an NVIDIA driver leaves on Linux; elsewhere its nvidia-smi is found."""

NO_CUDA = (
    "this machine has an NVIDIA driver, but torch {} (built for CUDA: {}) cannot use it and runs on the CPU: install a "
    "torch that suits the driver, or a newer driver; CUDA_VISIBLE_DEVICES=-1 says that the CPU is meant"
)


@contextmanager
def accelerated(precision: str, known: Collection[str] = DRAWN_IN) -> Iterator[Accelerator]:
    """An accelerator on the GPU if there is one, for the length of a run.

    Its state ends with the block: a sweep's next job may want another precision, and a process that leaves while
    others still talk to it would abort.

    Args:
        precision: `no`, `bf16`, `fp16`, or `auto`: the launcher's, else bf16 where the GPU has it, else float32.
        known: The precisions in which the launcher is followed.

    Raises:
        UsageError: There is no GPU for fp16, or the launcher asks for what is not done here.
    """
    launcher.check()
    gpu = not launcher.wants_cpu() and _find_gpu()
    asked = precision
    precision = _chosen(precision, known, gpu=gpu)
    of_launcher = "" if asked == precision else " (the launcher's mixed_precision)"
    require(
        precision != "fp16" or gpu, f"train.precision=fp16{of_launcher} needs a GPU; choose one of [auto, no, bf16]"
    )
    cpu = launcher.wants_cpu() or (not gpu and not torch.backends.mps.is_available())
    if cpu:
        memory.keep_freed()
    foreign = [(state, dict(state._shared_state)) for state in (AcceleratorState, GradientState)]
    _forget_states()  # a caller's own, from Python
    patient = InitProcessGroupKwargs(timeout=PATIENCE)
    with memory.as_fault():
        accelerator = Accelerator(mixed_precision=precision, cpu=cpu, kwargs_handlers=[patient])
    try:
        with faults_told(accelerator), without_cudnn_attention():
            yield accelerator
            accelerator.wait_for_everyone()
    finally:
        compilation.forget()
        accelerator.free_memory()
        accelerator.end_training()
        _forget_states()
        for state, kept in foreign:
            state._shared_state.update(kept)


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Attention by PyTorch's own kernels.

    On an H100 cuDNN's are the first choice since torch 2.11, and their backward pass gives NaN where scores are very
    negative and the number of sites is 64 more than a multiple of 128 (PyTorch issue 196678), as in the middle of a
    U-Net for 32x32 pixels.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _forget_states() -> None:
    """Let the next accelerator choose its precision."""
    AcceleratorState._reset_state(False)
    GradientState._reset_state()


def told(accelerator: Accelerator) -> str:
    """What a run works on: device, number of processes, and precision."""
    device, processes = accelerator.device.type, accelerator.num_processes
    return f"{device} x {processes}, precision {launcher.told(accelerator.mixed_precision)}"


def _chosen(precision: str, known: Collection[str], *, gpu: bool) -> str:
    """The precision that `auto` stands for."""
    precision = launcher.precision(precision, known)
    if precision != "auto":
        return precision
    return "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "no"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """What an accelerator's own does, for who has none: its state is one for a whole process, and perhaps another's.

    Args:
        precision: `no`, `bf16` or `auto`; see `accelerated`.
        device: Where the networks are.
    """
    low = _chosen(precision, DRAWN_IN, gpu=device.type == "cuda") == "bf16"
    return torch.autocast(device.type, torch.bfloat16, enabled=low)


def _find_gpu() -> bool:
    """Whether there is a CUDA device; this process's own is then the current one. One that torch cannot use is told."""
    gpu = torch.cuda.is_available()
    if gpu and "LOCAL_RANK" in os.environ:  # else whatever is asked of a GPU would be asked of the first, by all
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if not gpu and not hidden and (any(trace.exists() for trace in DRIVER) or shutil.which("nvidia-smi")):
        warnings.warn(NO_CUDA.format(torch.__version__, torch.version.cuda or "none"), stacklevel=2)
    return gpu


@contextmanager
def faults_told(accelerator: Accelerator) -> Iterator[None]:
    """Turn the libraries' errors about memory, or about a process that died, into one sentence.

    Raises:
        ProcessFault: Memory, another process of the run, or one that decodes pictures is gone.
    """
    with memory.as_fault(), _lost_processes_told(accelerator):
        yield


@contextmanager
def _lost_processes_told(accelerator: Accelerator) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        text = str(error)
        if "DataLoader worker" in text or not isinstance(error, RuntimeError):  # torch raises it wherever we are
            what = "a process that decodes pictures was killed, perhaps for want of memory"
        elif accelerator.num_processes > 1 and (
            isinstance(error, torch.distributed.DistError) or "gloo" in text or "NCCL" in text
        ):
            what = f"process {accelerator.process_index} lost another process of this run, which was killed or failed"
        else:
            raise
        raise ProcessFault(f"{what}: the newest checkpoint is whole, type the same command again") from error


def share_of(n: int, accelerator: Accelerator) -> list[int]:
    """Which of images 0 .. n - 1 are this process's; the last shares are padded with the last image to one size."""
    share = -(-n // accelerator.num_processes)
    first = accelerator.process_index * share
    return [min(i, n - 1) for i in range(first, first + share)]


def gathered(share: torch.Tensor, n: int, accelerator: Accelerator) -> torch.Tensor:
    """What all processes have of n images, [share, ...] each as `share_of` deals them, on the CPU of each: [n, ...]."""
    if accelerator.num_processes > 1:
        share = accelerator.gather(share.to(accelerator.device)).cpu()
    return share[:n]


def main_first(accelerator: Accelerator, make: Callable[[], T]) -> T:
    """What `make` gives on each process; the main one goes first, so that the others find its downloads done."""
    first: list[T] = []
    on_main(accelerator, lambda: first.append(make()))
    return first[0] if first else make()


def on_all(call: Callable[[], object]) -> None:
    """Run `call` on each process, and wait for all.

    Raises:
        DiffgenError: On all processes if one raised it, so that none waits for another that has gone.
    """
    mine: DiffgenError | None = None
    try:
        with memory.as_fault():
            call()
    except DiffgenError as error:
        mine = error
    found: DiffgenError | None = next((error for error in gather_object([mine]) if error), None)
    if mine:
        raise mine
    if found:
        found.told_elsewhere = True
        raise found


def on_main(accelerator: Accelerator, call: Callable[[], Any]) -> Any:
    """Run `call` on the main process and give its result, which must be small, to all.

    Raises:
        DiffgenError: On all processes if the main one raised it, so that none waits for another that has gone.
    """
    box: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            with memory.as_fault():
                box[0] = call()
        except DiffgenError as error:
            box[1] = error
    broadcast_object_list(box)
    if box[1]:
        box[1].told_elsewhere = not accelerator.is_main_process
        raise box[1]
    return box[0]
