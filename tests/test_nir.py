"""NIR on small pairs whose answer is known; its options; the loop that fits; saved fields."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralreg import kernels
from neuralreg.errors import InputError, NeuralregError
from neuralreg.fields import Composed, HashMLP, Siren, Stretched, load_field
from neuralreg.fit import minimise
from neuralreg.kernels.spec import Flow
from neuralreg.methods import nir
from neuralreg.methods.nir import (
    PRESETS,
    Options,
    dense_displacement,
    fit,
    make_field,
    make_stages,
)
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.samplers import axis_coordinates, lattice_coordinates
from tests.shifts import inner, shifted

SMALL = Options(levels=3, base=3, finest=8, hidden=(16,), iterations=40, scales=(4, 2, 2, 2, 1, 1, 1, 1))


@pytest.mark.parametrize("grid", [(40, 36), (24, 20, 22)])
def test_a_known_shift_is_found(grid):
    pair, truth = shifted(grid)
    field, history = fit(pair, SMALL)
    error = (dense_displacement(field, grid) - truth).square().sum(0, keepdim=True).sqrt()
    assert inner(error).mean() < 0.3, "of 1.5 voxels"
    assert history[-1]["loss"] < history[20]["loss"]
    assert [h["scale"] for h in history] == [4.0] * 5 + [2.0] * 15 + [1.0] * 20


def test_the_papers_field_finds_the_shift_too():
    pair, truth = shifted((40, 36))
    options = replace(
        PRESETS["paper-displacement"],
        hidden=(32, 32),
        frequencies=16,
        iterations=150,
        stride=1,
        lncc_window=7,
    )
    field, history = fit(pair, options)
    assert field.spec.activation == "sine"
    assert field.matrix is not None
    error = (dense_displacement(field, pair.grid) - truth).square().sum(0, keepdim=True).sqrt()
    assert inner(error).mean() < 0.5, "of 1.5 voxels"
    assert history[-1]["similarity"] > history[0]["similarity"]


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": "center"},
        {"sampler": "jitter", "stride": 2},
        {"sampler": "continuous", "stride": 2, "similarity": "mse", "jacobian_weight": 5.0},
        {"sampler": "patches", "patch_side": 16},
        {"sampler": "whole"},
        {"sampler": "random", "similarity": "ncc", "max_points": 500},
        {"sampler": "random", "similarity": "mse", "max_points": 700, "jacobian_weight": 5.0},
        {"sampler": "downsize+patches", "patch_side": 16},
        {"sampler": "downsize+random", "similarity": "l1", "max_points": 600, "jacobian_weight": 5.0},
        {"similarity": "ssim", "lncc_window": 7},
        {"jacobian": "analytic"},
        {"padding": "valid", "dropout": 0.2},
        {"padding": "valid", "zero_rule": True, "dropout": 0.2},
        {"output": "velocity", "flow_steps": 2},
        {"output": "velocity", "integrator": "squaring", "bounded": False, "flow_time": 1.0},
        {"encoding": "fourier", "activation": "relu", "lr": 3e-3, "sigma": 1.0},
        {"encoding": "octaves", "octaves": 4, "lr": 1e-3, "activation": "silu"},
        {"encoding": "none", "lr": 1e-3, "hidden": (32, 32)},
        {"hybrid": True, "iterations": 80, "patch_side": 16},
        {"nir_compat": True},
    ],
    ids=lambda changes: ",".join(f"{name}={value}" for name, value in changes.items()),
)
def test_every_choice_finds_the_shift(changes):
    pair, truth = shifted((40, 36))
    options = replace(SMALL, **({"iterations": 60, "lr": 1e-2, "scales": (2, 1)} | changes))
    field, history = fit(pair, options)
    found = dense_displacement(field, pair.grid)
    error = (found - truth).square().sum(0, keepdim=True).sqrt()
    assert inner(error).mean() < 0.6, "of 1.5 voxels"
    assert len(history) == options.iterations
    loaded = load_field(field.describe())
    x = torch.rand(9, 2) * 2 - 1
    assert torch.equal(loaded(x), field(x))
    u, jacobian = field.jet(x)
    torch.testing.assert_close(u, field(x), rtol=1e-4, atol=1e-6)
    assert jacobian.shape == (9, 2, 2)


def test_a_squared_velocity_is_the_flow_that_points_follow():
    """The dense map from squaring and the field's own integration agree where the flow stays inside."""
    pair, _ = shifted((24, 20, 22))
    options = replace(SMALL, output="velocity", integrator="squaring", bounded=False, flow_time=1.0)
    field, _ = fit(pair, options)
    dense = dense_displacement(field, pair.grid)
    axes = [axis_coordinates(torch.arange(float(n)), n) for n in pair.grid]
    half = torch.tensor([(n - 1) / 2 for n in pair.grid])
    points = (field(lattice_coordinates(axes)) * half).T.reshape(3, *pair.grid)
    assert inner(dense).abs().max() > 1
    assert inner((dense - points).abs()).max() < 0.1
    assert kernels.jacobian_determinant(dense[None]).min() > 0


