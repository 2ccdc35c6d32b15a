"""The plain-torch baseline computes what preset paper-displacement computes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench import plain_nir
from neuralreg.bench.plain_nir import plain_options
from neuralreg.errors import InputError
from neuralreg.images import Image, write_image
from neuralreg.losses import zero_rule_lncc
from neuralreg.methods import nir
from neuralreg.objective import sampled_similarity
from neuralreg.pair import Pair
from neuralreg.transforms import load_transform
from tests.small import blobs

SMALL = {
    "hidden": (16, 16),
    "frequencies": 8,
    "iterations": 30,
    "stride": 2,
    "lncc_window": 3,
    "dropout": 0.0,
}


def small_pair(grid: tuple[int, ...]) -> Pair:
    moving = torch.from_numpy(blobs(grid, seed=1))[None, None] / 200
    displacement = torch.zeros(1, len(grid), *grid)
    displacement[:, 0] = 1.5
    fixed = kernels.warp(moving, displacement, padding_mode="border")
    affine = torch.eye(len(grid), len(grid) + 1)
    affine[:, -1] = 0.25
    return Pair(fixed, moving, affine)


def copied(field: torch.nn.Module, options: nir.Options) -> torch.nn.Sequential:
    """The plain network with the parameters of our field."""
    network = plain_nir.make_network(len(field.matrix), options)
    network[0].matrix.copy_(field.matrix)
    linear = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    with torch.no_grad():
        for k, layer in enumerate(linear):
            layer.weight.copy_(field.weights[2 * k])
            layer.bias.copy_(field.weights[2 * k + 1])
    return network


@pytest.mark.parametrize("grid", [(25, 22), (17, 19, 16)])
def test_one_field_is_one_displacement_and_one_loss(grid):
    pair, options = small_pair(grid), plain_options(**SMALL)
    field = nir.make_field(options, len(grid))
    network = copied(field, options)
    ours = nir.dense_displacement(field, grid)
    torch.testing.assert_close(plain_nir.dense_displacement(network, grid), ours, atol=1e-4, rtol=1e-4)
    generator = torch.Generator().manual_seed(3)
    ((((sampler, window),), _),) = nir.make_stages(grid, options, generator, pair.device)
    drawn = sampler.draw()
    displacement = drawn.displacement(field(drawn.coordinates()))
    ((offset,), settings) = drawn.offset, {"window": window, "padding": "valid", "zero_rule": True}
    similarity = sampled_similarity(pair, drawn, displacement, **settings).detach()
    loss, plain = (value.detach() for value in plain_nir.loss_of(network, pair, options, offset))
    assert abs(float(similarity)) > 0.01
    assert float(plain) == pytest.approx(float(similarity), abs=1e-4)
    # The penalty counts cells here and lattice points there; away from the border they are the same.
    positions = plain_nir.lattice(grid, options.stride, offset)
    positions = positions + plain_nir.displace(network, positions, grid)
    assert float(loss) == pytest.approx(
        options.jacobian_weight * float(plain_nir.folding(positions.detach(), options.stride)) - float(plain),
        abs=1e-5,
    )


@pytest.mark.parametrize("shape", [(9, 7), (6, 7, 8)])
def test_folds_are_penalised_as_ours_are(shape):
    displacement = 1.5 * torch.randn(1, len(shape), *shape)
    identity = torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in shape), indexing="ij"), -1)
    positions = 3 * (identity + displacement[0].movedim(0, -1))
    determinant = kernels.jacobian_determinant(displacement)[0][tuple(slice(0, n - 1) for n in shape)]
    assert (determinant < 0).any()
    assert float(plain_nir.folding(positions, 3)) == pytest.approx(
        float((-determinant).relu().mean()), rel=1e-4
    )


def test_one_seed_is_one_start():
    options = plain_options()
    assert options == nir.PRESETS["paper-displacement"]
    torch.manual_seed(5)
    network = plain_nir.make_network(3, options).requires_grad_(False)
    torch.manual_seed(5)
    field = nir.make_field(options, 3).requires_grad_(False)
    torch.testing.assert_close(network[0].matrix, field.matrix)
    plain = [
        tensor
        for layer in network
        if isinstance(layer, torch.nn.Linear)
        for tensor in (layer.weight, layer.bias)
    ]
    for mine, theirs in zip(plain, field.weights, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_one_seed_is_one_fit():
    pair = small_pair((32, 28))
    options = replace(plain_options(**SMALL), iterations=40, stride=1, lncc_window=5, lr=3e-3, dropout=0.2)
    field, history = nir.fit(pair, options, seed=4)
    network, similarity = plain_nir.fit(pair, options, seed=4)
    assert similarity[-1] > similarity[0] + 0.1
    # The same draws of starts, offsets and windows; what is left is rounding and how the penalty counts the border.
    assert similarity == pytest.approx([record["similarity"] for record in history], abs=1e-3)
    inner = (slice(None), slice(6, -6), slice(6, -6))
    ours = nir.dense_displacement(field, pair.grid)[inner]
    plain = plain_nir.dense_displacement(network, pair.grid)[inner]
    assert float((ours - plain).abs().mean()) < 0.02


def test_the_command_writes_a_transform(tmp_path):
    affine = np.diag([2.0, 3, 2, 1])
    files = [tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"]
    for seed, file in enumerate(files):
        write_image(file, torch.from_numpy(blobs(seed=seed)), affine)
    out = tmp_path / "transform.nii.gz"
    words = ["hidden=8,8", "frequencies=4", "stride=1", "lncc_window=3"]
    plain_nir.main(files[0], files[1], out, None, "0,150", 2, words, 0, None)
    transform = load_transform(out)
    assert transform.fixed.same_grid(Image(torch.zeros(20, 18, 16), affine).geometry)
    assert float(transform.displacement.abs().max()) > 0


def test_empty_windows_count_by_their_difference():
    fixed, warped = torch.rand(2, 1, 1, 14, 13) + 0.1
    fixed[..., :6] = 0
    warped[..., 8:, :] = 0
    found = plain_nir.similarity_of(fixed, warped, 4, 0.0)
    assert float(found) == pytest.approx(float(zero_rule_lncc(fixed, warped, 4)), abs=1e-5)
    plain = kernels.lncc(fixed, warped, 4, padding="valid")
    assert abs(float(found) - float(plain)) > 0.01, "the rule matters here"
    draws = torch.stack([plain_nir.similarity_of(fixed, warped, 4, 0.5) for _ in range(120)])
    assert float(draws.std()) > 0.01
    assert float(draws.mean()) == pytest.approx(float(found), abs=0.02)


def test_its_gradient_is_exact_where_the_image_is_faint():
    fixed = torch.rand(1, 1, 40, 30, 24)
    fixed[:, :, 15:] *= 0.03  # behind bright planes, which prefix sums do not forget
    warped = 0.8 * fixed + 0.2 * fixed.roll(1, 2)

    def gradient(function: Callable[..., Tensor], *images: Tensor) -> Tensor:
        leaf = images[1].clone().requires_grad_()
        return torch.autograd.grad(function(images[0], leaf), leaf)[0]

    truth = gradient(lambda f, w: zero_rule_lncc(f, w, 5), fixed.double(), warped.double())
    found = gradient(lambda f, w: plain_nir.similarity_of(f, w, 5, 0.0), fixed, warped)
    assert float((found.double() - truth).norm() / truth.norm()) < 1e-5


def test_an_option_that_it_lacks_is_refused():
    with pytest.raises(InputError, match="diffusion_weight"):
        plain_options(diffusion_weight=1.0)
    with pytest.raises(InputError, match="encoding"):
        plain_options("fast")
