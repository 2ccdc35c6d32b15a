"""NePhi: codes, maps, losses, options and training on small images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.fields import load_field
from neuralreg.kernels import use_backend
from neuralreg.kernels.consistency import consistency_of_jets
from neuralreg.methods import nephi
from neuralreg.methods.nephi_losses import (
    code_prior,
    difference_inverse_consistency,
    diffusion,
    draw_points,
    draw_sample,
    gradient_inverse_consistency,
    pair_losses,
    regulariser_points,
    similarity_points,
)
from neuralreg.methods.nephi_options import PRESETS
from neuralreg.metrics import dice, folds_percent
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.two_way import CodedMap, TwoWayField
from tests.small_nephi import SMALL, batch_of, discs, random_maps, waken


def leaves(maps: tuple[CodedMap, CodedMap]) -> list[Tensor]:
    return [maps[0].latent, maps[0].volume, *maps[0].decoder.weights, *maps[1].decoder.weights]


@pytest.mark.parametrize("shape", [(24, 20), (16, 12, 14)])
def test_a_fresh_network_is_the_identity(shape: tuple[int, ...]) -> None:
    trainee = nephi.make_trainee(SMALL, shape, len(shape), 0)
    images = torch.rand(2, 1, *shape), torch.rand(2, 1, *shape)
    assert not trainee.displacement(*images).any()
    for maps in (trainee.module.maps(*codes) for codes in trainee.module.encode(*images)):
        assert all(not one(torch.rand(5, len(shape))).any() for one in maps)


@pytest.mark.parametrize("ndim", [2, 3])
def test_gradient_inverse_consistency_is_the_mean_square_of_the_composed_maps_derivative(ndim: int) -> None:
    maps = random_maps(ndim)
    x = torch.rand(7, ndim, dtype=torch.float64) * 1.6 - 0.8
    terms = []
    for first, second in (maps, maps[::-1]):
        with use_backend("reference"):

            def residual(p: Tensor, first: CodedMap = first, second: CodedMap = second) -> Tensor:
                u = first(p[None])
                return (u + second(p[None] + u))[0]

            jacobians = torch.stack([torch.autograd.functional.jacobian(residual, p) for p in x])
        terms.append(jacobians.square().mean())
    expected = torch.stack(terms).mean()
    torch.testing.assert_close(gradient_inverse_consistency(maps, x), expected, rtol=1e-9, atol=1e-12)
    near = difference_inverse_consistency(maps, x, delta=1e-6)
    torch.testing.assert_close(near, expected, rtol=1e-4, atol=1e-9)
    assert expected > 1e-3


def test_the_consistency_of_a_map_with_its_inverse_is_zero_and_of_two_shears_is_known() -> None:
    class Linear:
        def __init__(self, matrix: Tensor) -> None:
            self.matrix = matrix

        def __call__(self, x: Tensor) -> Tensor:
            return x @ self.matrix.T

        def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self(x), self.matrix.expand(len(x), -1, -1)

    x = torch.rand(6, 2, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    map_ = torch.tensor([[1.2, 0.3], [-0.1, 0.9]], dtype=torch.float64)
    exact = Linear(map_ - eye), Linear(torch.linalg.inv(map_) - eye)
    assert float(consistency_of_jets(exact[0].jet, exact[1].jet, x)) < 1e-28
    shear = torch.tensor([[0.0, 0.5], [0.0, 0.0]], dtype=torch.float64)
    twice: Any = (
        Linear(shear),
        Linear(shear),
    )  # the composition's derivative minus the identity has one entry of 1
    assert float(consistency_of_jets(twice[0].jet, twice[1].jet, x)) == pytest.approx(1 / 4)
    assert float(diffusion(twice, x)) == pytest.approx(0.25 / 4)


@pytest.mark.parametrize(
    ("ndim", "changes"),
    [
        (2, {}),
        (3, {}),
        (2, {"derivative": "differences"}),
        (2, {"regulariser": "diffusion"}),
        (2, {"sampler": "lattice", "similarity": "lncc", "windows": (3,), "strides": (2,)}),
        (2, {"sampler": "patches", "similarity": "lncc", "windows": (3,), "patches": 2, "patch_side": 5}),
    ],
)
def test_gradients_of_the_losses_are_those_of_the_reference(ndim: int, changes: dict[str, Any]) -> None:
    options = replace(SMALL, **changes)
    grid = (13, 11, 9)[:ndim]
    images = [torch.rand(1, 1, *grid, dtype=torch.float64) for _ in range(2)]
    pair = Pair(*images, torch.eye(ndim, ndim + 1, dtype=torch.float64))
    sample = draw_sample(options, grid, torch.Generator().manual_seed(1), torch.device("cpu"))
    points = draw_points(options, grid, torch.Generator().manual_seed(2), torch.device("cpu")).double()
    found = []
    for backend in ("cpu", "reference"):
        maps = random_maps(ndim)
        wanted = [leaf.requires_grad_() for leaf in leaves(maps)]
        sampled: Any = Doubled(sample)
        with use_backend(backend):
            losses = pair_losses(maps, pair, sampled, points, options)
            found.append((losses, torch.autograd.grad(losses["loss"], wanted)))
    for name, value in found[1][0].items():
        torch.testing.assert_close(found[0][0][name], value, rtol=1e-9, atol=1e-11)
    for ours, truth in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-7, atol=1e-10)


class Doubled:
    """A sample whose coordinates are float64, as the maps of the test are."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sample, name)

    def coordinates(self) -> Tensor:
        return self.sample.coordinates().double()


