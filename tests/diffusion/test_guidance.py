"""Guidance: intervals, rescaling, autoguidance, and how they combine."""

import pytest
import torch
from rows import schedule

from diffgen.core.errors import UsageError
from diffgen.diffusion.denoiser import NO_LABEL, Denoiser
from diffgen.diffusion.guidance import Guidance, guided, rescaled
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS

FLOW = schedule("rectified_flow")
X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(2, 1, 3, 4)
LABEL = torch.tensor([3, 5])


def predicting(slope: float, clock: str = "rectified_flow") -> Denoiser:
    """A denoiser whose x0_hat is slope x + label, label -1 where there is none."""

    def network(x: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return slope * x + label[:, None, None, None].float()

    return Denoiser(network, schedule(clock), PARAMETERIZATIONS["x0"], sigma_data=0.5, scale_input=False)


def at(t: float, guidance: Guidance, denoiser: Denoiser | None = None) -> torch.Tensor:
    return guided(denoiser or predicting(0.5), LABEL, guidance, clip=False)(X, torch.tensor(t, dtype=torch.float64))


MAIN, NONE = 0.5 * X + LABEL[:, None, None, None], 0.5 * X + NO_LABEL


def test_interval_guides_inside_only() -> None:
    """sigma/alpha is t / (1 - t): 1 at t = 0.5, 4 at t = 0.8."""
    g = Guidance(scale=3.0, interval=(0.5, 2.0))
    assert torch.allclose(at(0.5, g), NONE + 3 * (MAIN - NONE))
    assert torch.allclose(at(0.8, g), MAIN)
    assert torch.allclose(at(0.2, g), MAIN)
    assert torch.allclose(at(1.0, Guidance(scale=3.0)), NONE + 3 * (MAIN - NONE)), "also from pure noise"


def test_autoguidance_takes_the_guide_with_the_label() -> None:
    guide = predicting(0.2)
    weak = 0.2 * X + LABEL[:, None, None, None]
    assert torch.allclose(at(0.5, Guidance(scale=2.0, guide=guide)), weak + 2 * (MAIN - weak), atol=1e-6)
    unlabelled = guided(predicting(0.5), torch.tensor([-1, -1]), Guidance(scale=2.0, guide=guide), clip=False)
    assert torch.allclose(unlabelled(X, torch.tensor(0.5)), 0.8 * X - 1, atol=1e-6)


def test_a_guide_on_another_clock_is_refused() -> None:
    with pytest.raises(UsageError, match="another noise schedule"):
        at(0.5, Guidance(scale=2.0, guide=predicting(0.2, "vp_linear")))


def test_rescaling_restores_the_contrast() -> None:
    strong = at(0.5, Guidance(scale=4.0, guide=predicting(0.1)))
    full = at(0.5, Guidance(scale=4.0, guide=predicting(0.1), rescale=1.0))
    std = full.flatten(1).std(1)
    assert torch.allclose(std, MAIN.flatten(1).std(1))
    half = at(0.5, Guidance(scale=4.0, guide=predicting(0.1), rescale=0.5))
    assert torch.allclose(half, (strong + full) / 2)
    assert torch.equal(rescaled(strong, MAIN, 0.0), strong)


def test_they_combine() -> None:
    g = Guidance(scale=4.0, interval=(0.5, 2.0), rescale=1.0, guide=predicting(0.1))
    assert torch.allclose(at(0.8, g), MAIN)
    assert torch.allclose(at(0.5, g).flatten(1).std(1), MAIN.flatten(1).std(1))


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"scale": float("nan")}, "must be finite"),
        ({"scale": 2.0, "interval": (2.0, 1.0)}, "0 <= low < high"),
        ({"scale": 2.0, "rescale": 1.5}, r"must be in \[0, 1\]"),
    ],
)
def test_ranges(wrong: dict, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        Guidance(**wrong)


def test_only_a_walk_remembers_its_estimates() -> None:
    """Elsewhere the function is one of x and t: metrics ask for noise levels in any order."""
    seen: list[torch.Tensor | None] = []

    def network(x: torch.Tensor, *more: torch.Tensor | None) -> torch.Tensor:
        seen.append(more[3] if len(more) > 3 else None)
        return torch.full_like(x, float(len(seen)))

    row, s = PARAMETERIZATIONS["x0"], schedule("rectified_flow")
    denoiser = Denoiser(network, s, row, sigma_data=0.5, scale_input=False, self_condition=True)
    x, label, t = torch.zeros(2, 1, 4, 4), torch.tensor([-1, -1]), torch.tensor(0.5, dtype=torch.float64)
    for remembers, expected in ((True, [None, 1.0, 2.0]), (False, [None, None, None])):
        seen.clear()
        denoise = guided(denoiser, label, Guidance(scale=1.0), clip=False, remembers=remembers)
        for _ in range(3):
            denoise(x, t)
        assert [None if each is None else float(each.mean()) for each in seen] == expected


def telling(slope: float = 1.0) -> Denoiser:
    """A denoiser of clips whose x0_hat is slope (10 label + what it is told)."""

    def network(x: torch.Tensor, condition: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return slope * (x[:, 1:2] + 10 * label[:, None, None, None, None].float())

    return Denoiser(network, FLOW, PARAMETERIZATIONS["x0"], sigma_data=0.5, scale_input=False, given=2)


@pytest.mark.parametrize("doubles", [True, False])
@pytest.mark.parametrize("n", [1, 2], ids=["one for all", "for each"])
def test_known_frames_are_a_condition_too(n: int, *, doubles: bool) -> None:
    told, x, t = torch.randn(n, 2, 3, 2, 2), torch.randn(2, 1, 3, 2, 2), torch.tensor(0.5)
    frame, guidance = telling().knowing(told), Guidance(scale=3.0)
    labelled = guided(frame, LABEL, guidance, clip=False, doubles=doubles)(x, t)
    main, reference = told[:, :1] + 10 * LABEL[:, None, None, None, None], torch.tensor(-10.0)
    assert torch.allclose(labelled, reference + 3 * (main - reference), atol=1e-4)
    unlabelled = guided(frame, torch.tensor([-1, -1]), guidance, clip=False, doubles=doubles)(x, t)
    assert torch.allclose(unlabelled, (3 * told[:, :1] - 10).expand_as(x), atol=1e-4)


def test_known_frames_can_have_a_scale_of_their_own() -> None:
    told, x, t = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 1, 3, 2, 2), torch.tensor(0.5)
    for frame in (telling(), telling().knowing(told)):
        both = guided(frame, LABEL, Guidance(scale=3.0, told=2.0), clip=False)(x, t)
        one = guided(frame, LABEL, Guidance(scale=3.0 if frame.told is None else 2.0), clip=False)(x, t)
        assert torch.equal(both, one)


def test_a_guide_is_told_as_well() -> None:
    told, x, t = torch.randn(2, 2, 3, 2, 2), torch.randn(2, 1, 3, 2, 2), torch.tensor(0.5)
    frame, guide = telling().knowing(told), Guidance(scale=2.0, guide=telling(0.5))
    main = told[:, :1] + 10 * LABEL[:, None, None, None, None]
    assert torch.allclose(guided(frame, LABEL, guide, clip=False)(x, t), 1.5 * main, atol=1e-4)
