"""The CUDA kernels of the encodings, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import hash_encode
from neuralreg.kernels.backends import cuda_encoding
from neuralreg.kernels.backends.reference import encoding as reference
from neuralreg.kernels.spec import HashGrid

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import assert_near, assert_relative, leaf, strided
from .test_encoding import SPECS, points, table_for


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def smooth(spec: HashGrid) -> HashGrid:
    return HashGrid(
        spec.levels, spec.features, spec.base, spec.finest, spec.log2_table_size, interpolation="smoothstep"
    )


HASH = {**SPECS, **{f"{name}, smooth": smooth(SPECS[name]) for name in ("dense", "both", "hashed")}}


def weights_of(value: Tensor) -> Tensor:
    return torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)


def hashed(x: Tensor, table: Tensor, spec: HashGrid) -> list[Tensor]:
    """The value and both gradients of its weighted sum, by the CUDA kernels."""
    options = (list(spec.resolutions), 1 << spec.log2_table_size, spec.interpolation == "smoothstep")
    value = cuda_encoding.hash_encode_forward(x, table, *options)
    grads = cuda_encoding.hash_encode_backward(weights_of(value), x, table, *options, True, True)
    return [value, *grads]


def expected(x: Tensor, table: Tensor, spec: HashGrid) -> list[Tensor]:
    inputs = leaf(x.double()), leaf(table.double())
    value = reference.hash_encode(*inputs, spec)
    return [value.detach(), *torch.autograd.grad(value, inputs, weights_of(value))]


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", HASH)
def test_grids(name: str, ndim: int) -> None:
    spec = HASH[name]
    x, table = points(101, ndim, spec, 1.3), table_for(spec, ndim)
    for one, other in zip(hashed(x, table, spec), expected(x, table, spec), strict=True):
        assert_relative(one, other, 1e-11)


@pytest.mark.parametrize("name", ["dense", "hashed", "both", "both, smooth"])
def test_float32(name: str) -> None:
    spec = HASH[name]
    x, table = points(101, 3, spec).float(), table_for(spec, 3, torch.float32)
    for one, other in zip(hashed(x, table, spec), expected(x, table, spec), strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 3e-5)  # rounding of x times 70 vertices


def test_half_types_and_strides() -> None:
    spec = HASH["both"]
    x, table = points(40, 3, spec), table_for(spec, 3)
    for point, entries in zip(strided(x), strided(table), strict=True):
        for one, other in zip(hashed(point, entries, spec), expected(x, table, spec), strict=True):
            assert_relative(one, other, 1e-11)
    half = hashed(x.bfloat16(), table.bfloat16(), spec)
    assert all(part.dtype == torch.bfloat16 for part in half)
    assert_relative(half[0], expected(x.bfloat16(), table.bfloat16(), spec)[0], 2**-8)


def test_a_table_that_begins_at_an_odd_place() -> None:
    spec = HASH["hashed"]
    x, table = points(20, 3, spec).float(), table_for(spec, 3, torch.float32)
    shifted = torch.empty(table.numel() + 1)[1:].view_as(table).copy_(table)
    assert shifted.data_ptr() % 16
    for one, other in zip(hashed(x, shifted, spec), hashed(x, table, spec), strict=True):
        assert_near(one, other, 1e-6)


@pytest.mark.parametrize("count", [0, 1, 255, 256, 257, 4097])
def test_any_number_of_points(count: int) -> None:
    spec = HashGrid(
        levels=2, features=2, base=3, finest=40, log2_table_size=13
    )  # one level on each side of 4096
    x, table = 2 * torch.rand(count, 2, dtype=torch.float64) - 1, table_for(spec, 2)
    for one, other in zip(hashed(x, table, spec), expected(x, table, spec), strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_coordinates_that_are_not_finite(bad: float) -> None:
    spec = HASH["both, smooth"]
    x, table = points(20, 3, spec), table_for(spec, 3)
    x[7, 1] = bad
    value, grad_x, grad_table = hashed(x, table, spec)
    x[7, 1] = 1.0 if bad > 0 else -1.0
    for one, other in zip((value, grad_table), expected(x, table, spec)[0::2], strict=True):
        assert_relative(one, other, 1e-11)
    assert grad_x.isfinite().all()
    assert grad_x[7, 1] == 0


@pytest.mark.parametrize("name", ["hashed", "both, smooth"])
def test_deterministic_sums(name: str, deterministic: None, kernels: Library) -> None:  # noqa: F811
    spec = HASH[name]
    x, table = points(301, 3, spec).float(), table_for(spec, 3, torch.float32)
    found = []
    for order in (0, 1, 2, 3):
        kernels.order(order)
        found.append(hashed(x, table, spec)[2])
    assert all(torch.equal(one, found[0]) for one in found)
    assert_relative(found[0], expected(x, table, spec)[2], 1e-5)
    double = hashed(x.double(), table.double(), spec)[2]
    assert_relative(double, expected(x, table, spec)[2], 1e-12)


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_deterministic_sums_of_any_size(size: float, deterministic: None) -> None:
    spec = HASH["dense"]
    x, table = points(50, 3, spec).float(), table_for(spec, 3, torch.float32)
    options = (list(spec.resolutions), 1 << spec.log2_table_size, False)
    grad = torch.randn(50, spec.width(3))
    _, unit = cuda_encoding.hash_encode_backward(grad, x, table, *options, False, True)
    _, scaled = cuda_encoding.hash_encode_backward(size * grad, x, table, *options, False, True)
    assert_near(scaled / size if size else scaled, unit if size else 0 * unit, 1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_deterministic_sums_that_are_not_finite(bad: float, deterministic: None) -> None:
    spec = HASH["dense"]
    x, table = points(9, 3, spec), table_for(spec, 3)
    options = (list(spec.resolutions), 1 << spec.log2_table_size, False)
    grad = torch.randn(9, spec.width(3), dtype=torch.float64)
    grad[4, 2] = bad
    _, grad_table = cuda_encoding.hash_encode_backward(grad, x, table, *options, False, True)
    assert grad_table.isnan().all()


def test_more_levels_than_a_launch_carries() -> None:
    spec = HashGrid(levels=33, base=2, finest=9, log2_table_size=4)
    with pytest.raises(RuntimeError, match="at most 32 levels"):
        hashed(torch.rand(2, 2), table_for(spec, 2, torch.float32), spec)


def fourier(x: Tensor, matrix: Tensor, scale: float) -> list[Tensor]:
    value = cuda_encoding.fourier_encode_forward(x, matrix, scale)
    return [
        value,
        *cuda_encoding.fourier_encode_backward(weights_of(value), x, matrix, scale, True, True),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 3, 1), (65, 2, 7), (130, 3, 40), (0, 3, 5), (70, 3, 129)], ids=str)
def test_fourier(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    count, ndim, frequencies = shape
    x = (2 * torch.rand(count, ndim) - 1).to(dtype)
    matrix = torch.randn(ndim, frequencies).to(dtype)
    inputs = leaf(x.double()), leaf(matrix.double())
    value = reference.fourier_encode(*inputs, 5.0)
    wanted = [value.detach(), *torch.autograd.grad(value, inputs, weights_of(value))]
    for one, other in zip(fourier(x, matrix, 5.0), wanted, strict=True):
        assert one.dtype == dtype
        assert_near(one, other, 1e-12 if dtype == torch.float64 else 1e-5)


def test_fourier_with_large_phases_and_bad_points() -> None:
    x, matrix = 2 * torch.rand(30, 3) - 1, 1e4 * torch.randn(3, 5)
    x[3, 0] = math.nan
    value = fourier(x, matrix, 1.0)[0]
    phase = (x[:, :, None] * matrix).sum(1)  # the rounding of the phase is that of float32
    others = torch.arange(30) != 3
    assert value[3].isnan().all()
    assert_near(value[others], torch.cat([phase.sin(), phase.cos()], 1)[others], 2e-2)


def test_fourier_gives_the_same_bits_in_any_order(kernels: Library) -> None:  # noqa: F811
    x, matrix = 2 * torch.rand(300, 3) - 1, torch.randn(3, 40)
    found = []
    for order in (0, 1, 2):
        kernels.order(order)
        found.append(fourier(x, matrix, 3.0))
    for other in found[1:]:
        for one, first in zip(other, found[0], strict=True):
            assert torch.equal(one, first)


def test_the_registered_op() -> None:
    spec = HASH["both, smooth"]
    x, table = leaf(points(9, 3, spec)), leaf(table_for(spec, 3))
    options = (list(spec.resolutions), 1 << spec.log2_table_size, True, "cuda")
    torch.library.opcheck(torch.ops.neuralreg.hash_encode_forward, (x, table, *options))
    value = hash_encode(x, table, spec, backend="cuda")
    assert torch.equal(value, hashed(x.detach(), table.detach(), spec)[0])
