"""Where the lattice lies: its coordinates, picks, displacement and affine all name the same points."""

from __future__ import annotations

import pytest
import torch

from neuralreg import kernels
from neuralreg.pair import Pair
from neuralreg.samplers import (
    Downsize,
    Patches,
    RandomPoints,
    axis_coordinates,
    lattice_shape,
    shrunken_grid,
    smallest_stride,
)


def ramps(grid: tuple[int, ...]) -> torch.Tensor:
    """(1, ndim, *grid): channel k holds the index along axis k."""
    return torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in grid], indexing="ij"))[None]


def draws(grid, stride, scale=1, seed=0):
    return Downsize(grid, stride, torch.Generator().manual_seed(seed), torch.device("cpu"), scale)


def test_axis_coordinates_put_the_outer_centres_at_one():
    assert axis_coordinates(torch.arange(5.0), 5).tolist() == [-1, -0.5, 0, 0.5, 1]
    assert axis_coordinates(torch.zeros(1), 1).tolist() == [0]


@pytest.mark.parametrize("grid", [(11, 7), (9, 12, 10), (1, 8)])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_pick_and_coordinates_name_the_same_voxels(grid, stride):
    lattice = draws(grid, stride, seed=3).draw()
    picked = lattice.pick(ramps(grid)).flatten(2)[0].T
    expected = torch.stack([axis_coordinates(picked[:, axis], size) for axis, size in enumerate(grid)], dim=1)
    torch.testing.assert_close(lattice.coordinates(), expected, rtol=0, atol=1e-6)


def test_every_offset_keeps_the_shape_and_reaches_every_voxel():
    sampler = draws((10, 7, 8), 3)
    seen = torch.zeros(10, 7, 8, dtype=torch.bool)
    for _ in range(300):
        lattice = sampler.draw()
        assert lattice.shape == (3, 2, 2)
        seen[torch.meshgrid(*lattice.voxels(), indexing="ij")] = True
    assert seen[:9, :6, :6].all(), "a voxel that the lattice can hold was never drawn"


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("ndim", [2, 3])
def test_a_known_map_is_the_same_at_every_scale(ndim, scale):
    """A ramp read through lattice affine and displacement is the ramp at the point that the field names."""
    grid = (14, 13, 15)[:ndim]
    matrix = torch.eye(ndim) + 0.1 * torch.rand(ndim, ndim, generator=torch.Generator().manual_seed(1))
    affine = torch.cat([0.5 * matrix, torch.full((ndim, 1), 4.0)], 1)
    image = ramps((18, 17, 16)[:ndim])
    full = Pair(ramps(grid)[:, :1], image[:, :1], affine)
    shrunken = full.shrink(scale)
    lattice = draws(grid, 2, scale).draw()
    half = torch.tensor([(n - 1) / 2 for n in grid])
    values = torch.full((len(lattice.coordinates()), ndim), 0.5) / half  # half a voxel of the full grid
    displacement = lattice.displacement(values)
    read = kernels.warp(shrunken.moving, displacement, lattice.affine(shrunken.voxel_affine))
    points = (lattice.coordinates() + 1) * half + 0.5
    expected = (points @ affine[:, :-1].T + affine[:, -1])[:, 0].view(lattice.shape)
    torch.testing.assert_close(read[0, 0], expected, rtol=0, atol=2e-4)
    fixed_index = ((lattice.coordinates() + 1) * half)[:, 0].view(lattice.shape)
    torch.testing.assert_close(lattice.pick(shrunken.fixed)[0, 0], fixed_index, rtol=0, atol=1e-4)


def test_shrink_drops_what_is_left_over_and_thresholds_masks():
    image = torch.arange(7.0).repeat(5, 1)[None, None]
    mask = torch.zeros(1, 1, 5, 7)
    mask[..., :3] = 1
    pair = Pair(image, image, torch.eye(2, 3), mask, mask).shrink(2)
    assert pair.grid == (2, 3)
    assert pair.fixed[0, 0, 0].tolist() == [0.5, 2.5, 4.5]
    assert pair.fixed_mask[0, 0, 0].tolist() == [1, 1, 0]
    assert torch.equal(pair.fixed_mask, pair.moving_mask)


def test_shrink_keeps_an_axis_that_is_too_short():
    image = torch.rand(1, 1, 1, 8)
    pair = Pair(image, image, torch.eye(2, 3)).shrink(4)
    assert pair.grid == (1, 2) == shrunken_grid((1, 8), 4)
    torch.testing.assert_close(pair.voxel_affine, torch.eye(2, 3))


