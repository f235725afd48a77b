"""Image i of a sampling run depends on (seed, i) and its label alone."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import trained
from torch import Tensor

import diffgen.sampling.drawing
from diffgen.build import restore
from diffgen.core.errors import UsageError
from diffgen.core.randomness import image_noise
from diffgen.core.settings import sample_settings
from diffgen.core.signals import Interrupted
from diffgen.data.kinds import Pixels, Vectors
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.tasks import Plan
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import choose_labels, columns, cycle_labels
from diffgen.sampling.setup import resolve_sampler
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint

Compose = Callable[..., dict[str, Any]]
SHAPE = (1, 8, 8)
NOISY = sorted(name for name, facts in SAMPLERS.facts.items() if facts.noise)
FIXED = sorted(name for name, facts in SAMPLERS.facts.items() if facts.calls)
"""Their steps are the grid's, and so do not depend on the other images of a batch."""
CHOICES = [*FIXED, "ddim sampler.eta=1", "heun sampler.s_churn=20"]


@pytest.fixture(scope="module")
def denoiser(tiny_model: Path) -> Denoiser:
    """The tiny run's denoiser, with weights large enough for its branches to matter."""
    denoiser = restore(checkpoint.load(tiny_model)).denoiser
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in denoiser.model.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return denoiser


def make(denoiser: Denoiser, compose: Compose, sampler: str, *, seed: int = 3, guidance: float = 1.0) -> Sampling:
    config = compose("sample", "sampler.steps=6", *f"sampler={sampler}".split())["sampler"]
    return Sampling.from_config(
        trained(denoiser), config, guidance=Guidance(scale=guidance), seed=seed, device=torch.device("cpu")
    )


def draw(sampling: Sampling, n: int, batch_size: int) -> Tensor:
    labels = [i % 11 - 1 for i in range(n)]
    parts = [range(n)[i : i + batch_size] for i in range(0, n, batch_size)]
    return torch.cat([sampling.draw(list(part), [labels[i] for i in part]) for part in parts])


@pytest.mark.parametrize("sampler", CHOICES)
def test_batch_size_does_not_matter(denoiser: Denoiser, compose: Compose, sampler: str) -> None:
    sampling = make(denoiser, compose, sampler, guidance=2.0)
    whole = draw(sampling, 16, batch_size=64)
    assert whole.shape == (16, *SHAPE)
    assert whole.isfinite().all()
    assert whole.std() > 0.05
    for batch_size in (1, 7):
        torch.testing.assert_close(draw(sampling, 16, batch_size), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", CHOICES)
def test_seeds_give_other_images_and_indices_too(denoiser: Denoiser, compose: Compose, sampler: str) -> None:
    sampling = make(denoiser, compose, sampler)
    images = sampling.draw([0, 1, 0], [4, 4, 4])
    again = make(denoiser, compose, sampler).draw([0, 1, 0], [4, 4, 4])
    other = make(denoiser, compose, sampler, seed=4).draw([0, 1, 0], [4, 4, 4])
    assert torch.equal(images, again)
    torch.testing.assert_close(images[0], images[2], rtol=1e-4, atol=1e-4)
    assert (images[0] - images[1]).abs().max() > 0.05
    assert (images - other).abs().amax((1, 2, 3)).min() > 0.05


def test_stochastic_samplers_differ_from_deterministic_ones(denoiser: Denoiser, compose: Compose) -> None:
    images = [make(denoiser, compose, f"ddim sampler.eta={eta}").draw([0], [1]) for eta in (0.0, 0.5, 1.0)]
    assert (images[0] - images[1]).abs().max() > 1e-3
    assert (images[1] - images[2]).abs().max() > 1e-3


# --- noise that is drawn ahead -------------------------------------------------------------------------------


def threads() -> int:
    """Those that draw ahead."""
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int], bool]]:
    """Number and images of each draw of noise, and whether the calling thread drew it."""
    calls: list[tuple[int, list[int], bool]] = []

    def noise(
        shape: tuple[int, ...], indices: list[int], seed: int, draw: int, *, fill: Any, dtype: torch.dtype, pinned: bool
    ) -> Tensor:
        assert not pinned and dtype == torch.float32, "there is no GPU to copy it"
        calls.append((draw, indices, threading.current_thread() is threading.main_thread()))
        return image_noise(shape, indices, seed, draw, fill=fill)

    monkeypatch.setattr(diffgen.sampling.drawing, "image_noise", noise)
    return calls


def test_the_noise_of_a_step_is_drawn_while_the_network_runs(
    denoiser: Denoiser, compose: Compose, drawn: list[tuple[int, list[int], bool]]
) -> None:
    """20 steps add noise 19 times: the calling thread draws the start and the first, and nothing is drawn in vain."""
    make(denoiser, compose, "ancestral sampler.steps=20").draw([3, 4], [1, 2])
    here = [draw for draw, _, calling in drawn if calling]
    ahead = [draw for draw, _, calling in drawn if not calling]
    assert here == [0, 1]
    assert ahead == list(range(2, 20))
    assert threads() == 0


