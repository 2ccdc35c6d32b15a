"""hash_encode and fourier_encode on every backend, against encodings written point by point."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import fourier_encode, hash_encode
from neuralreg.kernels.backends.registry import BackendError
from neuralreg.kernels.spec import HashGrid

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided

HASH, FOURIER = serving("hash_encode"), serving("fourier_encode")

SPECS = {
    "dense": HashGrid(levels=3, features=2, base=2, finest=7, log2_table_size=12),
    "hashed": HashGrid(levels=3, features=4, base=9, finest=40, log2_table_size=6),
    "both": HashGrid(levels=5, features=3, base=3, finest=70, log2_table_size=8),
    "one level": HashGrid(levels=1, features=1, base=5, finest=5, log2_table_size=10),
    "default": HashGrid(),
    "wide": HashGrid(levels=2, features=8, base=4, finest=300, log2_table_size=9),
}


def encode_one(x: list[float], table: np.ndarray, spec: HashGrid) -> np.ndarray:
    """Features of one point, with the resolutions and 32-bit hashes written out."""
    features: list[np.ndarray] = []
    offset = 0
    size = 2**spec.log2_table_size
    for level in range(spec.levels):
        share = level / (spec.levels - 1) if spec.levels > 1 else 0.0
        r = math.floor(spec.base * (spec.finest / spec.base) ** share + 1e-6)
        p = [(min(max(-1.0 if math.isnan(c) else c, -1.0), 1.0) + 1) / 2 * (r - 1) for c in x]
        cell = [min(math.floor(c), r - 2) for c in p]
        value = np.zeros(table.shape[1])
        for step in itertools.product((0, 1), repeat=len(x)):
            vertex = [c + s for c, s in zip(cell, step, strict=True)]
            weight = math.prod(1 - abs(c - v) for c, v in zip(p, vertex, strict=True))
            if r ** len(x) <= size:
                index = sum(v * r ** (len(x) - 1 - axis) for axis, v in enumerate(vertex))
            else:
                index = 0
                for v, prime in zip(vertex, (1, 2654435761, 805459861), strict=False):
                    index ^= (v * prime) % 2**32
                index %= size
            value += weight * table[offset + index]
        features.append(value)
        offset += min(r ** len(x), size)
    assert offset == table.shape[0]
    return np.concatenate(features)


def encode(x: Tensor, table: Tensor, spec: HashGrid) -> Tensor:
    rows = [encode_one(p, table.double().numpy(), spec) for p in x.double().tolist()]
    return torch.from_numpy(np.stack(rows))


def table_for(spec: HashGrid, ndim: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(sum(spec.entries(ndim)), spec.features, dtype=dtype)


def points(count: int, ndim: int, spec: HashGrid, reach: float = 1.0) -> Tensor:
    """Random points at least a hundredth of a cell from the planes of every level, where slopes jump."""
    x = reach * (2 * torch.rand(40 * count, ndim, dtype=torch.float64) - 1)
    clear = torch.ones(len(x), dtype=torch.bool)
    for r in set(spec.resolutions):
        p = (x + 1) / 2 * (r - 1)
        clear &= ((p - p.round()).abs() > 0.01).all(1)
    kept = x[clear][:count]
    assert len(kept) == count
    return kept


def with_gradients(on: On, function: Any, x: Tensor, weights: Tensor, *args: Any) -> list[Tensor]:
    """The value, and the gradients of a weighted sum of it to x and the table or matrix."""
    p, w = leaf(x), leaf(weights)
    value = on(function, p, w, *args)
    factors = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    (value * factors.to(value.dtype)).sum().backward()
    return [value.detach(), p.grad, w.grad]


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", SPECS)
def test_hash(on: On, ndim: int, name: str) -> None:
    spec = SPECS[name]
    table = table_for(spec, ndim)
    x = 2.6 * torch.rand(23, ndim, dtype=torch.float64) - 1.3
    assert_near(on(hash_encode, x, table, spec), encode(x, table, spec), 1e-11)


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_hash_on_corners_edges_and_vertices(on: On, ndim: int, dtype: torch.dtype) -> None:
    spec = HashGrid(levels=2, features=2, base=3, finest=9, log2_table_size=5)
    table = table_for(spec, ndim, dtype)
    x = torch.tensor(list(itertools.product([-1.0, -0.75, 0.0, 0.25, 1.0], repeat=ndim)), dtype=dtype)
    bound = 1e-12 if dtype == torch.float64 else 5e-7
    assert_near(on(hash_encode, x, table, spec), encode(x, table, spec), bound)


@pytest.mark.parametrize("on", HASH)
def test_points_outside_have_the_border_value_and_no_slope(on: On) -> None:
    spec = SPECS["both"]
    table = table_for(spec, 3)
    x = torch.tensor([[-1.5, 0.1, 0.3], [0.2, 7.0, -0.4], [0.3, 0.1, -1e30], [1.0, -1.0, 0.5]]).double()
    value, grad_x, _ = with_gradients(on, hash_encode, x, table, spec)
    inner = with_gradients(on, hash_encode, x.clamp(-1, 1), table, spec)
    assert_near(value, inner[0], 1e-12)
    outside = x.abs() > 1
    assert torch.count_nonzero(grad_x[outside]) == 0
    assert torch.count_nonzero(grad_x[~outside]) == int((~outside).sum())
    assert_near(grad_x[~outside], inner[1][~outside], 1e-12)


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_coordinates_that_are_no_coordinates(on: On, dtype: torch.dtype) -> None:
    spec = SPECS["both"]
    table = table_for(spec, 3, dtype)
    x = torch.zeros(6, 3, dtype=dtype) + 0.3
    x[0, 0], x[1, 1], x[2, 2], x[3, 0] = math.nan, math.nan, math.inf, -math.inf
    x[4] = math.nan
    value, grad_x, grad_table = with_gradients(on, hash_encode, x, table, spec)
    # float32 positions near 70 are right to 1e-5 of a cell
    assert_near(value, encode(x, table, spec), 1e-11 if dtype == torch.float64 else 5e-5)
    assert bool(grad_x.isfinite().all())
    assert bool(grad_table.isfinite().all())
    assert torch.count_nonzero(grad_x[~x.isfinite()]) == 0


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["dense", "hashed", "both", "one level"])
def test_hash_gradcheck(on: On, ndim: int, name: str) -> None:
    spec = SPECS[name]
    x = points(7, ndim, spec)
    x[0, 0] = -1.7
    x[1, ndim - 1] = 1.2
    inputs = leaf(x), leaf(table_for(spec, ndim))
    assert torch.autograd.gradcheck(lambda p, t: on(hash_encode, p, t, spec), inputs, fast_mode=True)


@pytest.mark.parametrize("on", serving("hash_encode", "reference"))
def test_second_derivatives_of_the_reference(on: On) -> None:
    spec = SPECS["both"]
    inputs = leaf(points(3, 3, spec)), leaf(table_for(spec, 3))
    assert torch.autograd.gradgradcheck(lambda p, t: on(hash_encode, p, t, spec), inputs, fast_mode=True)
    matrix = torch.randn(3, 4, dtype=torch.float64)
    inputs = leaf(points(3, 3, spec)), leaf(matrix)
    assert torch.autograd.gradgradcheck(lambda p, b: on(fourier_encode, p, b), inputs)


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", ["default", "hashed", "wide"])
def test_hash_float32(on: On, ndim: int, name: str) -> None:
    spec = SPECS[name]
    x, table = points(1003, ndim, spec).float(), table_for(spec, ndim, torch.float32)
    expected = with_gradients(On("reference", "cpu"), hash_encode, x.double(), table.double(), spec)
    actual = with_gradients(on, hash_encode, x, table, spec)
    finest = max(spec.resolutions)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        # a position in the finest level is right to finest * 6e-8 cells, weights and their sums inherit that
        assert_relative(one, other, 2 * finest * 6e-8 + 2e-6)


@pytest.mark.parametrize("on", FOURIER)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("frequencies", [1, 5, 64])
@pytest.mark.parametrize("scale", [math.pi, 1.0, 2 * math.pi])
def test_fourier(on: On, ndim: int, frequencies: int, scale: float) -> None:
    x = (3 * torch.rand(29, ndim, dtype=torch.float64) - 1.5).numpy()
    matrix = 5 * torch.randn(ndim, frequencies, dtype=torch.float64).numpy()
    phase = scale * x @ matrix
    expected = torch.from_numpy(np.concatenate([np.sin(phase), np.cos(phase)], 1))
    assert_near(on(fourier_encode, torch.from_numpy(x), torch.from_numpy(matrix), scale), expected, 1e-12)


@pytest.mark.parametrize("on", FOURIER)
@pytest.mark.parametrize("ndim", [2, 3])
def test_fourier_gradcheck(on: On, ndim: int) -> None:
    inputs = leaf(torch.randn(5, ndim).double()), leaf(torch.randn(ndim, 6).double())
    assert torch.autograd.gradcheck(lambda p, b: on(fourier_encode, p, b, 1.7), inputs)


@pytest.mark.parametrize("on", FOURIER)
def test_fourier_float32(on: On) -> None:
    x, matrix = 2 * torch.rand(1001, 3) - 1, 4 * torch.randn(3, 37)
    expected = with_gradients(On("reference", "cpu"), fourier_encode, x.double(), matrix.double())
    for one, other in zip(with_gradients(on, fourier_encode, x, matrix), expected, strict=True):
        # phases reach about 50: their float32 rounding is 4e-6 and passes through sine and cosine unchanged
        assert_relative(one, other, 1e-5)


@pytest.mark.parametrize("on", FOURIER)
def test_fourier_of_what_is_no_coordinate_is_nan(on: On) -> None:
    x = torch.tensor([[0.1, math.nan], [math.inf, 0.2], [0.3, 0.4]])
    value = on(fourier_encode, x, torch.randn(2, 9))
    assert bool(value[:2].isnan().all())
    assert bool(value[2].isfinite().all())


@pytest.mark.parametrize("on", HASH)
def test_hash_strides(on: On) -> None:
    spec = SPECS["both"]
    x, table = points(11, 3, spec), table_for(spec, 3)
    expected = with_gradients(on, hash_encode, x, table, spec)
    for p, t in zip(strided(x), strided(table)[::-1], strict=True):
        for one, other in zip(with_gradients(on, hash_encode, p, t, spec), expected, strict=True):
            assert_near(one, other, 1e-12)


@pytest.mark.parametrize("on", FOURIER)
def test_fourier_strides(on: On) -> None:
    x, matrix = torch.randn(11, 3).double(), torch.randn(3, 7).double()
    expected = with_gradients(on, fourier_encode, x, matrix)
    for p, b in zip(strided(x), strided(matrix)[::-1], strict=True):
        for one, other in zip(with_gradients(on, fourier_encode, p, b), expected, strict=True):
            assert_near(one, other, 1e-12)


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("wanted", ["x", "table"])
def test_hash_gradient_to_one_input_only(on: On, wanted: str) -> None:
    spec = SPECS["both"]
    x, table = points(11, 3, spec), table_for(spec, 3)
    _, grad_x, grad_table = with_gradients(on, hash_encode, x, table, spec)
    p, t = (leaf(x), table) if wanted == "x" else (x, leaf(table))
    value = on(hash_encode, p, t, spec)
    (value * torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)).sum().backward()
    actual, expected = (p.grad, grad_x) if wanted == "x" else (t.grad, grad_table)
    assert_relative(actual, expected, 1e-12)


@pytest.mark.parametrize("on", HASH)
def test_no_points(on: On) -> None:
    spec, empty = SPECS["both"], torch.zeros(0, 3)
    table = table_for(spec, 3).float()
    value, grad_x, grad_table = with_gradients(on, hash_encode, empty, table, spec)
    assert value.shape == (0, spec.width(2))
    assert grad_x.shape == (0, 3)
    assert torch.count_nonzero(grad_table) == 0
    value, grad_x, grad_matrix = with_gradients(on, fourier_encode, empty, torch.randn(3, 5))
    assert value.shape == (0, 10)
    assert grad_x.shape == (0, 3)
    assert torch.count_nonzero(grad_matrix) == 0


@pytest.mark.parametrize("on", serving("hash_encode", "cpu"))
def test_same_bits_for_any_number_of_threads(on: On) -> None:
    spec = SPECS["both"]
    x, table = points(20011, 3, spec).float(), table_for(spec, 3, torch.float32)
    assert_same_for_any_threads(lambda: with_gradients(on, hash_encode, x, table, spec)[:2])
    matrix = torch.randn(3, 17)
    assert_same_for_any_threads(lambda: with_gradients(on, fourier_encode, x, matrix)[:2])


@pytest.mark.parametrize("on", serving("hash_encode", "cpu"))
def test_table_gradient_is_the_same_from_run_to_run(on: On) -> None:
    spec = SPECS["both"]
    x, table = points(20011, 3, spec).float(), table_for(spec, 3, torch.float32)
    first, again = (with_gradients(on, hash_encode, x, table, spec)[2] for _ in range(2))
    assert torch.equal(first, again)


def wrong_cases() -> dict[str, tuple[Any, tuple[Any, ...], str]]:
    spec = SPECS["both"]
    x, table, matrix = torch.rand(4, 3), torch.rand(sum(spec.entries(3)), 3), torch.rand(3, 5)
    return {
        "points on a grid": (hash_encode, (x[None], table, spec), "x"),
        "one coordinate": (hash_encode, (x[:, :1], table, spec), "x"),
        "integers": (hash_encode, (x.int(), table.int(), spec), "float"),
        "table of another spec": (hash_encode, (x, table[1:], spec), "table"),
        "features of another spec": (hash_encode, (x, table[:, 1:], spec), "table"),
        "table in double": (hash_encode, (x, table.double(), spec), "dtype"),
        "matrix": (fourier_encode, (x, matrix[1:]), "B"),
        "matrix in double": (fourier_encode, (x, matrix.double()), "dtype"),
        "vector": (fourier_encode, (x, matrix[:, 0]), "B"),
    }


@pytest.mark.parametrize("on", HASH)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    function, arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(function, *arguments)


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="abacus"):
        fourier_encode(torch.rand(4, 3), torch.rand(3, 5), backend="abacus")
