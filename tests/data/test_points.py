import json
import re
import sys
from types import SimpleNamespace
from typing import get_args

import numpy as np
import pytest
import torch
from cases import trained
from rows import row, schedule
from scipy.optimize import linear_sum_assignment
from scipy.stats import energy_distance as energy_distance_1d

from diffgen.cli import sample as sample_command
from diffgen.cli import train as train_command
from diffgen.core.errors import UsageError
from diffgen.data.kinds import Vectors
from diffgen.data.points import Shape, ode_field, points, sampler_paths
from diffgen.data.vectors import distance_to_data, energy_distance, report_times
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.sampling.drawing import Sampling

KINDS = get_args(Shape)
FLOW = schedule("rectified_flow")


# --- the sets -------------------------------------------------------------------------------------


def clean(kind, n=4000, seed=3):
    data = points(kind=kind, n=n, noise=0.0, seed=seed)
    return data.values.double().numpy(), data.labels.numpy(), data.classes


def test_moons_are_half_circles():
    xy, labels, classes = clean("moons")
    raw = xy * 1.5 + [0.5, 0.25]
    centre = np.where(labels[:, None] == 0, [0.0, 0.0], [1.0, 0.5])
    np.testing.assert_allclose(np.linalg.norm(raw - centre, axis=1), 1, atol=1e-6)
    assert (raw[labels == 0, 1] >= -1e-6).all() and (raw[labels == 1, 1] <= 0.5 + 1e-6).all()
    assert classes == ("upper", "lower") and np.bincount(labels).tolist() == [2000, 2000]


def test_circles_have_two_radii():
    xy, labels, classes = clean("circles")
    np.testing.assert_allclose(np.linalg.norm(xy, axis=1), np.where(labels == 0, 1, 0.5), atol=1e-6)
    assert classes == ("outer", "inner")


def test_swiss_roll_is_a_spiral():
    xy, labels, _ = clean("swiss_roll")
    turn = np.linalg.norm(xy, axis=1) * 4.5 * np.pi  # its radius is its angle
    np.testing.assert_allclose(np.stack([np.cos(turn), np.sin(turn)], 1) * turn[:, None] / (4.5 * np.pi), xy, atol=1e-5)
    assert turn.min() >= 1.5 * np.pi - 1e-4 and (labels == -1).all()


def test_s_curve_is_two_arcs():
    xy, _, _ = clean("s_curve")
    centre = np.stack([np.zeros(len(xy)), -0.5 * np.sign(-xy[:, 1])], 1)
    np.testing.assert_allclose(np.linalg.norm(xy - centre, axis=1), 0.5, atol=1e-6)
    assert xy[:, 1].min() < -0.95 and xy[:, 1].max() > 0.95


def test_checkerboard_fills_the_dark_squares_evenly():
    xy, _, _ = clean("checkerboard", n=40_000)
    cell = np.floor((xy + 1) * 2).astype(int).clip(0, 3)
    count = np.bincount(cell[:, 0] * 4 + cell[:, 1], minlength=16).reshape(4, 4)
    dark = np.add.outer(np.arange(4), np.arange(4)) % 2 == 0
    assert (count[~dark] == 0).all()
    np.testing.assert_allclose(count[dark], 5000, atol=5 * np.sqrt(5000))


def test_mixture_has_eight_components():
    xy, labels, classes = clean("gaussian_mixture")
    angles = labels * np.pi / 4
    np.testing.assert_allclose(xy, 0.8 * np.stack([np.cos(angles), np.sin(angles)], 1), atol=1e-6)
    assert len(classes) == 8 and np.bincount(labels).tolist() == [500] * 8