@pytest.mark.parametrize("sampler", [*NOISY, "ddim sampler.eta=0.5", "heun sampler.s_churn=20"])
def test_it_is_the_noise_that_is_drawn_when_asked_for(denoiser: Denoiser, compose: Compose, sampler: str) -> None:
    sampling, indices, label = make(denoiser, compose, sampler), [3, 9], torch.tensor([1, -1])

    def noise(draw: int) -> Tensor:
        return image_noise(SHAPE, indices, sampling.seed, draw).double()

    schedule = denoiser.schedule
    x = float(schedule.sigma(sampling.ts[0])) * noise(0)
    predict = guided(denoiser, label, sampling.guidance, clip=sampling.clip)
    with torch.inference_mode():
        expected = sampling.walk.sampler(predict, schedule, x, sampling.ts, lambda step: noise(step + 1))
    assert torch.equal(sampling.draw(indices, label.tolist()), expected.float())


def test_a_deterministic_sampler_starts_no_thread(
    denoiser: Denoiser, compose: Compose, drawn: list[tuple[int, list[int], bool]]
) -> None:
    sampling, seen = make(denoiser, compose, "ddim"), set[int]()
    sampling.before_each = lambda: seen.add(threads())
    sampling.draw([0, 1], [1, 2])
    assert drawn == [(0, [0, 1], True)]
    assert seen == {0}


def test_a_sampling_that_is_interrupted_leaves_no_thread(denoiser: Denoiser, compose: Compose) -> None:
    sampling, seen = make(denoiser, compose, "ancestral"), list[int]()

    def interrupt() -> None:
        seen.append(threads())
        if len(seen) == 4:
            raise Interrupted

    sampling.before_each = interrupt
    with pytest.raises(Interrupted):
        sampling.draw([0, 1], [1, 2])
    assert seen == [0, 1, 1, 1]
    assert threads() == 0


@pytest.mark.parametrize("path", [True, False])
def test_images_on_a_path_share_their_noise(
    denoiser: Denoiser, compose: Compose, drawn: list[tuple[int, list[int], bool]], path: bool
) -> None:
    sampling = make(denoiser, compose, "ancestral")
    sampling.plan = Plan(lambda indices: torch.zeros(len(indices), *SHAPE).double(), sampling.ts[2:], path=path)
    images = sampling.draw([5, 6, 7], [1, 1, 1])
    assert [draw for draw, _, _ in sorted(drawn)] == [1, 2, 3], "4 steps are left, the last of them without noise"
    assert all(indices == ([0, 0, 0] if path else [5, 6, 7]) for _, indices, _ in drawn)
    assert path == bool((images[0] - images[1]).abs().max() < 1e-4)


# --- guidance and labels ------------------------------------------------------------------------------------


def test_guidance_one_is_no_guidance_bit_for_bit(denoiser: Denoiser) -> None:
    x, t, label = torch.randn(3, *SHAPE), torch.tensor(0.4), torch.tensor([0, 5, -1])
    result = guided(denoiser, label, Guidance(scale=1.0), clip=False)(x, t)
    assert torch.equal(result, denoiser(x, t, label))


def test_images_at_one_time_are_images_at_their_own_times(denoiser: Denoiser) -> None:
    """The coefficients that are looked up are those that are computed image by image."""
    x, label = torch.randn(3, *SHAPE).double(), torch.tensor([0, 5, -1])
    for t in torch.tensor([0.05, 0.4, 0.9, 0.4], dtype=torch.float64):
        torch.testing.assert_close(denoiser(x, t, label), denoiser(x, t.expand(3), label), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0, -1.0])
