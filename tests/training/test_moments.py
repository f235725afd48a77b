"""What optimizers remember: runs cut in two, states of all kinds, and optimizers that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.nets.optimizers import OPTIMIZERS, Named
from diffgen.training import moments, trainer

Fit = Callable[..., Path]
Patch = pytest.MonkeyPatch

MINE = ["optimizer=adam", "~optimizer.betas", "~optimizer.eps", "optimizer.name=mine"]
CONSTANT = ["lr_schedule.decay=constant", "train.preview_every=100000"]


class Simple(torch.optim.Optimizer):
    """Descent along what `direction` makes of a gradient and of a state."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * self.direction(p.grad, self.state[p]))

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        return grad


class Counting(Simple):
    """Numbers of all types, which it goes by."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        state["count"] = state.get("count", 0) + 1
        state["rate"] = state.get("rate", 1.0) / 1.1
        state["odd"] = not state.get("odd", False)
        assert [type(state[key]) for key in ("count", "rate", "odd")] == [int, float, bool]
        return grad * state["rate"] * (1 + state["odd"]) / state["count"]


class Factored(Simple):
    """Tensors of other shapes and types: one without axes, one a row, one of whole numbers."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        row = state.setdefault("row", torch.zeros(grad.shape[:1]))
        step = state.setdefault("step", torch.tensor(0.0))
        signs = state.setdefault("signs", torch.zeros(grad.shape, dtype=torch.int8))
        row.add_(grad.flatten(1).square().mean(1) if grad.ndim > 1 else grad.square())
        step.add_(1)
        signs.copy_(grad.sign())
        return grad * signs.abs() / (1 + row.sqrt()).reshape(-1, *[1] * (grad.ndim - 1)) / step.sqrt()


class Forgetful(Simple):
    """It counts where no checkpoint looks."""

    count = 0

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        self.count += 1
        return grad / self.count


class Averaging(Simple):
    """It keeps a tensor where no checkpoint looks."""

    mean: Any = 0.0

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        self.mean = 0.9 * self.mean + grad.mean()
        return grad + self.mean


class Grouped(Simple):
    """It counts in the settings of its group."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        group = self.param_groups[0]
        group["count"] = group.get("count", 0) + 1
        return grad / group["count"]


class Slow(Simple):
    """It looks back every tenth step, and counts these where no checkpoint looks."""

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr)
        self.calls = 0

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % 10:
            super().step()


class Complex(Simple):
    """It keeps complex numbers."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        state["phase"] = grad.to(torch.complex64)
        return grad