def test_the_second_field_stands_on_the_frozen_first():
    pair, _ = shifted((40, 36))
    seen = []
    options = replace(SMALL, hybrid=True, iterations=30, first_share=1 / 3, patch_side=16)
    field, history = fit(pair, options, watch=lambda i, f: seen.append((i, type(f).__name__)))
    assert isinstance(field, Composed)
    assert not any(p.requires_grad for p in field.inner.parameters())
    assert seen == [(i + 1, "Field" if i < 10 else "Composed") for i in range(30)]
    assert [h["iteration"] for h in history] == list(range(30))
    alone, _ = fit(pair, replace(options, hybrid=False, iterations=10))
    x = torch.rand(5, 2)
    torch.testing.assert_close(field.inner(x), alone(x), rtol=0, atol=0)


def test_corners_that_are_not_aligned_stretch_the_map():
    """nir_compat says where it reads: identity coordinates reach N / 2 voxels from the centre, not (N - 1) / 2."""
    inner_field = HashMLP(ndim=2, levels=1, base=2, finest=2, hidden=(4,))
    field = Stretched(inner_field, [40 / 39, 36 / 35])
    dense = dense_displacement(field, (40, 36))
    torch.testing.assert_close(dense[:, 0, 0], torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(dense[:, -1, 17], torch.tensor([0.5, -0.5 / 35]), rtol=0, atol=1e-5)


def test_time_ends_a_fit():
    pair, _ = shifted((24, 20, 22))
    options = replace(SMALL, iterations=100_000)
    for chosen in (options, replace(options, hybrid=True, patch_side=12)):
        _, history = fit(pair, chosen, seconds=1.0)
        assert 4 <= len(history) < 5000
        assert {h["scale"] for h in history} == {1.0, 2.0, 4.0}


def test_presets_are_whole():
    for name, preset in PRESETS.items():
        assert make_field(preset, 3).spec.ndim == 3, name
    assert make_field(PRESETS["paper-diffeomorphic"], 3).spec.flow == Flow(0.2, 4, "rk4")
    assert sum(p.numel() for p in make_field(PRESETS["paper-displacement"], 3).parameters()) == 263_939


def test_the_affine_carries_the_rest():
    """The field starts at zero, so the first similarity is that of the affine alone."""
    pair, _ = shifted((24, 20, 22), 2.0)
    carried = torch.eye(3, 4)
    carried[0, 3] = 2.0
    options = replace(SMALL, iterations=1, scales=(1,))
    (_, plain), (_, helped) = (fit(p, options) for p in (pair, Pair(pair.fixed, pair.moving, carried)))
    # Not 1: beyond the moving image the warped one is 0.
    assert helped[0]["similarity"] > max(0.85, plain[0]["similarity"] + 0.2)


def test_a_seed_repeats_and_another_differs():
    pair, _ = shifted((16, 16, 16))
    options = replace(SMALL, iterations=4, scales=(1,), stride=2)
    losses = [[h["loss"] for h in fit(pair, options, seed=seed)[1]] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_masked_voxels_do_not_count():
    pair, _ = shifted((24, 20, 22))
    mask = torch.zeros_like(pair.fixed)
    mask[:, :, :, :10] = 1
    spoiled = pair.fixed.clone()
    spoiled[:, :, :, 15:] = torch.rand_like(spoiled[:, :, :, 15:])  # beyond the reach of the mask's windows
    options = replace(SMALL, iterations=3, scales=(1,))
    first, second = (
        [h["loss"] for h in fit(Pair(fixed, pair.moving, pair.voxel_affine, mask), options)[1]]
        for fixed in (pair.fixed, spoiled)
    )
    assert first == pytest.approx(second, abs=1e-6)
    assert first != pytest.approx(
        [h["loss"] for h in fit(Pair(spoiled, pair.moving, pair.voxel_affine), options)[1]], abs=1e-6
    )


def test_penalties_smooth_the_field():
    pair, _ = shifted((24, 20, 22))
    rough, smooth = (
        fit(pair, replace(SMALL, diffusion_weight=weight, jacobian_weight=0.0))[0] for weight in (0.0, 30.0)
    )
    energy = [kernels.diffusion_loss(dense_displacement(field, pair.grid)[None]) for field in (rough, smooth)]
    assert energy[1] < 0.5 * energy[0]


def test_dense_displacement_in_slabs_is_the_field_at_every_voxel(monkeypatch):
    field = HashMLP(levels=2, features=2, base=2, finest=5, hidden=(8,))
    torch.nn.init.normal_(field.weights[-2])
    whole = dense_displacement(field, (9, 5, 6))
    monkeypatch.setattr(nir, "SLAB_POINTS", 70)
    torch.testing.assert_close(dense_displacement(field, (9, 5, 6)), whole)
    corner = field(torch.tensor([[-1.0, 1.0, -1.0]])) * torch.tensor([4.0, 2.0, 2.5])
    torch.testing.assert_close(whole[:, 0, -1, 0], corner[0].detach())


def test_a_scale_without_room_for_a_window_is_left_out():
    where = torch.Generator(), torch.device("cpu")
    stages = make_stages((16, 9, 16), replace(SMALL, scales=(4, 2, 1)), *where)
    assert [(sampler.scale, share) for samplers, share in stages for sampler, _ in samplers] == [(1, 1)]
    with pytest.raises(InputError, match="lncc_window 11 is larger than the lattice"):
        make_stages((16, 9, 16), replace(SMALL, lncc_window=11), *where)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("encoding", "wavelet", "grid, fourier"),
        ("iterations", 0, "at least 1"),
        ("stride", -1, "stride"),
        ("lr", 0.0, "lr"),
        ("final_lr", 2.0, "final_lr"),
        ("scales", "0,1", "scales"),
        ("scales", "2,a", "numbers with commas"),
        ("hidden", "64,x", "numbers with commas"),
        ("sampler", "downsize+whale", "'whale' is not one of downsize"),
        ("sampler", "random", "similarity lncc needs windows"),
        ("similarity", "mi", "lncc, ssim"),
        ("dropout", "1", "dropout"),
        ("first_share", "0", "first_share"),
        ("integrator", "heun", "rk4"),
        ("hybrid", "true", "needs one lattice"),
        ("nir_compat", "true", "needs one lattice"),
        ("jacobian", "analytic", "needs one lattice"),
        ("sampler", "patches", "needs one lattice"),
        ("output", "position", "displacement, velocity"),
        ("patches", "0", "at least 1"),
        ("lncc_window", "five", "int"),
    ],
)
def test_bad_options_are_told_in_one_line(name, value, words):
    preset = "fast-diffeomorphic" if words == "needs one lattice" else "fast"
    with pytest.raises(InputError, match=words) as caught:
        resolve(PRESETS, preset, {name: value}, "nir")
    assert "\n" not in str(caught.value)


