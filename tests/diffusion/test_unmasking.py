"""Masked diffusion against counting all sequences of a tiny alphabet."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import ENDS_IN_NOISE, SCHEDULE_NAMES
from enumeration import JOINT, STATES, L, V, conditionals, frequencies, number, perfect
from rows import row, schedule
from torch import Tensor

from diffgen.core.errors import UsageError
from diffgen.core.registry import bind
from diffgen.diffusion.denoiser import NO_LABEL
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.masking import HIDDEN, Predictor, guided_tokens, unmasking_rate
from diffgen.diffusion.samplers.unmasking import UNMASKERS, chances

LINEAR = schedule("rectified_flow")
ENDS = torch.tensor([1.0, 0.0], dtype=torch.float64)
N = 20_000


def uniform(shape: tuple[int, ...], seed: int = 0) -> Callable[[int], Tensor]:
    def noise(draw: int) -> Tensor:
        return torch.rand(shape, generator=torch.Generator().manual_seed(1000 * seed + draw), dtype=torch.float64)

    return noise


def walked(name: str, x: Tensor | None = None, predict: Any = perfect, n: int = N, **options: Any) -> Tensor:
    x = torch.full((n, L), HIDDEN) if x is None else x
    sampler = bind(UNMASKERS, row("sampler", name, **options))
    return sampler(predict, LINEAR, x, ENDS, uniform(tuple(x.shape)))


def distance(samples: Tensor, expected: Tensor) -> float:
    """Total variation; of 20,000 samples of 27 kinds about 0.014 by chance."""
    return float((frequencies(samples) - expected).abs().sum() / 2)


# --- what samplers draw from --------------------------------------------------------------------------------------


def chain(steps: int, grid: str, eta: float = 0.0) -> Tensor:
    """The distribution of a walk's end over WHOLE, from the chances of each of its steps between all 64 states."""
    p, now = conditionals(), torch.zeros(len(STATES), dtype=torch.float64)
    now[number(torch.full((1, L), HIDDEN))] = 1
    for alpha, later in chances(LINEAR, ENDS, steps, grid):  # type: ignore[arg-type]
        back = eta * min(1.0, (1 - later) / alpha) if alpha else 0.0
        appears = (later - (1 - back) * alpha) / (1 - alpha)
        step = torch.ones(len(STATES), len(STATES), dtype=torch.float64)
        for i in range(L):
            old, new = STATES[:, None, i], STATES[None, :, i]
            token = p[:, i].gather(1, new.clamp(min=0).expand(len(STATES), -1))
            from_hidden = torch.where(new == HIDDEN, 1 - appears, appears * token)
            from_seen = torch.where(new == HIDDEN, back, (1 - back) * (new == old))
            step = step * torch.where(old == HIDDEN, from_hidden, from_seen)
        now = now @ step
    return now[number(torch.cartesian_prod(*[torch.arange(V)] * L))]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("unmask", {"steps": 1, "grid": "linear"}),
        ("unmask", {"steps": 4, "grid": "linear"}),
        ("unmask", {"steps": 3, "grid": "cosine"}),
        ("remask", {"steps": 4, "grid": "linear", "eta": 0.0}),
        ("remask", {"steps": 5, "grid": "linear", "eta": 0.7}),
        ("remask", {"steps": 5, "grid": "cosine", "eta": 1.0}),
    ],
)
def test_samples_have_the_distribution_that_the_steps_have(name: str, options: dict[str, Any]) -> None:
    assert distance(walked(name, **options), chain(**options)) < 0.025


def test_many_steps_and_first_hitting_draw_from_the_joint_distribution() -> None:
    assert float((chain(500, "linear") - JOINT).abs().sum()) / 2 < 0.002
    assert distance(walked("first_hitting"), JOINT) < 0.025
    assert float((chain(1, "linear") - JOINT).abs().sum()) / 2 > 0.1, "one step draws tokens apart: the test can fail"


def test_the_surest_first_is_another_distribution() -> None:
    samples = walked("confidence", steps=3)
    assert samples.min() >= 0 and distance(samples, JOINT) > 0.05


@pytest.mark.parametrize("name", sorted(UNMASKERS))
def test_what_is_given_stays(name: str) -> None:
    x = torch.full((200, L), HIDDEN)
    x[:, 1] = 2
    samples = walked(name, x, **({"eta": 1.0} if name == "remask" else {}))
    assert (samples[:, 1] == 2).all() and samples.min() >= 0
    assert len(samples.unique(dim=0)) > 3