class Listing(Simple):
    """It keeps a list."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        state["history"] = [grad]
        return grad


class Noisy(Simple):
    """Random numbers of the global generator, which is seeded in every step of a run."""

    def direction(self, grad: Tensor, state: dict[str, Any]) -> Tensor:
        return grad + torch.randn_like(grad)


def two_rates(parameters: Named, *, lr: float) -> torch.optim.Optimizer:
    groups = [[pair for pair in parameters if (pair[1].ndim > 1) == matrix] for matrix in (True, False)]
    return torch.optim.SGD([{"params": groups[0]}, {"params": groups[1], "lr": lr / 10}], lr, momentum=0.9)


def plain(kind: type[Simple]) -> Callable[..., torch.optim.Optimizer]:
    def row(parameters: Named, *, lr: float) -> torch.optim.Optimizer:
        return kind(parameters, lr)

    return row


ROWS: dict[str, Callable[..., Any]] = {"two rates": two_rates, "numbers": plain(Counting), "shapes": plain(Factored)}
RESUMED = {
    "sgd without a state": ["optimizer=sgd", "optimizer.momentum=0"],
    "sgd": ["optimizer=sgd", "optimizer.nesterov=true", "weighting=uncertainty"],
    "muon": ["optimizer=muon", "train.micro_batch=5"],
    **dict.fromkeys(ROWS, MINE),
}


@pytest.mark.parametrize(
    "case",
    [
        "muon",
        "shapes",
        *(pytest.param(name, marks=pytest.mark.slow) for name in RESUMED if name not in ("muon", "shapes")),
    ],
)
def test_a_resumed_run_is_the_same_run(fit: Fit, tmp_path: Path, monkeypatch: Patch, case: str) -> None:
    """Bit for bit, whatever its optimizer remembers."""
    if case in ROWS:
        monkeypatch.setitem(OPTIMIZERS, "mine", ROWS[case])
    settings = [*RESUMED[case], *CONSTANT]
    through = fit(tmp_path / "through", *settings)
    fit(tmp_path / "halves", *settings, "train.images=64")
    halves = fit(tmp_path / "halves", *settings)
    for file in ("model.safetensors", "state.safetensors"):
        path = Path("checkpoints", "00000128", file)
        assert (through / path).read_bytes() == (halves / path).read_bytes(), file


def test_each_group_keeps_its_rate(fit: Fit, tmp_path: Path, monkeypatch: Patch, capsys: Any) -> None:
    """Under a warm-up and a decay; the header tells how many weights have which."""
    monkeypatch.setitem(OPTIMIZERS, "mine", two_rates)
    step, seen = trainer.Trainer._step, []

    def watched(self: trainer.Trainer, *batch: Any) -> Any:
        result = step(self, *batch)
        rates = [group["lr"] for group in self.parts.optimizer.param_groups]
        assert result[1] == rates[0]
        seen.append(rates)
        return result

    monkeypatch.setattr(trainer.Trainer, "_step", watched)
    fit(tmp_path / "run", *MINE, "optimizer.lr=0.02")
    assert len({rates[0] for rates in seen}) > 3, "the schedule moves it"
    assert [rates[1] for rates in seen] == pytest.approx([rates[0] / 10 for rates in seen])
    said = " ".join(capsys.readouterr().out.split())
    assert "mine, lr 0.02 for " in said
    assert ", lr 0.002 for " in said


def named() -> Named:
    return [("model.a", torch.ones(9, 3, requires_grad=True)), ("model.b", torch.ones(2, requires_grad=True))]


@pytest.mark.parametrize("kind", [Counting, Factored, Noisy])
def test_a_sound_optimizer_passes_and_touches_nothing(monkeypatch: Patch, kind: type[Simple]) -> None:
    monkeypatch.setitem(OPTIMIZERS, "mine", plain(kind))
    parameters, random = named(), torch.random.get_rng_state()
    moments.check_goes_on({"name": "mine", "lr": 0.1}, parameters)
    assert all(p.grad is None and torch.equal(p, torch.ones_like(p)) for _, p in parameters)
    assert torch.equal(random, torch.random.get_rng_state())


def lbfgs(parameters: Named, *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.LBFGS([p for _, p in parameters], lr)


def no_rate(parameters: Named, *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.Optimizer(parameters, {})


def wide_only(parameters: Named, *, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for _, p in parameters if p.shape[0] > 8], lr)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "rarely hidden": (plain(Slow), "cannot be resumed: its steps change calls, which no checkpoint keeps"),
    "a weight left out": (
        lambda parameters, *, lr: torch.optim.SGD([parameters[0]], lr),
        "must have each weight in one group, once",
    ),
    "a type that files lack": (
        plain(Complex),
        "cannot be saved: its state 'phase' is of torch.complex64, which no checkpoint holds",
    ),
    "a list": (plain(Listing), "cannot be saved: its state 'history' is of type list, not a tensor or a number"),
    "an attribute": (plain(Forgetful), "cannot be resumed: its steps change count"),
    "a group's count": (plain(Grouped), "cannot be resumed: its steps change param_groups[0].count"),
    "a tensor elsewhere": (plain(Averaging), "cannot be resumed: it goes by more than its groups' settings"),
    "a closure": (lbfgs, "cannot be used: its step needs closure"),
    "no rate": (no_rate, "has a group without a rate, `lr`"),
    "no optimizer": (lambda parameters, *, lr: None, "gives NoneType, not a torch.optim.Optimizer"),
    "sizes": (wide_only, "fails on parameters with sides of at most 8: optimizer got an empty parameter list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_optimizer_that_cannot_go_on_is_refused(monkeypatch: Patch, case: str) -> None:
    row, sentence = REFUSED[case]
    row.__annotations__ = {"lr": float}
    monkeypatch.setitem(OPTIMIZERS, "mine", row)
    with pytest.raises(UsageError) as caught:
        moments.check_goes_on({"name": "mine", "lr": 0.1}, named())
    assert f"optimizer.name='mine' {sentence}" in str(caught.value)


def test_it_is_refused_before_anything_is_written(command: Callable[..., Any], tmp_path: Path, tiny: list[str]) -> None:
    plugin = """