def test_smallest_stride_is_the_smallest():
    assert smallest_stride((10, 10), 100) == 1
    assert smallest_stride((160, 192, 224), 300_000) == 3
    stride = smallest_stride((33, 40, 51), 2000)
    count = [torch.tensor(lattice_shape((33, 40, 51), s)).prod() for s in (stride - 1, stride)]
    assert count[1] <= 2000 < count[0]


def reads_as_named(sample, pair, full_affine):
    """A moving ramp read through a sample's half-voxel displacement is the ramp where the field's coordinates say."""
    grid = pair.grid
    half = torch.tensor([(n - 1) / 2 for n in grid])
    scale = sample.scale
    shrunken = pair.shrink(scale)
    x = sample.coordinates()
    values = torch.full((len(x), len(grid)), 0.5) / half
    read = sample.warp(shrunken.moving, sample.displacement(values), shrunken.voxel_affine)
    points = (x + 1) * half
    expected = ((points + 0.5) @ full_affine[:, :-1].T + full_affine[:, -1])[:, 0]
    torch.testing.assert_close(read.flatten(), expected, rtol=0, atol=5e-4)
    torch.testing.assert_close(sample.pick(shrunken.fixed).flatten(), points[:, 0], rtol=0, atol=5e-4)


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("kind", ["none", "voxels", "anywhere", "patches", "random"])
def test_every_sampler_reads_where_its_coordinates_say(kind, ndim, scale):
    grid = (20, 21, 16)[:ndim]
    affine = torch.cat([0.5 * torch.eye(ndim), torch.full((ndim, 1), 4.0)], 1)
    pair = Pair(ramps(grid)[:, :1], ramps((20, 20, 20)[:ndim])[:, :1], affine)
    where = (torch.Generator().manual_seed(2), torch.device("cpu"), scale)
    sampler = {
        "patches": lambda: Patches(grid, 3, 5, *where),
        "random": lambda: RandomPoints(grid, 50, *where),
    }.get(kind, lambda: Downsize(grid, 3, *where, jitter=kind))()
    for _ in range(3):
        reads_as_named(sampler.draw(), pair, affine)


def test_jitters_stay_in_their_cells_and_reach_every_voxel():
    where = (torch.Generator().manual_seed(0), torch.device("cpu"))
    whole = Downsize((9, 6), 3, *where, jitter="voxels")
    seen = torch.zeros(9, 6)
    for _ in range(200):
        sample = whole.draw()
        assert not sample.regular
        x = sample.coordinates()
        voxels = ((x + 1) * torch.tensor([4.0, 2.5])).round().long()
        assert torch.equal(voxels // 3, torch.cartesian_prod(torch.arange(3), torch.arange(2)))
        seen[voxels[:, 0], voxels[:, 1]] = 1
    assert seen.all()
    continuous = Downsize((9, 6), 3, *where, jitter="anywhere").draw().coordinates()
    assert continuous.abs().max() <= 1
    assert (((continuous + 1) * torch.tensor([4.0, 2.5])) % 1).std() > 0.1


def test_random_points_are_distinct_voxels():
    sampler = RandomPoints((7, 5, 6), 100, torch.Generator().manual_seed(0), torch.device("cpu"))
    seen = set()
    for _ in range(40):
        voxels = sampler.draw().voxels
        assert len(voxels.unique(dim=0)) == 100
        assert torch.equal(voxels, voxels.round())
        seen |= {tuple(v) for v in voxels.tolist()}
    assert len(seen) == 210
    everything = RandomPoints((4, 3), 100, torch.Generator(), torch.device("cpu")).draw()
    assert len(everything.voxels.unique(dim=0)) == 12


def test_patches_are_cubes_inside_the_grid():
    sampler = Patches((12, 4, 9), 5, 6, torch.Generator().manual_seed(0), torch.device("cpu"))
    assert sampler.shape == (6, 4, 6)
    image = ramps((12, 4, 9))
    for _ in range(20):
        picked = sampler.draw().pick(image)
        assert picked.shape == (5, 3, 6, 4, 6)
        assert (picked[:, 0].diff(dim=1) == 1).all()
    with pytest.raises(ValueError, match="jitter"):
        Downsize((4, 4), 2, torch.Generator(), torch.device("cpu"), jitter="wild")