@pytest.mark.parametrize("name", sorted(UNMASKERS))
def test_the_network_is_asked_no_more_often_than_tokens_appear(name: str) -> None:
    calls = 0

    def counted(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return perfect(x, t)

    walked(name, predict=counted, n=1, **({"steps": 1000} if name in ("unmask", "confidence") else {}))
    assert calls <= (L if name != "remask" else 64)


def test_an_example_does_not_depend_on_its_batch() -> None:
    x, noise = torch.full((6, L), HIDDEN), uniform((6, L))
    for name in sorted(UNMASKERS):
        sampler = bind(UNMASKERS, row("sampler", name))
        whole = sampler(perfect, LINEAR, x, ENDS, noise)
        alone = [sampler(perfect, LINEAR, x[i : i + 1], ENDS, lambda d, i=i: noise(d)[i : i + 1]) for i in range(6)]
        assert torch.equal(whole, torch.cat(alone)), name


def test_rare_events_happen_with_a_vocabulary_of_50000() -> None:
    """With Gumbel noise of float32 none of 1024 tokens would ever appear in one step of 1024 (chance 1/1024)."""
    size, vocabulary = (64, 1024), 50_000
    flat = torch.zeros(1).expand(*size, vocabulary)
    asked: list[Tensor] = []

    class Enough(Exception):
        pass

    def predict(x: Tensor, t: Tensor) -> Tensor:
        asked.append(x)
        if len(asked) > 1:
            raise Enough
        return flat

    with pytest.raises(Enough):
        walked("unmask", torch.full(size, HIDDEN), predict, steps=1024)
    appeared = asked[1][asked[1] != HIDDEN]
    assert 35 < len(appeared) < 100, "64 are expected"
    assert appeared.max() > 0.9 * vocabulary and 0.3 < appeared.double().mean() / vocabulary < 0.7


def test_what_is_no_number_stays_hidden() -> None:
    samples = walked("unmask", predict=lambda x, t: torch.full((*x.shape, V), torch.nan), n=2)
    assert (samples == HIDDEN).all()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("unmask", {"steps": 0}, "sampler.steps=0 must be in"),
        ("confidence", {"steps": 0}, "sampler.steps=0 must be in"),
        ("remask", {"eta": 1.5}, r"sampler.eta=1.5 must be in \[0, 1\]"),
        ("unmask", {"grid": "square"}, "sampler.grid='square'"),
    ],
)
def test_bad_settings_are_told(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        walked(name, n=1, **options)


# --- the frame ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_the_weight_of_the_bound_is_the_slope_of_every_schedule(name: str) -> None:
    if name == "ve":
        pytest.skip("alpha is 1 always: nothing is hidden, and the frame refuses it")
    s = schedule(name)
    t = s.t_min + (s.t_max - s.t_min) * torch.linspace(0.0313, 0.97, 40, dtype=torch.float64)
    h = 1e-7 * s.t_max
    slope = (s.alpha(t + h) - s.alpha(t - h)) / (2 * h)
    torch.testing.assert_close(unmasking_rate(s, t), -slope / (1 - s.alpha(t)), rtol=2e-4, atol=1e-6)


def network(x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
    """Logits that depend on what is seen and on the label."""
    assert x.max() <= V and (condition == 0).all()
    seen = torch.nn.functional.one_hot(x, V + 1)[..., :V].float().sum(1, keepdim=True)
    return (seen + label[:, None, None] * torch.tensor([0.5, -1.0, 2.0])).expand(-1, x.shape[1], -1)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_schedules_that_show_some_tokens_at_the_end_are_refused(name: str) -> None:
    if name in ENDS_IN_NOISE:
        Predictor(network, schedule(name), V)
    else:
        with pytest.raises(UsageError, match=r"hides every token, and at t_max=.* alpha=.*choose schedule="):
            Predictor(network, schedule(name), V)


def test_guidance_is_on_logits() -> None:
    predictor = Predictor(network, LINEAR, V)
    x, label, t = torch.tensor([[0, HIDDEN, 2]] * 2), torch.tensor([1, NO_LABEL]), ENDS[0]
    apart = guided_tokens(predictor, label, Guidance(scale=3.0), doubles=False)(x, t)
    together = guided_tokens(predictor, label, Guidance(scale=3.0))(x, t)
    with_label, without = predictor(x, label), predictor(x, torch.full((2,), NO_LABEL))
    expected = (without + 3 * (with_label - without)).log_softmax(-1)
    torch.testing.assert_close(apart, expected)
    torch.testing.assert_close(together, expected)
    torch.testing.assert_close(expected[1], without[1])
    for bad in ({"interval": (0.1, 1.0)}, {"rescale": 0.5}):
        with pytest.raises(UsageError, match="guidance_interval and guidance_rescale are for Gaussian noise"):
            guided_tokens(predictor, label, Guidance(scale=2.0, **bad))  # type: ignore[arg-type]
