"""Training, sampling and evaluation on a device that is not the CPU; see `pretend`.

On it fail: tensors of two devices, a generator of another, `numpy()` of a device tensor, and a training step that waits.
"""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pretend
import pytest
import torch
from accelerate import Accelerator
from cases import CONFIGS
from device_cases import CASES, Bench, on_cpu, on_device, prepared

from diffgen.core.errors import UsageError
from diffgen.core.processes import accelerated

sys.path.insert(0, str(CONFIGS.parent / "scripts"))

import device_mutations
from device_mutations import MUTATIONS, Mutation, planted, trials


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """What all cases start from. Read only."""
    return prepared(tmp_path_factory.mktemp("bench"))


@pytest.fixture
def device() -> Iterator[pretend.Pretended]:
    """The pretended device, for one test."""
    with pretend.cuda() as device:
        yield device


@pytest.mark.parametrize("name", CASES)
def test_figures_are_those_of_the_cpu(bench: Bench, tmp_path: Path, name: str) -> None:
    """What does not fail on the device gives there what it gives here, from the same random numbers."""
    there = on_device(name, bench, tmp_path / "device")
    if "fp16" in name:  # which the CPU refuses
        assert np.isfinite([*there.values()]).all()
        return
    here = on_cpu(name, bench, tmp_path / "cpu")
    assert there.keys() == here.keys()
    for key in here:
        one, other = np.asarray(here[key]), np.asarray(there[key])
        rtol, atol = (0, 1) if one.dtype == np.uint8 else (1e-2 if name == "bf16" else 1e-3, 1e-4)
        np.testing.assert_allclose(other.astype(float), one.astype(float), rtol, atol, err_msg=key)


# --- planted defects ----------------------------------------------------------------------------------------------

KNOWN = {row["name"]: row for row in json.loads(device_mutations.RESULTS.read_text())["mutations"]}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.name for mutation in MUTATIONS])
def test_a_planted_defect_is_caught(bench: Bench, tmp_path: Path, mutation: Mutation) -> None:
    """As the result file says; python scripts/device_mutations.py writes it anew."""
    (row,) = trials([mutation], bench, tmp_path)
    assert row["caught"]
    assert {**KNOWN[mutation.name], "message": None} == {**row, "message": None}, "it is out of date"


def test_a_defect_that_cannot_be_planted_is_an_error(tmp_path: Path) -> None:
    before = device_mutations.found("training.tally:Tally.add").__code__
    with (
        pytest.raises(SystemExit, match="does not hold 'nowhere' once"),
        planted(Mutation("", "training.tally:Tally.add", "nowhere", "", "")),
    ):
        pass
    with planted(Mutation("", "training.tally:Tally.add", "self.steps +", "self.steps -", "")):
        assert device_mutations.found("training.tally:Tally.add").__code__ != before
    assert device_mutations.found("training.tally:Tally.add").__code__ is before


def test_the_page_says_what_the_result_file_says() -> None:
    assert device_mutations.write_table(check=True) == 0
    assert KNOWN.keys() == {mutation.name for mutation in MUTATIONS}


# --- the pretence itself ------------------------------------------------------------------------------------------


def test_the_device_is_where_tensors_are_put(device: pretend.Pretended) -> None:
    x = torch.zeros(2, 3, device="cuda")
    views = (x[0], x.T, x.detach(), x.view(6), torch.nn.Parameter(x), x.new_zeros(2), x + 1, x.double(), x.to(x))
    assert all(each.is_cuda and each.device == pretend.CUDA for each in views)
    assert all(
        not each.is_cuda and each.device == pretend.CPU for each in (x.cpu(), x.to("cpu"), torch.zeros(2), x.cpu()[0])
    )
    y = torch.ones(2)
    assert y.to("cuda").data_ptr() != y.data_ptr(), "a copy"
    layer = torch.nn.Linear(3, 1).to("cuda")
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.is_cuda
    assert Accelerator().device.type == "cuda"


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (lambda x, y: x + y, "two devices"),
        (lambda x, y: y.add_(x), "two devices"),
        (lambda x, y: y[0].add_(x[0]), "two devices"),
        (lambda x, y: torch.stack([x[0], y[0]]), "two devices"),
        (lambda x, y: y[x.long()], "indices should be"),
        (lambda x, y: x.numpy(), "can't convert"),
        (lambda x, y: np.asarray(x), "can't convert"),
        (lambda x, y: torch.randn(2, generator=torch.Generator(), device="cuda"), "generator"),
        (lambda x, y: torch.randn(2, generator=torch.Generator("cuda")), "generator"),
        (lambda x, y: x.normal_(generator=torch.Generator()), "generator"),
    ],
)  # fmt: skip
def test_what_a_device_refuses(device: pretend.Pretended, operation: object, words: str) -> None:
    with pytest.raises((RuntimeError, TypeError), match=words):
        operation(torch.ones(2, device="cuda"), torch.ones(2))  # type: ignore[operator]


