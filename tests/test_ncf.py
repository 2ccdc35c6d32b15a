"""NCF on small pairs whose answer is known; its modules, its options, saved fields."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralreg import kernels
from neuralreg.correspondence import CorrespondenceField, Smoother
from neuralreg.errors import InputError
from neuralreg.fields import Composed, HashMLP, load_field
from neuralreg.methods import ncf
from neuralreg.methods.ncf import PRESETS, dense_displacement, fit, learn_identity, make_field, make_stages
from neuralreg.options import resolve
from neuralreg.pair import Pair
from tests.shifts import inner, shifted

SMALL = replace(
    PRESETS["fast"], hidden=(32, 32), channels=8, omega=10.0, lattice_step=2, iterations=60, lr=2e-3
)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(("preset", "count"), [("paper", 55_654), ("paper-encoded", 60_726), ("fast", None)])
def test_parameter_counts(preset, count):
    found = parameters(make_field(PRESETS[preset], (16, 16, 16)))
    assert 55_000 <= found <= 65_000
    assert count is None or found == count


def spoil(field: CorrespondenceField) -> CorrespondenceField:
    """Away from the start, where much is zero."""
    torch.manual_seed(3)
    with torch.no_grad():
        for p in (*field.coarse.output_layer, *field.smoother.parameters()):
            p.add_(0.05 * torch.randn_like(p))
    return field


@pytest.mark.parametrize("grid", [(24, 20, 22), (40, 36)])
@pytest.mark.parametrize("preset", list(PRESETS))
def test_every_preset_starts_at_the_identity(grid, preset):
    field = make_field(replace(PRESETS[preset], residual=False), grid)
    assert dense_displacement(field, grid).abs().max() == 0


@pytest.mark.parametrize("residual", [True, False])
def test_gradients_reach_both_modules(residual):
    options = replace(SMALL, residual=residual)
    field = spoil(make_field(options, (12, 11, 10)))
    pair, _ = shifted((12, 11, 10))
    stage = make_stages(pair, replace(PRESETS["paper"], lncc_weight=1.0), torch.Generator())[0]
    lattice = stage.sampler.draw()
    displacement = lattice.displacement(field(lattice.coordinates()))
    losses = ncf.compare(stage, lattice, displacement, replace(PRESETS["paper"], lncc_weight=1.0))
    assert set(losses) == {"photometric", "ssim", "occupancy", "lncc"}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(field.parameters()), retain_graph=True)
        assert all(g.isfinite().all() and g.abs().max() > 0 for g in gradients), name


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("residual", [True, False])
def test_the_smoother_is_two_convolutions(ndim, residual):
    smoother = Smoother(ndim, 7, residual=residual).double()
    x = torch.randn(2, ndim, *(5, 6, 7)[:ndim], dtype=torch.float64)
    torch.testing.assert_close(smoother(x), x, rtol=0, atol=1e-12)
    for p in smoother.parameters():
        torch.nn.init.normal_(p)
    convolve = torch.nn.functional.conv2d if ndim == 2 else torch.nn.functional.conv3d
    hidden = convolve(x, smoother.spread, smoother.spread_bias, padding=1).clamp(min=0)
    expected = convolve(hidden, smoother.gather, smoother.gather_bias, padding=1)
    torch.testing.assert_close(smoother(x), expected + x if residual else expected)


def test_the_field_reads_its_lattice_between_the_points():
    field = spoil(make_field(SMALL, (9, 7, 5)))
    assert field.shape == (5, 4, 3)
    lattice = field.lattice().detach()
    with torch.no_grad():
        at_points = field(torch.tensor([[-1.0, -1.0, -1.0], [-0.5, 1.0, 0.0]]))
        between = field(torch.tensor([[-0.75, 1.0, 0.0], [-2.0, -1.0, -1.0]]))
    torch.testing.assert_close(at_points, torch.stack([lattice[0, :, 0, 0, 0], lattice[0, :, 1, 3, 1]]))
    torch.testing.assert_close(between[0], (lattice[0, :, 0, 3, 1] + lattice[0, :, 1, 3, 1]) / 2)
    torch.testing.assert_close(between[1], lattice[0, :, 0, 0, 0])
    x = torch.rand(30, 3) * 2 - 1
    torch.testing.assert_close(field(x).detach(), field.eval().requires_grad_(False)(x))


def test_the_kept_lattice_follows_the_parameters():
    field = spoil(make_field(SMALL, (9, 7)))
    x = torch.rand(30, 2) * 2 - 1
    with torch.no_grad():
        before = field(x)
        assert field._lattice_kept() is field._lattice_kept()
        field.smoother.gather_bias.add_(0.25)
        torch.testing.assert_close(field(x), before + 0.25)
        field.load_state_dict({name: 2 * value for name, value in field.state_dict().items()})
        assert not torch.equal(field(x), before + 0.25)


@pytest.mark.parametrize("grid", [(40, 36), (24, 20, 22)])
@pytest.mark.parametrize("changes", [{}, {"residual": False, "output": "position"}])
def test_a_known_shift_is_found(grid, changes):
    pair, truth = shifted(grid)
    field, history = fit(pair, replace(SMALL, **changes))
    error = (dense_displacement(field, grid) - truth).square().sum(0, keepdim=True).sqrt()
    assert inner(error).mean() < 0.3, "of 1.5 voxels"
    assert history[-1]["loss"] < history[30]["loss"]
    assert [h["scale"] for h in history] == [2.0] * 30 + [1.0] * 30


@pytest.mark.parametrize("preset", ["paper", "paper-encoded"])
def test_the_papers_losses_find_the_shift_too(preset):
    pair, truth = shifted((40, 36))
    field, history = fit(pair, replace(PRESETS[preset], iterations=80, hidden=(32, 32), octaves=0, lr=2e-3))
    error = (dense_displacement(field, pair.grid) - truth).square().sum(0, keepdim=True).sqrt()
    assert inner(error).mean() < 0.5, "of 1.5 voxels"
    parts = {"photometric", "ssim", "occupancy"}
    assert parts | {"iteration", "loss", "similarity", "regulariser", "scale"} == set(history[0])
    assert history[-1]["similarity"] == pytest.approx(-sum(history[-1][part] for part in parts), abs=1e-5)
    assert all(history[-1][part] < history[0][part] for part in parts)


def test_masks_given_are_an_occupancy():
    """Images without any contrast: only the masks can tell."""
    grid = (32, 30)
    distance = torch.stack(torch.meshgrid(*[torch.arange(float(n)) - n / 2 for n in grid], indexing="ij"))
    moving_mask = (distance.square().sum(0).sqrt() < 8).float()[None, None]
    fixed_mask = moving_mask.roll(2, 2)
    flat = torch.full_like(fixed_mask, 0.5)
    pair = Pair(flat, flat, torch.eye(2, 3), fixed_mask, moving_mask)
    options = replace(SMALL, occupancy="mask", occupancy_loss="dice", occupancy_weight=1.0, lncc_weight=0.0)
    field, history = fit(pair, replace(options, diffusion_weight=0.2))
    assert history[-1]["occupancy"] < 0.1 * history[0]["occupancy"] + 0.01
    warped = kernels.warp(moving_mask, dense_displacement(field, grid)[None])
    assert (warped - fixed_mask).abs().mean() < 0.3 * (moving_mask - fixed_mask).abs().mean()
    with pytest.raises(InputError, match="needs both masks"):
        fit(replace(pair, moving_mask=None), options)


def test_masked_voxels_do_not_count():
    pair, _ = shifted((30, 28))
    mask = torch.zeros_like(pair.fixed)
    mask[:, :, :, :10] = 1
    spoiled = pair.fixed.clone()
    spoiled[:, :, :, 17:] = torch.rand_like(spoiled[:, :, :, 17:])  # beyond the reach of the mask's windows
    options = replace(
        SMALL, iterations=3, scales=(1,), photometric_weight=1.0, ssim_weight=1.0, ssim_window=7, stride=1
    )
    first, second = (
        [h["loss"] for h in fit(Pair(fixed, pair.moving, pair.voxel_affine, mask), options)[1]]
        for fixed in (pair.fixed, spoiled)
    )
    assert first == pytest.approx(second, abs=1e-6)
    unmasked = [h["loss"] for h in fit(Pair(spoiled, pair.moving, pair.voxel_affine), options)[1]]
    assert first != pytest.approx(unmasked, abs=1e-6)


def test_what_lies_outside_the_moving_image_does_not_count():
    """The moving image shows the first half of what the fixed one shows, so its points there match and are all."""
    fixed = torch.rand(1, 1, 20, 12)
    pair = Pair(fixed, fixed[:, :, :10].clone(), torch.eye(2, 3))
    _, history = fit(pair, replace(PRESETS["paper"], iterations=1, ssim_weight=0.0))
    # Otsu's threshold differs between an image and its half
    assert history[0]["photometric"] == pytest.approx(0, abs=1e-6)
    _, history = fit(pair, replace(PRESETS["paper"], iterations=1, occupancy_threshold=0.5))
    assert history[0]["occupancy"] == pytest.approx(0, abs=1e-6)


def test_a_seed_repeats_and_another_differs():
    pair, _ = shifted((16, 16, 16))
    options = replace(SMALL, iterations=4, scales=(1,), stride=2)
    losses = [[h["loss"] for h in fit(pair, options, seed=seed)[1]] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("changes", [{}, {"octaves": 3, "activation": "relu", "residual": False}])
@pytest.mark.parametrize("grid", [(9, 7, 8), (9, 7)])
def test_a_described_field_loads_and_says_the_same(grid, changes, tmp_path):
    field = spoil(make_field(replace(SMALL, **changes), grid))
    torch.save(field.describe(), tmp_path / "field.pt")
    loaded = load_field(torch.load(tmp_path / "field.pt", weights_only=True))
    assert isinstance(loaded, CorrespondenceField)
    x = torch.rand(7, len(grid)) * 2 - 1
    assert torch.equal(loaded(x), field(x))
    both = Composed(field, HashMLP(ndim=len(grid), levels=2, base=2, finest=4, hidden=(8,)))
    assert torch.equal(load_field(both.describe())(x), both(x))
    with pytest.raises(ValueError, match="kind 'spline'"):
        load_field(field.describe() | {"kind": "spline"})


def test_a_scale_without_room_for_a_lattice_is_left_out():
    pair, _ = shifted((16, 5, 16))
    assert [
        s.sampler.scale for s in make_stages(pair, replace(SMALL, scales=(4, 2, 1)), torch.Generator())
    ] == [2, 1]
    with pytest.raises(InputError, match="needs 2 an axis"):
        make_stages(pair, replace(SMALL, stride=4), torch.Generator())


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("activation", "cosine", "relu, sine"),
        ("output", "velocity", "displacement, position"),
        ("photometric", "lncc", "l1, mse, ncc, nmi, mind"),
        ("occupancy", "bright", "brighter, darker, mask"),
        ("occupancy_loss", "iou", "l1, bce, dice"),
        ("channels", 0, "channels"),
        ("ssim_window", 0, "ssim_window"),
        ("octaves", -1, "octaves"),
        ("lncc_weight", -1.0, "lncc_weight"),
        ("lncc_weight", 0.0, "must be above 0"),
        ("smoother_lr", 0.0, "smoother_lr"),
        ("final_lr", 2.0, "final_lr"),
        ("hidden", "300", "widths of 1 to 256"),
        ("scales", "0,1", "scales"),
        ("occupancy_softness", 0.0, "occupancy_softness"),
    ],
)
def test_bad_options_are_told_in_one_line(name, value, words):
    with pytest.raises(InputError, match=words) as caught:
        resolve(PRESETS, "fast", {name: value}, "ncf")
    assert "\n" not in str(caught.value)


def test_too_few_channels_without_the_residual_path_are_told():
    pair, _ = shifted((16, 16))
    with pytest.raises(InputError, match="at least 4 channels without the residual path"):
        fit(pair, replace(SMALL, residual=False, channels=3))


def test_positions_learn_the_identity_first():
    options = replace(SMALL, output="position")
    field = make_field(options, (20, 20))
    x = torch.rand(200, 2) * 2 - 1
    before = field.coarse(x).abs().mean()
    learn_identity(field.coarse, options, torch.Generator().manual_seed(0), None)
    assert field.coarse(x).abs().mean() < 0.05 < 0.4 < before


def test_registers_from_the_command_line(tmp_path):
    from tests.small import FAST, blobs, call, save

    fixed, moving = save(tmp_path / "f.nii.gz", blobs(shift=1.0)), save(tmp_path / "m.nii.gz", blobs())
    outputs = ["--transform-out", tmp_path / "t.nii.gz", "--field-out", tmp_path / "f.pt"]
    done = call("register", "--fixed", fixed, "--moving", moving, "--method", "ncf", *FAST, *outputs)
    assert done.exit_code == 0, done.stderr
    assert "ncf, preset fast" in done.stdout
    assert "parameters" in done.stdout
    saved = torch.load(tmp_path / "f.pt", weights_only=True)
    assert saved["method"] == "ncf"
    assert 55_000 < parameters(load_field(saved["field"])) < 65_000
    wrong = call(
        "register", "--fixed", fixed, "--moving", moving, "--method", "ncf", "--preset", "slow", *outputs
    )
    assert wrong.exit_code == 2
    assert all(name in wrong.stderr for name in PRESETS)


def test_the_real_lung_pair(data_folder, tmp_path):
    """TRE 4.66 mm before; a fifth of the iterations of the default, which reaches 1.60."""
    import json

    import numpy as np

    from neuralreg import register
    from neuralreg.landmarks import read_landmarks
    from neuralreg.metrics import tre

    folder = data_folder / "lung_ct_elastix"
    shift = json.loads((folder / "prealign.json").read_text())["translation_fixed_to_moving_lps_mm"]
    initial = np.eye(4)
    initial[:3, 3] = np.multiply(shift, (-1, -1, 1))
    images = [str(folder / f"{which}_ct.nii.gz") for which in ("fixed", "moving")]
    options = {"initial_transform": initial, "window": (-1000, 500), "iterations": 30, "max_points": 50_000}
    found = register(*images, "ncf", **options)
    fixed, moving = read_landmarks(folder / "landmarks.csv")
    error = tre(found.transform.transform_points(fixed, "LPS"), moving)["mean"]
    assert error < 2.2
    assert found.summary["folds_percent"] < 0.05