import torch
from diffgen.nets.optimizers import OPTIMIZERS

@OPTIMIZERS.register("quasi_newton")
def row(parameters, *, lr: float = 1.0):
    return torch.optim.LBFGS(parameters, lr)
"""
    (tmp_path / "mine.py").write_text(plugin)
    answer = command("train", *tiny, "plugins=[mine.py]", "optimizer=quasi_newton", "run_dir=run")
    assert answer.code == 2
    assert "optimizer.name='quasi_newton' cannot be used: its step needs closure" in answer.err
    assert not (tmp_path / "run").exists()


def advanced(kind: type[Simple]) -> tuple[Named, torch.optim.Optimizer]:
    parameters = named()
    optimizer = kind(parameters, 0.1)
    moments._advance(optimizer, parameters, 0)
    return parameters, optimizer


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("model.a/count", None, "it lacks optimizer.model.a/count"),
        ("model.a/count", torch.tensor(3.0), "'count' of model.a has another shape or type"),
        ("model.a/count", torch.ones(1, dtype=torch.int64), "'count' of model.a has another shape or type"),
        ("model.b/other", torch.ones(2), "'other' of model.b is nothing that this run's optimizer keeps"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(key: str, value: Tensor | None, sentence: str) -> None:
    tensors = {**moments.gather(*reversed(advanced(Counting))), f"optimizer.{key}": value}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    parameters = named()
    with pytest.raises(CheckpointError) as caught:
        moments.restore(Counting(parameters, 0.1), parameters, tensors, "folder")
    assert sentence in str(caught.value)
    assert str(caught.value).startswith("folder")


def test_a_row_of_another_length_is_refused() -> None:
    tensors = moments.gather(*reversed(advanced(Factored)))
    tensors["optimizer.model.a/row"] = torch.zeros(10)
    parameters = named()
    with pytest.raises(CheckpointError, match="'row' of model.a has another shape or type"):
        moments.restore(Factored(parameters, 0.1), parameters, tensors, "folder")


def test_without_any_state_none_is_made() -> None:
    """A run whose steps so far were all skipped."""
    parameters = named()
    optimizer = Counting(parameters, 0.1)
    moments.restore(optimizer, parameters, {}, "folder", stepped=False)
    assert not optimizer.state
    assert torch.equal(parameters[0][1], torch.ones(9, 3))


def test_another_optimizer_does_not_go_on_from_its_state(fit: Fit, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "optimizer=adam", "train.images=64")
    with pytest.raises(CheckpointError, match=r"another state, optimizer.name \(adam there, sgd here\); train.init="):
        fit(run, "optimizer=sgd")


@pytest.mark.parametrize("stepped", [False, True])
def test_a_state_that_is_missing_is_no_new_beginning(*, stepped: bool) -> None:
    """Only a run all of whose steps were skipped may have none."""
    named = [("w", torch.ones(3, requires_grad=True))]
    optimizer = torch.optim.Adam(named, lr=0.1)
    if stepped:
        with pytest.raises(CheckpointError, match=r"it lacks optimizer\.w/"):
            moments.restore(optimizer, named, {"model.w": torch.ones(3)}, "here", stepped=True)
    else:
        moments.restore(optimizer, named, {"model.w": torch.ones(3)}, "here", stepped=False)
        assert not optimizer.state


def test_a_weight_that_the_network_never_uses_has_no_state() -> None:
    """A checkpoint says so; of another weight it would be a loss."""
    used, unused = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
    named = [("used", used), ("unused", unused)]
    first, again = (torch.optim.Adam(named, lr=0.1) for _ in range(2))
    used.grad = torch.ones(3)
    first.step()
    used.grad = None
    saved = moments.gather(first, named)
    moments.restore(again, named, saved, "here")
    assert not again.state.get(unused)
    assert torch.equal(again.state[used]["exp_avg"], first.state[used]["exp_avg"])
    del saved["optimizer.unused/nothing"]
    with pytest.raises(CheckpointError, match=r"it lacks optimizer\.unused/"):
        moments.restore(torch.optim.Adam(named, lr=0.1), named, saved, "here")
