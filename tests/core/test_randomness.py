"""Randomness is a function of (seed, purpose, counter): no state, the same on any number of processes."""

import pytest
import torch
from scipy import stats

from diffgen.core.randomness import data_order, generator, image_noise, mix, permutation, uniforms


def test_mix_is_pinned() -> None:
    """Changing this breaks every recorded run: resumed runs and published samples would change."""
    assert mix(0, "order", 0) == 3471081512423777433
    assert mix(2**63 - 1, "step", 10**12) < 2**63


def test_mix_depends_on_every_argument() -> None:
    keys = [
        (0, "a"),
        (1, "a"),
        (0, "b"),
        (0, "a", 0),
        (0, "a", 1),
        (0, "a", 0, 1),
        (0, "a", 1, 0),
        (0, "a", 10),
        (1, "a", 0),
    ]
    assert len({mix(*key) for key in keys}) == len(keys)


def test_a_generator_is_fresh_each_time() -> None:
    first, second = (torch.rand(4, generator=generator("cpu", 3, "step", 7)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, torch.rand(4, generator=generator("cpu", 3, "step", 8)))


def test_every_entry_once_an_epoch() -> None:
    order = data_order(5, n=7, start=0, count=21)
    for epoch in order.split(7):
        assert sorted(epoch.tolist()) == list(range(7))
    assert len({tuple(epoch.tolist()) for epoch in order.split(7)}) == 3


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 4), (5, 30), (14, 7), (6, 2), (20, 0)])
def test_order_is_a_function_of_the_position(start: int, count: int) -> None:
    whole = data_order(1, n=7, start=0, count=60)
    if count:
        assert torch.equal(data_order(1, n=7, start=start, count=count), whole[start : start + count])


def test_orders_of_other_seeds_differ() -> None:
    assert not torch.equal(permutation(0, 0, 50), permutation(1, 0, 50))
    assert not torch.equal(permutation(0, 0, 50), permutation(0, 1, 50))


def test_stratified_uniforms_put_one_in_each_stratum() -> None:
    n = 64
    u = uniforms(n, generator("cpu", 0, "x"), stratified=True)
    assert sorted((u * n).floor().int().tolist()) == list(range(n))
    assert (u.argsort() != torch.arange(n)).any(), (
        "strata come in random order, else each process would see a part of (0, 1)"
    )


def test_uniforms_are_uniform() -> None:
    u = uniforms(4000, generator("cpu", 0, "x"), stratified=False)
    assert u.dtype == torch.float64
    assert 0 < u.min() < u.max() < 1
    assert stats.kstest(u.numpy(), "uniform").pvalue > 0.01
    position = uniforms(4000, generator("cpu", 0, "x"), stratified=True)[:200]  # one process's slice of twenty
    assert stats.kstest(position.numpy(), "uniform").pvalue > 0.01


def test_image_noise_depends_on_seed_index_and_draw_alone() -> None:
    together = image_noise((2, 3, 4), [0, 5, 9], seed=1, draw=0)
    assert together.shape == (3, 2, 3, 4)
    for row, index in enumerate([0, 5, 9]):
        assert torch.equal(together[row], image_noise((2, 3, 4), [index], seed=1, draw=0)[0])
    others = [
        image_noise((2, 3, 4), [i], seed=s, draw=d)[0] for i, s, d in [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]
    ]
    assert len({tuple(noise.flatten().tolist()) for noise in others}) == 4


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 5, 5), (2, 1, 1), (1, 4, 4)])
def test_image_noise_is_what_a_fresh_generator_for_each_image_draws(shape: tuple[int, ...]) -> None:
    """Published samples would change: the definition, spelt out, to the last bit."""
    images = [7, 0, 7, 49_999]
    defined = [
        torch.randn(shape, generator=torch.Generator().manual_seed(mix(3, "image", image, 12))) for image in images
    ]
    assert torch.equal(image_noise(shape, images, seed=3, draw=12), torch.stack(defined))


def test_images_of_a_call_share_a_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Generator] = []
    kind = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *place: (made.append(kind(*place)), made[-1])[1])
    image_noise((1, 8, 8), list(range(50)), seed=0, draw=1)
    assert len(made) == 1


def test_image_noise_is_standard_normal() -> None:
    noise = image_noise((1, 8, 8), list(range(100)), seed=0, draw=0)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
