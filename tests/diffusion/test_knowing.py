"""Known frames: what a network is told, how they are drawn, and that nothing is learned from what is told."""

from typing import Any

import pytest
import torch
from rows import schedule
from torch import Tensor

from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.knowing import channels, known_frames, told
from diffgen.diffusion.parameterizations import flow
from diffgen.diffusion.weightings import unit
from diffgen.objectives import Batch, Denoise


def denoiser(model: Any, given: int = 2) -> Denoiser:
    path = schedule("rectified_flow")
    return Denoiser(model, path, flow, sigma_data=0.5, scale_input=False, given=given)


def test_a_network_is_told_the_two_nearest_known_frames_and_how_near_they_are() -> None:
    x0 = torch.randn(3, 3, 5, 2, 2)
    known = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]).bool()[:, None, :, None, None]
    given = told(x0, known)
    assert given.shape == (3, channels(3), 5, 2, 2)
    first, near, second, far = given.split([3, 1, 3, 1], 1)
    assert torch.equal(first[0], x0[0, :, [0, 0, 0, 4, 4]]), "of two that are as near the earlier one"
    assert torch.equal(second[0], x0[0, :, [4, 4, 4, 0, 0]])
    assert torch.equal(near[0, 0, :, 1, 1], torch.tensor([1, 1 / 2, 1 / 3, -1 / 2, 1]))
    assert torch.equal(far[0, 0, :, 1, 1], torch.tensor([-1 / 5, -1 / 4, -1 / 3, 1 / 4, 1 / 5]))
    assert torch.equal(first[1], x0[1, :, [3, 3, 3, 3, 3]]) and not second[1].any() and not far[1].any()
    assert not given[2].any()
    assert torch.equal(told(x0, known[:1]), told(x0, known[:1].expand(3, -1, -1, -1, -1)))


def test_what_is_not_known_is_not_told() -> None:
    x0, known = torch.randn(1, 1, 4, 2, 2), torch.tensor([True, False, True, False])[None, None, :, None, None]
    other = torch.where(known, x0, torch.randn_like(x0))
    assert torch.equal(told(x0, known), told(other, known))


def test_known_frames_are_the_first_ones_or_any_and_never_all() -> None:
    known = known_frames(20_000, 6, 0.7, torch.Generator().manual_seed(0))
    count = known.sum(1)
    assert (count > 0).float().mean().item() == pytest.approx(0.7, abs=0.02)
    shares = torch.bincount(count[count > 0], minlength=6)[1:] / (count > 0).sum()
    assert len(shares) == 5 and torch.allclose(shares, torch.full((5,), 0.2), atol=0.02)
    first = (known.long().diff(dim=1) <= 0).all(1)[count == 2].float().mean().item()
    assert first == pytest.approx(0.5 + 0.5 / 15, abs=0.03)  # of the 15 choices of two, one is the first two
    assert not known_frames(100, 6, 0.0, torch.Generator().manual_seed(0)).any()
    assert known_frames(100, 6, 1.0, torch.Generator().manual_seed(0)).any(1).all()


def test_without_anything_known_a_network_is_told_zeros() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, *rest: Tensor) -> Tensor:
        seen.append(x)
        return x[:, :1]

    own, x, label = denoiser(model), torch.randn(2, 1, 3, 2, 2), torch.full((2,), -1)
    own(x, torch.tensor(0.5), label)
    known = torch.randn(1, 2, 3, 2, 2)
    own.knowing(known)(torch.cat([x, x]), torch.tensor(0.5), torch.cat([label, label]))
    own(x, torch.tensor(0.5), label)
    assert seen[0].shape == (2, 3, 3, 2, 2) and not seen[0][:, 1:].any() and torch.equal(seen[2], seen[0])
    assert torch.equal(seen[1][:, 1:], known.expand(4, -1, -1, -1, -1))


def test_the_loss_is_of_what_is_not_known() -> None:
    """A network that is right where it is told nothing has no loss, whatever it says of known frames."""
    x0, z, t = torch.randn(4, 1, 3, 2, 2), torch.randn(4, 1, 3, 2, 2), torch.full((4,), 0.5)
    known = known_frames(4, 3, 1.0, torch.Generator().manual_seed(1))[:, None, :, None, None]

    def right(x: Tensor, *rest: Tensor) -> Tensor:
        return torch.where(known, 100.0, z - x0)  # the velocity of the straight path

    def off(x: Tensor, *rest: Tensor) -> Tensor:
        return right(x) + 2

    batch = Batch(x0, torch.full((4,), -1), t, z, known=known)
    assert Denoise().loss(denoiser(right), unit, batch).max() == 0
    assert torch.allclose(Denoise().loss(denoiser(off), unit, batch), torch.full((4,), 4.0))