def test_a_fused_optimizer_wants_all_its_state_on_the_device(device: pretend.Pretended) -> None:
    weight = torch.ones(2, device="cuda").requires_grad_()
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.grad = torch.ones(2, device="cuda")
    optimizer.step()
    optimizer.step()
    optimizer.state[weight]["step"] = optimizer.state[weight]["step"].cpu()
    with pytest.raises(RuntimeError, match=r"two devices.*_fused_adamw_"):
        optimizer.step()


def test_a_copy_is_read_when_it_has_arrived(device: pretend.Pretended) -> None:
    x, copy = torch.ones(2, device="cuda"), torch.zeros(2)
    copy.copy_(x, non_blocking=True)
    moved = x.to("cpu", non_blocking=True)
    for each in (copy, moved):
        with pytest.raises(RuntimeError, match="before anybody waited"):
            each.sum()
    torch.cuda.synchronize()
    assert copy.sum() == moved.sum() == 2


def test_threads_pretend_too(device: pretend.Pretended) -> None:
    said: list[bool] = []
    thread = threading.Thread(target=lambda: said.append(torch.zeros(2, device="cuda").is_cuda))
    thread.start()
    thread.join()
    assert said == [True]


def test_a_number_of_the_cpu_is_taken(device: pretend.Pretended) -> None:
    x = torch.ones(2, device="cuda")
    assert (x * torch.tensor(2.0)).is_cuda and torch.where(x > 0, torch.tensor(1.0), x).is_cuda


WAITS = {
    "item": "x[0].item()",
    "__float__": "float(x[0])",
    "__bool__": "bool(x[0])",
    "tolist": "x.tolist()",
    "to(cpu)": "x.cpu()",
    "to(cuda)": "y.to(x)",
    "copy_": "y.copy_(x)",
    "tensor": "torch.tensor(1, device='cuda')",
    "__getitem__": "x[x > 0]",
    "nonzero": "x.nonzero()",
}


@pytest.mark.parametrize("name", WAITS)
def test_who_waits_is_noted(device: pretend.Pretended, name: str) -> None:
    code = compile(f"def here(x, y):\n    {WAITS[name]}", f"{pretend.PACKAGE}nowhere.py", "exec")
    x, y = torch.ones(2, device="cuda"), torch.ones(2)
    scope = {"torch": torch}
    exec(code, scope)
    scope["here"](x, y)  # type: ignore[operator]
    assert device.waits == [f"{name} at nowhere.py:2 in here"]
    x[0].item()
    assert len(device.waits) == 1, "tests may"


def test_what_does_not_wait_is_not_noted(device: pretend.Pretended) -> None:
    code = "x.to('cpu', non_blocking=True); y.to(x, non_blocking=True); x.to(torch.float64); float(y[0]); x[0]; x[x.long()]"
    scope = {"x": torch.ones(2, device="cuda"), "y": torch.ones(2), "torch": torch}
    exec(compile(code, f"{pretend.PACKAGE}nowhere.py", "exec"), scope)
    assert device.waits == []


def test_all_is_as_it_was_afterwards() -> None:
    def state() -> list[object]:
        places = ((torch, "Generator"), (torch.autocast, "__init__"), (torch.accelerator, "is_available"))
        more = (
            (torch._C, "_group_tensors_by_device_and_dtype"),
            (threading.Thread, "run"),
            (torch.cuda, "synchronize"),
        )
        return [getattr(*place) for place in (*places, *more, *((torch.cuda, name) for name in pretend.ANSWERS))]

    before = state()
    with pytest.raises(KeyError), pretend.cuda():
        assert all(now is not then for now, then in zip(state(), before, strict=True))
        with accelerated("fp16") as accelerator:
            assert accelerator.device.type == "cuda"
        raise KeyError
    assert state() == before
    if not torch.cuda.is_available():
        with pytest.raises(UsageError), accelerated("fp16"):
            pass
        assert not torch.zeros(2).is_cuda