def test_the_prior_is_the_norm_of_the_codes_and_has_a_gradient_at_zero() -> None:
    latent = torch.tensor([3.0, 4.0])
    volume = torch.zeros(2, 2, 2, 2)
    volume[0] = 5.0
    assert float(code_prior(latent, volume, like=latent)) == pytest.approx(10.0)
    assert float(code_prior(None, None, like=latent)) == 0.0
    still = torch.zeros(3, requires_grad=True)
    code_prior(still, None, like=still).backward()
    assert still.grad is not None
    assert not still.grad.any()


def test_numbers_of_points_are_shares_of_the_voxels_within_bounds() -> None:
    paper = PRESETS["paper"]
    assert similarity_points(paper, (175, 175, 175)) == 100_000
    assert similarity_points(paper, (48, 64, 48)) == round(0.02 * 48 * 64 * 48)
    assert regulariser_points(paper, (175, 175, 175)) == 500
    assert regulariser_points(paper, (10, 10)) == 10


def test_the_same_generator_gives_the_same_losses_and_another_seed_other_points() -> None:
    trainee = nephi.make_trainee(SMALL, (16, 14), 2, 0)
    waken(trainee, 0.05)
    batch = batch_of((torch.rand(1, 1, 16, 14), torch.rand(1, 1, 16, 14)))
    values = [
        float(trainee.losses(batch, torch.Generator().manual_seed(seed))["loss"].detach())
        for seed in (1, 1, 2)
    ]
    assert values[0] == values[1] != values[2]


def test_a_batch_counts_as_the_mean_of_its_pairs() -> None:
    trainee = nephi.make_trainee(SMALL, (16, 14), 2, 0)
    waken(trainee, 0.05)
    pairs = [(torch.rand(1, 1, 16, 14), torch.rand(1, 1, 16, 14)) for _ in range(3)]
    whole = trainee.losses(batch_of(*pairs), torch.Generator().manual_seed(0))
    single = [trainee.losses(batch_of(pair), torch.Generator().manual_seed(0)) for pair in pairs]
    for name, value in whole.items():
        mean = torch.stack([losses[name] for losses in single]).mean()
        torch.testing.assert_close(value, mean, rtol=1e-5, atol=1e-6)


def test_training_on_discs_of_two_sizes_brings_them_onto_each_other_in_both_directions() -> None:
    shape = (32, 32)
    small, large = discs(shape, 7.0), discs(shape, 11.0)
    trainee = nephi.make_trainee(SMALL, shape, 2, 0)
    batch = batch_of((small[0], large[0]))
    optimiser = trainee.optimiser()
    for step in range(100):
        optimiser.zero_grad()
        trainee.losses(batch, torch.Generator().manual_seed(step))["loss"].backward()
        optimiser.step()
    field = nephi.predict(trainee, Pair(small[0], large[0], torch.eye(2, 3)))
    for one, target, source in ((field, small, large), (field.inverse, large, small)):
        u = nephi.dense_displacement(one, shape).detach()
        assert folds_percent(u) < 0.3
        moved = kernels.warp(source[1][None, None].float(), u[None], mode="nearest")
        before = dice(target[1], source[1])[1]
        assert dice(target[1], moved[0, 0].long())[1] > before + 0.25


def test_the_trainee_comes_back_from_its_description() -> None:
    trainee = nephi.make_trainee(SMALL, (16, 14), 2, 3)
    waken(trainee, 0.05)
    again = nephi.trainee_from(trainee.describe())
    images = torch.rand(1, 1, 16, 14), torch.rand(1, 1, 16, 14)
    expected = trainee.displacement(*images)
    assert expected.any()
    assert torch.equal(again.displacement(*images), expected)
    assert again.options == trainee.options
    rates = [trainee.rate(done) for done in (0.0, 0.5, 1.0)]
    assert rates == [1.0, 1.0, 1.0]
    falling = nephi.make_trainee(replace(SMALL, final_lr=0.1), (16, 14), 2, 3)
    assert [falling.rate(done) for done in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.1])


