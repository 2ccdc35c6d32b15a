"""Labels through warp: the nearest one, and the interpolated vote."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import grid_sample, warp

from .common import On, assert_same_for_any_threads, leaf, serving, strided
from .sampling_oracle import identity, off_lattice, reflect

WARP = serving("warp")
PADDINGS = ["zeros", "border", "reflection"]
INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


def vote(labels: Tensor, points: Tensor, padding_mode: str) -> Tensor:
    """One point after the other, with a dictionary of sums."""
    out = torch.zeros([*labels.shape[:2], *points.shape[2:]], dtype=labels.dtype)
    sizes = labels.shape[2:]
    for b, c in itertools.product(range(labels.shape[0]), range(labels.shape[1])):
        for place in itertools.product(*map(range, points.shape[2:])):
            p = points[(b, slice(None), *place)].tolist()
            if padding_mode == "reflection":
                p = [reflect(x, 0, n - 1) for x, n in zip(p, sizes, strict=True)]
            if padding_mode != "zeros":
                p = [min(max(x, 0), n - 1) for x, n in zip(p, sizes, strict=True)]
            sums: dict[int, float] = {}
            for step in itertools.product((0, 1), repeat=len(p)):
                index = [math.floor(x) + s for x, s in zip(p, step, strict=True)]
                weight = math.prod(1 - abs(x - i) for x, i in zip(p, index, strict=True))
                inside = all(0 <= i < n for i, n in zip(index, sizes, strict=True))
                label = int(labels[(b, c, *index)]) if inside else 0
                sums[label] = sums.get(label, 0.0) + weight
            out[(b, c, *place)] = max(sorted(sums), key=lambda label: sums[label])
    return out


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("sizes", [[4, 5, 6], [7, 5], [1, 4, 3], [5, 1]], ids=str)
def test_vote(on: On, padding_mode: str, sizes: list[int]) -> None:
    labels = torch.randint(-2, 3, (2, 2, *sizes))
    points = off_lattice([2, *[4, 3, 5][: len(sizes)]], sizes, 2)
    found = on(warp, labels, points - identity([*points.shape[2:]]), None, "label", padding_mode)
    assert torch.equal(found, vote(labels, points, padding_mode))


@pytest.mark.parametrize("on", WARP)
def test_ties_go_to_the_smaller_label(on: On) -> None:
    labels = torch.tensor([[7, 3], [3, 7]])[None, None]
    half = torch.full((1, 2, 1, 1), 0.5)
    assert on(warp, labels, half, None, "label").item() == 3
    assert on(warp, -labels, half, None, "label").item() == -7
    # half of the cell lies outside and counts as label 0
    out = torch.tensor([-0.5, 0.0]).view(1, 2, 1, 1)
    assert on(warp, labels, out, None, "label").item() == 0
    assert on(warp, -labels, out, None, "label").item() == -7


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize(
    "dtype", [*INTEGERS, torch.bool, torch.float16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("mode", ["nearest", "label"])
def test_every_type_comes_back_as_it_is(on: On, dtype: torch.dtype, mode: str) -> None:
    """Whole voxels: a shift by indices, exact for the largest numbers of the type."""
    labels = torch.randint(0, 2, (1, 1, 5, 6, 7)).to(dtype)
    if dtype in INTEGERS:
        limits = torch.iinfo(dtype)
        labels = torch.where(labels == 0, limits.max, limits.max - 1).to(dtype)
        labels.view(-1)[::5] = limits.min
    shift = torch.zeros(1, 3, 5, 6, 7)
    shift[:, 2] = 1
    found = on(warp, labels, shift, None, mode, "border")
    assert found.dtype == dtype
    assert torch.equal(found, torch.cat([labels[..., 1:], labels[..., -1:]], -1))
    found = on(warp, labels, 0 * shift - 30, None, mode, "zeros")
    assert torch.equal(found, torch.zeros_like(labels))


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("padding_mode", PADDINGS)
@pytest.mark.parametrize("affine", [False, True])
def test_nearest_of_integers_is_that_of_floats(on: On, padding_mode: str, affine: bool) -> None:
    labels = torch.randint(0, 100, (2, 3, 6, 5, 7))
    displacement = 3 * torch.randn(2, 3, 4, 8, 5)
    matrix = torch.eye(3, 4).expand(2, -1, -1) + 0.1 * torch.randn(2, 3, 4) if affine else None
    expected = on(warp, labels.float(), displacement, matrix, "nearest", padding_mode)
    assert torch.equal(on(warp, labels, displacement, matrix, "nearest", padding_mode), expected.long())


@pytest.mark.parametrize("on", WARP)
@pytest.mark.parametrize("mode", ["nearest", "label"])
def test_strides_empty_batches_and_wild_coordinates(on: On, mode: str) -> None:
    labels = torch.randint(0, 5, (2, 2, 4, 5, 6))
    displacement = torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    expected = on(warp, labels, displacement, None, mode)
    for u in strided(displacement):
        assert torch.equal(
            on(warp, labels.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0), u, None, mode),
            expected,
        )
    assert on(warp, labels[:0], displacement[:0], None, mode).shape == (0, 2, 4, 5, 6)
    for value in (math.nan, math.inf, -math.inf, 1e30, -3e9):
        wild = torch.full_like(displacement, value)
        assert torch.count_nonzero(on(warp, labels, wild, None, mode)) == 0
        edge = on(warp, labels + 1, wild, None, mode, "border")
        assert bool((edge >= 1).all())


@pytest.mark.parametrize("on", WARP)
def test_labels_have_no_gradient(on: On) -> None:
    found = on(warp, leaf(torch.rand(1, 1, 4, 5)), leaf(torch.rand(1, 2, 4, 5)), None, "label")
    assert not found.requires_grad
    found = on(warp, torch.ones(1, 1, 4, 5, dtype=torch.int32), leaf(torch.rand(1, 2, 4, 5)), None, "nearest")
    assert not found.requires_grad


@pytest.mark.parametrize("on", WARP)
def test_what_labels_cannot_do(on: On) -> None:
    labels, displacement = torch.ones(1, 1, 4, 5, dtype=torch.int64), torch.zeros(1, 2, 4, 5)
    with pytest.raises(ValueError, match="floating point"):
        on(warp, labels, displacement)
    with pytest.raises(ValueError, match="complex64"):
        on(warp, labels.to(torch.complex64), displacement, None, "label")
    with pytest.raises(ValueError, match="label"):
        on(grid_sample, labels.float(), torch.zeros(1, 4, 5, 2), "label")


@pytest.mark.parametrize("on", serving("warp", "cpu"))
def test_labels_are_the_same_for_any_number_of_threads(on: On) -> None:
    labels, u = torch.randint(0, 9, (2, 1, 31, 30, 37)), 3 * torch.randn(2, 3, 31, 30, 37)
    assert_same_for_any_threads(lambda: [on(warp, labels, u, None, mode) for mode in ("nearest", "label")])