@pytest.mark.parametrize("kind", KINDS)
def test_sets_lie_in_the_square_and_are_a_function_of_the_seed(kind):
    xy, _, _ = clean(kind)
    assert 0.9 < np.abs(xy).max() <= 1 + 1e-6 or kind == "gaussian_mixture"
    assert np.array_equal(xy, clean(kind)[0])
    assert not np.array_equal(xy, clean(kind, seed=4)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_noise_is_gaussian_of_the_given_size(kind):
    added = (
        points(kind=kind, n=20_000, noise=0.1, seed=3).values - points(kind=kind, n=20_000, noise=0.0, seed=3).values
    )
    np.testing.assert_allclose(added.mean(0), 0, atol=4 * 0.1 / np.sqrt(20_000))
    np.testing.assert_allclose(np.cov(added.T.numpy()), 0.01 * np.eye(2), atol=4 * 0.01 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize("bad", [{"kind": "mouns"}, {"n": 0}, {"noise": -0.1}, {"seed": -1}])
def test_bad_settings_are_refused(bad):
    from diffgen.build import make_dataset

    good = {"name": "points", "kind": "moons", "n": 10, "noise": 0.1, "seed": 0}
    with pytest.raises(UsageError, match=next(iter(bad))):
        make_dataset({"dataset": {**good, **bad}})


def test_batches_are_floats_that_pass_through():
    data = points(kind="circles", n=100, noise=0.05, seed=0)
    entries = torch.tensor([7, 0, 99])
    ((values, labels),) = data.batches(iter([entries]), torch.device("cpu"))
    assert values.shape == (3, 2) and values.dtype == torch.float32
    assert torch.equal(data.kind.encode(values), data.values[entries]) and torch.equal(labels, data.labels[entries])
    assert not data.kind.bounded and data.shape.num_classes == 2


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_sets_are_independent_draws_of_the_same_distribution(kind):
    data = points(kind=kind, n=20_000, noise=0.05, seed=0)
    first, second = data.fresh(2000, 0), data.fresh(2000, 1)
    assert torch.equal(first, data.fresh(2000, 0)) and not torch.equal(first, second)
    assert not (first[:, None] == data.values[None, :2000]).all(-1).any()
    spread = data.values.std(0)
    assert ((first.mean(0) - data.values.mean(0)).abs() < 4 * spread / 2000**0.5).all()


# --- distances ------------------------------------------------------------------------------------


def test_energy_distance_agrees_with_scipy_in_one_dimension():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=50), rng.normal(0.5, 2, size=70)
    ours = energy_distance(torch.tensor(x)[:, None], torch.tensor(y)[:, None])
    assert ours == pytest.approx(energy_distance_1d(x, y), rel=1e-9)


def test_energy_distance_of_two_points_and_of_a_set_to_itself():
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert energy_distance(a, b) == pytest.approx(10**0.5)
    x = torch.randn(30, 5)
    assert energy_distance(x, x[torch.randperm(30)]) == pytest.approx(0, abs=1e-7)


def test_distance_to_data_tells_data_from_others():
    data = points(kind="moons", n=100, noise=0.05, seed=0)
    distance, floor = distance_to_data(data.fresh(1000, 77), data.fresh)
    assert 0.6 < distance / floor < 1.35
    for wrong in (data.fresh(1000, 77) + 0.06, 1.12 * data.fresh(1000, 77), data.fresh(1000, 77).flip(1)):
        assert distance_to_data(wrong, data.fresh)[0] > 1.5 * floor


# --- plots of an exact model ----------------------------------------------------------------------


def to_a_point(schedule, centre=(0.3, -0.2)):
    """Sampling with the exact denoiser of data that are one point: x0_hat = centre everywhere."""
    x0 = torch.tensor(centre)
    denoiser = Denoiser(
        lambda x, c, label: x0.expand_as(x).to(x),
        schedule,
        PARAMETERIZATIONS["x0"],
        sigma_data=0.5,
        scale_input=True,
    )
    heun = row("sampler", "heun", steps=10)
    whole = trained(denoiser, (2,), Vectors())
    return Sampling.from_config(whole, heun, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu"))


def test_field_points_straight_at_a_point():
    ts, clouds, places, directions = ode_field(to_a_point(FLOW), torch.zeros(4, 2))
    assert ts == pytest.approx([0.9, 0.7, 0.5, 0.3, 0.1])
    expected = -0.001 * (
        places - torch.tensor([0.3, -0.2], dtype=torch.float64)
    )  # dx = (x - x0) dt/t, and dt = -t/1000
    torch.testing.assert_close(directions, expected, atol=1e-9, rtol=1e-4)
    spread = clouds.flatten(1).std(1)
    assert spread[0] > spread[-1]


@pytest.mark.parametrize("name", ["rectified_flow", "ve", "cosine"])
def test_reports_look_at_the_same_noise_levels_on_every_clock(name):
    clock = schedule(name)
    t = report_times(clock)
    nsr = clock.sigma(t) / clock.alpha(t)
    torch.testing.assert_close(nsr, torch.tensor([9, 7 / 3, 1, 3 / 7, 1 / 9], dtype=torch.float64), rtol=1e-6, atol=0)


def test_trajectories_to_a_point_are_straight():
    states = sampler_paths(to_a_point(FLOW), [-1] * 5)
    assert states.shape == (11, 5, 2)  # every step once, though Heun calls twice
    share = torch.linspace(1, 0, 11)[:, None, None]
    torch.testing.assert_close(states, share * states[0] + (1 - share) * torch.tensor([0.3, -0.2]), atol=1e-6, rtol=0)


# --- the commands ---------------------------------------------------------------------------------


def command(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["diffgen", *arguments])
    assert module.main() == 0


def train(monkeypatch, folder, *overrides):
    command(monkeypatch, train_command, "dataset=points", f"run_dir={folder}", *overrides)
    return points(kind="moons", n=1, noise=0.05, seed=0)


def drawn(monkeypatch, run, out, n, *overrides):
    command(monkeypatch, sample_command, f"ckpt={run}", f"n={n}", f"out={out}", "save=[npz]", "seed=1", *overrides)
    with np.load(out / "samples.npz") as file:
        return torch.from_numpy(file["arr_0"]), torch.from_numpy(file["arr_1"])


@pytest.mark.slow
def test_train_and_sample_moons(monkeypatch, tmp_path, capsys):
    """A tenth of the recipe already passes the bound of the whole."""
    run, n = tmp_path / "run", 500
    images = 150_016
    train(monkeypatch, run, f"train.images={images}", f"preview.n={n}")
    told = re.search(r"data ([\d.]+), of data to data ([\d.]+): ([\d.]+) times", capsys.readouterr().out)
    assert told and float(told[3]) == pytest.approx(float(told[1]) / float(told[2]), abs=0.01)
    assert {p.name for p in (run / "samples").iterdir()} == {f"{images:08}{s}.png" for s in ("", "-field", "-paths")}
    assert (run / "loss.png").stat().st_size > 5000

    samples, labels = drawn(monkeypatch, run, tmp_path / "out", n)
    assert samples.shape == (n, 2) and samples.dtype == torch.float32 and labels.tolist() == [0, 1] * (n // 2)
    assert (tmp_path / "out" / "grid.png").stat().st_size > 5000
    distance, floor = distance_to_data(samples, points(kind="moons", n=1, noise=0.05, seed=0).fresh)
    assert distance < 1.5 * floor
    upper, lower = samples[labels == 0].mean(0), samples[labels == 1].mean(0)
    torch.testing.assert_close(upper, torch.tensor([-1 / 3, (2 / np.pi - 0.25) / 1.5]), atol=0.1, rtol=0)
    torch.testing.assert_close(lower, torch.tensor([1 / 3, -(2 / np.pi - 0.25) / 1.5]), atol=0.1, rtol=0)


def test_samplers_that_clip_pixels_do_not_clip_vectors(monkeypatch, tmp_path):
    run = tmp_path / "run"
    command(monkeypatch, train_command, "dataset=mixture", f"run_dir={run}", "train.images=20480", "preview.n=8")
    samples, labels = drawn(monkeypatch, run, tmp_path / "out", 200, "sampler=ddim", "sampler.steps=10")
    assert samples.shape == (200, 10) and (labels == -1).all()
    assert samples.abs().max() > 1.2


def test_pictures_of_vectors_are_refused(monkeypatch, tmp_path, capsys):
    run = tmp_path / "run"
    train(monkeypatch, run, "train.images=512", "preview.n=8")
    monkeypatch.setattr(sys, "argv", ["diffgen", f"ckpt={run}", "save=[png]", f"out={tmp_path / 'out'}"])
    assert sample_command.main() == 2
    assert "this model makes vectors" in capsys.readouterr().err


def wasserstein(x, y):
    """The exact 2-Wasserstein distance of two sets of equal size."""
    cost = torch.cdist(x.double(), y.double(), compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    return float(np.sqrt(cost[linear_sum_assignment(cost)].mean()))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_as_near_to_data_as_data(monkeypatch, tmp_path, kind):
    run = tmp_path / "run"
    command(monkeypatch, train_command, "dataset=points", f"dataset.kind={kind}", f"run_dir={run}")
    samples, _ = drawn(monkeypatch, run, tmp_path / "out", 2000)
    fresh = points(kind=kind, n=1, noise=0.05, seed=0).fresh
    distance, floor = distance_to_data(samples, fresh)
    sets = [fresh(2000, 100 + number) for number in range(8)]
    transport = np.mean([wasserstein(samples, data) for data in sets[:4]])
    transport_floor = np.mean([wasserstein(a, b) for a, b in zip(sets[:4], sets[4:], strict=True)])
    row = {"kind": kind, "energy": distance, "floor": floor, "W2": transport, "W2 floor": transport_floor}
    print(json.dumps({k: v if isinstance(v, str) else round(v, 4) for k, v in row.items()}))
    assert distance < 1.5 * floor
    assert transport < 1.5 * transport_floor


def test_paths_use_the_last_state_at_each_time():
    """A sampler that tries twice at one time is drawn through its second, corrected state."""

    def draw(indices, labels, watch):
        for t, value in ((1.0, 5.0), (0.5, 3.0), (0.5, 2.0)):
            watch(torch.full((1, 2), value), torch.tensor(t))
        return torch.zeros(1, 2)

    sampling = SimpleNamespace(draw=draw, denoiser=SimpleNamespace(schedule=FLOW))
    assert sampler_paths(sampling, [-1])[:, 0, 0].tolist() == [5, 2, 0]


def test_trajectories_from_large_noise_are_in_its_units():
    states = sampler_paths(to_a_point(schedule("ve")), [-1] * 500)
    assert states[0].std() == pytest.approx(1, rel=0.1) and states.abs().max() < 5
    torch.testing.assert_close(states[-1], torch.tensor([[0.3, -0.2]]).expand(500, 2), atol=1e-5, rtol=0)