def test_the_field_of_a_registration_loads_again() -> None:
    there, back = (one.decoder for one in random_maps(3, dtype=torch.float32))
    field = TwoWayField(there, back, torch.randn(3), torch.randn(2, 4, 3, 2))
    again = load_field(field.describe())
    x = torch.rand(9, 3) * 2 - 1
    assert field(x).any()
    assert torch.equal(again(x), field(x))
    assert torch.equal(again.inverse(x), field.inverse(x))
    for ours, theirs in zip(again.jet(x), field.jet(x), strict=True):
        assert torch.equal(ours, theirs)


def test_images_of_another_shape_are_resampled_for_the_network_and_answered_on_their_own_grid() -> None:
    trainee = nephi.make_trainee(SMALL, (16, 12), 2, 0)
    waken(trainee, 0.05)
    pair = Pair(
        torch.rand(1, 1, 33, 27), torch.rand(1, 1, 20, 31), torch.tensor([[0.6, 0.1, 0.5], [0, 1.1, 1]])
    )
    field = nephi.predict(trainee, pair)
    assert nephi.dense_displacement(field, pair.grid).shape == (2, 33, 27)
    inverse = nephi.dense_inverse(field, pair)
    assert inverse.shape == (2, 20, 31)
    # moving voxel j belongs to fixed voxel phi_inv(A^-1 j), so A of that is j + d
    j = torch.tensor([7.0, 11.0])
    linear, shift = pair.voxel_affine[:, :2], pair.voxel_affine[:, 2]
    voxel = torch.linalg.solve(linear, j - shift)
    half = torch.tensor([16.0, 13.0])
    with torch.no_grad():
        back = voxel + field.inverse((voxel / half - 1)[None])[0] * half
    torch.testing.assert_close(inverse[:, 7, 11], linear @ back + shift - j, rtol=1e-4, atol=1e-4)


def test_codes_half_way_give_a_field_between() -> None:
    there, back = (one.decoder for one in random_maps(2, dtype=torch.float32))
    first, second = (TwoWayField(there, back, torch.randn(3), torch.randn(2, 4, 3)) for _ in range(2))
    x = torch.rand(9, 2) * 2 - 1
    for share, end in ((0.0, first), (1.0, second)):
        torch.testing.assert_close(nephi.between(first, second, share)(x), end(x), rtol=1e-4, atol=1e-6)
    middle = nephi.between(first, second, 0.5)
    torch.testing.assert_close(middle.latent, (first.latent + second.latent) / 2)
    others = [one.decoder for one in random_maps(2, seed=1, dtype=torch.float32)]
    with pytest.raises(ValueError, match="different decoders"):
        nephi.between(first, TwoWayField(*others, torch.randn(3), torch.randn(2, 4, 3)), 0.5)


def test_fewer_points_where_memory_is_short() -> None:
    options = nephi.with_at_most(PRESETS["paper"], (100, 100, 100), 1000)
    assert similarity_points(options, (100, 100, 100)) == 500
    patches = replace(SMALL, sampler="patches", similarity="lncc", patches=8, patch_side=6)
    assert nephi.with_at_most(patches, (40, 40, 40), 2 * 3 * 6**3).patches == 3
    with pytest.raises(InputError, match="a patch takes 216"):
        nephi.with_at_most(patches, (40, 40, 40), 100)
    staged = replace(
        SMALL, sampler="lattice", refine_scales=(2, 1), refine_strides=(1, 2), refine_windows=(3,)
    )
    fewer = nephi.with_at_most(staged, (40, 40), 2 * 400)
    assert (fewer.refine_scales, fewer.refine_strides, fewer.refine_windows) == ((2, 1), (1, 2), (3,))
    fewer = nephi.with_at_most(staged, (40, 40), 2 * 399)  # neither stage has room for its lattice
    assert (fewer.refine_scales, fewer.refine_strides) == ((2, 1), (0, 0))
    assert nephi.with_at_most(fewer, (40, 40), 2 * 399) == fewer


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("similarity", "lncc", "sampler=patches or lattice"),
        ("similarity", "ssd", "similarity must be one of"),
        ("norm", "layer", "norm must be one of"),
        ("refined", "all", "refined must be one of"),
        ("hidden", "64,512", "widths of 1 to 256"),
        ("point_share", "0", "point_share"),
        ("local_block", "9", "local_block must name one of 6 blocks"),
        ("regulariser_bounds", "9,3", "regulariser_bounds"),
        ("scales", "2,1", "belong to sampler patches or lattice"),
        ("refine_scales", "2,1", "belong to sampler patches or lattice"),
        ("refine_points", "-1", "refine_points must be at least 0"),
        ("refine_weight", "-2", "refine_weight at least 0 or -1"),
        ("refine_windows", "0", "refine_windows must be one or more numbers of at least 1"),
        ("colour", "red", "has no option 'colour'"),
    ],
)
def test_options_that_cannot_be(option: str, value: str, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        resolve(PRESETS, "paper", {option: value}, "nephi")
    assert "\n" not in str(caught.value)