def test_options_convert_from_text():
    options = resolve(
        PRESETS, "fast", {"hidden": "32,16", "scales": "4,2,1", "start_at_zero": "no", "lr": "1e-3"}, "nir"
    )
    assert (options.hidden, options.scales, options.start_at_zero, options.lr) == (
        (32, 16),
        (4, 2, 1),
        False,
        1e-3,
    )


@pytest.mark.parametrize(
    "field", [HashMLP(levels=2, base=2, finest=4, hidden=(8,)), Siren(frequencies=4, hidden=(8, 8), ndim=2)]
)
def test_a_described_field_loads_and_says_the_same(field, tmp_path):
    torch.nn.init.normal_(field.weights[-2])
    torch.save(field.describe(), tmp_path / "field.pt")
    loaded = load_field(torch.load(tmp_path / "field.pt", weights_only=True))
    x = torch.rand(7, field.spec.ndim) * 2 - 1
    assert torch.equal(loaded(x), field(x))
    with pytest.raises(ValueError, match="format 0"):
        load_field(field.describe() | {"format": 0})


def test_minimise_lowers_the_rates_linearly_and_reports():
    x = torch.nn.Parameter(torch.tensor([3.0]))
    seen: list[tuple[int, int, str]] = []
    group = {"params": [x], "lr": 0.1}

    def step():
        before.append(float(x.detach()))
        return {"loss": x.square().sum()}

    before: list[float] = []
    history = minimise(
        [step],
        [group],
        iterations=11,
        final_lr=0.0,
        progress=lambda i, n, loss, stage: seen.append((i, n, stage)),
    )
    moves = -torch.tensor(before).diff()
    # Adam's first steps have the length of the rate; the last rate is 0.
    assert moves[0] == pytest.approx(0.1, rel=1e-3)
    assert moves[5] == pytest.approx(0.05, rel=0.1)
    assert float(x.detach()) == pytest.approx(before[-1])
    assert seen == [(1, 11, "fit"), (6, 11, "fit"), (11, 11, "fit")]
    assert [h["iteration"] for h in history] == list(range(11))
    assert history[0]["loss"] == 9.0


def test_minimise_stops_at_a_loss_that_is_no_number():
    x = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(NeuralregError, match="learning rate"):
        minimise(
            [lambda: {"loss": (x * float("nan")).sum()}],
            [{"params": [x], "lr": 1.0}],
            iterations=2,
            final_lr=1.0,
        )


def test_the_real_hippocampus_pair(data_folder):
    """Two labels, Dice .574 before; a third of the iterations of the default, which reaches .80."""
    from neuralreg import register
    from neuralreg.images import read_labels
    from neuralreg.metrics import dice, mean_dice

    def path(name: str) -> str:
        return str(data_folder / "hippocampus_mr_msd" / f"hippocampus_{name}.nii.gz")

    found = register(path("008_img"), path("014_img"), iterations=50)
    warped = found.transform.warp(read_labels(path("014_label")), interpolation="label")
    score = mean_dice(dice(read_labels(path("008_label")).data, warped.data))
    assert score > 0.75
    assert found.summary["folds_percent"] < 0.05
    assert found.summary["inverse_consistency_mm"] < 0.2