def test_guidance_is_a_line_through_both_predictions(denoiser: Denoiser, guidance: float) -> None:
    x, t, label = torch.randn(3, *SHAPE).double(), torch.tensor(0.4), torch.tensor([0, 5, -1])
    with_label, without = denoiser(x, t.expand(3), label), denoiser(x, t.expand(3), torch.full((3,), -1))
    expected = (1 - guidance) * without + guidance * with_label
    torch.testing.assert_close(
        guided(denoiser, label, Guidance(scale=guidance), clip=False)(x, t), expected, rtol=1e-4, atol=1e-5
    )
    clipped = guided(denoiser, label, Guidance(scale=guidance), clip=True)(x, t)
    torch.testing.assert_close(clipped, expected.clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_guidance_changes_labelled_images_only(denoiser: Denoiser, compose: Compose) -> None:
    off, on = (make(denoiser, compose, "heun", guidance=w).draw([0, 1], [2, -1]) for w in (1.0, 4.0))
    assert (off[0] - on[0]).abs().max() > 1e-2
    torch.testing.assert_close(off[1], on[1], rtol=1e-4, atol=1e-4)


def test_guidance_off_costs_one_network_call_an_image(denoiser: Denoiser, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[int] = []
    model = denoiser.model
    monkeypatch.setattr(denoiser, "model", lambda x, *rest: (batches.append(len(x)), model(x, *rest))[1])
    x, t = torch.randn(2, *SHAPE), torch.tensor(0.4)
    guided(denoiser, torch.tensor([1, 2]), Guidance(scale=1.0), clip=False)(x, t)
    guided(denoiser, torch.tensor([-1, -1]), Guidance(scale=5.0), clip=False)(x, t)
    guided(denoiser, torch.tensor([1, 2]), Guidance(scale=5.0), clip=False)(x, t)
    assert batches == [2, 2, 4]


CLASSES = ["cat", "dog", "7"]


def labels(compose: Compose, *overrides: str, num_classes: int = 3) -> list[int]:
    config = compose("sample", "n=5", *overrides)
    settings = sample_settings({k: v for k, v in config.items() if k not in ("sampler", "task", "plugins")})
    return choose_labels(settings, CLASSES[:num_classes], num_classes, new=config["task"]["name"] == "generate")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("label=auto", [0, 1, 2, 0, 1]),
        ("task=interpolate", [-1] * 5),
        ("label=each", [0, 1, 2, 0, 1]),
        ("label=none", [-1] * 5),
        ("label=null", [-1] * 5),
        ("label=2", [2] * 5),
        ("label=dog", [1] * 5),
        ("label='7'", [2] * 5),
        ("label=[2,0]", [2, 0, 2, 0, 2]),
        ("label=[cat,2]", [0, 2, 0, 2, 0]),
    ],
)
def test_labels_are_chosen(compose: Compose, override: str, expected: list[int]) -> None:
    assert labels(compose, override) == expected


@pytest.mark.parametrize(
    ("override", "num_classes", "sentence"),
    [
        ("label=3", 3, "label=3 is out of range: the model has classes 0 to 2"),
        ("label=-1", 3, "label=-1 is out of range: the model has classes 0 to 2"),
        ("label=[0,9]", 3, "label=9 is out of range"),
        (
            "label=dgo",
            3,
            "label='dgo' is unknown; choose one of [7, auto, cat, dog, each, none] (did you mean 'dog'?)",
        ),
        ("label=[]", 3, "label=[] is empty: give a class, a list of classes, each or none"),
        ("label=1", 0, "label=1 asks for a class, but this model is unconditional: label=none"),
        ("label=[1,2]", 0, "label=[1, 2] asks for a class, but this model is unconditional: label=none"),
        ("label=each", 0, "label=each asks for a class, but this model is unconditional: label=none"),
        ("label=1.5", 3, "label=1.5 is unknown; choose one of [7, auto, cat, dog, each, none]"),
    ],
)
def test_impossible_labels_are_told(compose: Compose, override: str, num_classes: int, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        labels(compose, override, num_classes=num_classes)
    assert str(caught.value).startswith(sentence)


def test_an_unconditional_model_needs_no_label(compose: Compose) -> None:
    assert labels(compose, num_classes=0) == labels(compose, "label=none", num_classes=0) == [-1] * 5
    assert cycle_labels(3, 0) == [-1] * 3


def test_grids_have_a_column_for_each_class() -> None:
    assert columns(50, 10) == 10
    assert columns(7, 10) is None
    assert columns(50, 0) is None
    assert columns(500, 100) is None


def test_the_sampler_is_the_checkpoint_s_own_with_changes(compose: Compose) -> None:
    own = {"name": "heun", "steps": 18, "rho": 7.0, "s_churn": 0.0}
    saved = Checkpoint(Path("model.safetensors"), {"sampler": own, "schedule": {"name": "ve"}}, 1, {})
    assert resolve_sampler(compose("sample")["sampler"], saved, Pixels()) == own
    assert resolve_sampler(compose("sample", "sampler.steps=5")["sampler"], saved, Pixels()) == {**own, "steps": 5}
    chosen = compose("sample", "sampler=ddim", "sampler.eta=0.5")["sampler"]
    assert resolve_sampler(chosen, saved, Pixels()) == chosen
    assert resolve_sampler(chosen, saved, Vectors()) == {**chosen, "clip": False}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["sampler.steps=0"], "sampler.steps=0 must be in [1, 100000]"),
        (["sampler.steps=2.5"], "sampler.steps=2.5 must be a whole number"),
        (["sampler.rho=-1"], "sampler.rho=-1.0 must be positive"),
        (["sampler.spacing=cosin"], "sampler.spacing='cosin' is unknown; choose one of [auto, "),
        (["sampler.eta=2"], "sampler.eta=2.0 must be in [0, 1]"),
        (["sampler.clip=maybe"], "sampler.clip='maybe' must be true or false"),
    ],
)
def test_bad_sampler_settings_are_told_before_sampling(
    denoiser: Denoiser, compose: Compose, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        make_from = compose("sample", "sampler=ddim", *overrides)["sampler"]
        Sampling.from_config(
            trained(denoiser), make_from, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu")
        )
    assert str(caught.value).startswith(sentence)
