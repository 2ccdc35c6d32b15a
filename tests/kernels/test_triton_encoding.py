"""What only the triton backend's encodings have: blocks of points, smoothstep, fixed-point sums.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import fourier_encode
from neuralreg.kernels.backends import registry
from neuralreg.kernels.backends.reference.encoding import hash_encode as reference
from neuralreg.kernels.spec import HashGrid

from .common import On, assert_near, assert_relative, leaf, serving
from .test_encoding import points, table_for, with_gradients

ON = serving("hash_encode", "triton")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)
GRID = HashGrid(levels=3, features=3, base=3, finest=70, log2_table_size=8)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few points a program and few programs, as many points have them."""
    from neuralreg.kernels.backends import triton_encoding

    monkeypatch.setattr(triton_encoding, "TILE", 64)
    monkeypatch.setattr(triton_encoding, "PROGRAMS", 2)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def smooth(spec: HashGrid) -> HashGrid:
    return HashGrid(*[getattr(spec, name) for name in list(spec.__dict__)[:-1]], interpolation="smoothstep")


def grid_call(
    on: On, x: Tensor, table: Tensor, spec: HashGrid, want: tuple[bool, bool] = (True, True)
) -> list[Tensor]:
    """Value and gradients by the backend's functions."""
    from neuralreg.kernels.backends import triton_encoding

    flags = spec.interpolation == "smoothstep"
    x, table = x.to(on.device), table.to(on.device)
    arguments = (x, table, list(spec.resolutions), 1 << spec.log2_table_size, flags)
    value = triton_encoding.hash_encode_forward(*arguments)
    grad = upstream(value)
    return [t.cpu() for t in (value, *triton_encoding.hash_encode_backward(grad, *arguments, *want))]


def upstream(value: Tensor) -> Tensor:
    steps = torch.linspace(-1, 2, value.numel(), dtype=torch.float64, device=value.device)
    return steps.view_as(value).to(value.dtype)


def expected_call(x: Tensor, table: Tensor, spec: HashGrid) -> list[Tensor]:
    p, t = leaf(x.double()), leaf(table.double())
    value = reference(p, t, spec)
    return [value.detach(), *torch.autograd.grad(value, (p, t), upstream(value.detach()))]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("count", [1, 31, 33])
@pytest.mark.usefixtures("small_blocks")
def test_smoothstep(on: On, ndim: int, count: int) -> None:
    spec = smooth(GRID)
    x, table = points(count, ndim, spec, 1.2), table_for(spec, ndim)
    for one, other in zip(grid_call(on, x, table, spec), expected_call(x, table, spec), strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("want", [(True, False), (False, True), (False, False)])
def test_only_what_is_wanted(on: On, want: tuple[bool, bool]) -> None:
    x, table = points(9, 3, GRID), table_for(GRID, 3)
    expected = expected_call(x, table, GRID)
    for one, other, wanted in zip(grid_call(on, x, table, GRID, want)[1:], expected[1:], want, strict=True):
        if wanted:
            assert_near(one, other, 1e-11)
        else:
            assert one.numel() == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.usefixtures("small_blocks")
def test_fourier_over_many_blocks(on: On) -> None:
    x, matrix = torch.randn(45, 3, dtype=torch.float64), torch.randn(3, 70, dtype=torch.float64)
    expected = with_gradients(On("reference", "cpu"), fourier_encode, x, matrix)
    for one, other in zip(with_gradients(on, fourier_encode, x, matrix), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("deterministic")
def test_fixed_point_sums_have_no_order(on: On, dtype: torch.dtype) -> None:
    """The same points in another order give the same bits; the sums of floats do not."""
    spec = HashGrid(levels=2, features=2, base=2, finest=40, log2_table_size=4)
    x, table = points(300, 3, spec).to(dtype), table_for(spec, 3, dtype)
    from neuralreg.kernels.backends import triton_encoding

    def gradient(order: Tensor) -> Tensor:
        call = (list(spec.resolutions), 16, False, False, True)
        grad = upstream(torch.empty(300, 4, dtype=dtype))[order]
        arguments = (t.to(on.device) for t in (grad, x[order], table))
        return triton_encoding.hash_encode_backward(*arguments, *call)[1].cpu()

    straight, shuffled = gradient(torch.arange(300)), gradient(torch.randperm(300))
    assert torch.equal(straight, shuffled)
    assert_relative(
        straight, expected_call(x, table, spec)[2], 1e-12 if dtype == torch.float64 else 2 * 40 * 6e-8
    )


@pytest.mark.parametrize("on", ON)
@pytest.mark.usefixtures("deterministic")
def test_fixed_point_sums_say_what_they_cannot_hold(on: On) -> None:
    from neuralreg.kernels.backends import triton_encoding

    x, table = points(5, 3, GRID), table_for(GRID, 3)
    for bad, all_nan in ((math.nan, True), (math.inf, True), (0.0, False)):
        grad = torch.zeros(5, 9, dtype=torch.float64)
        grad[2, 4] = bad
        call = (list(GRID.resolutions), 256, False, False, True)
        arguments = (t.to(on.device) for t in (grad, x, table))
        found = triton_encoding.hash_encode_backward(*arguments, *call)[1].cpu()
        assert bool(found.isnan().all()) if all_nan else torch.count_nonzero(found) == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types(on: On, dtype: torch.dtype) -> None:
    spec = HashGrid(levels=2, features=2, base=3, finest=8, log2_table_size=8)
    x, table = points(40, 3, spec).to(dtype), table_for(spec, 3, dtype)
    actual = grid_call(on, x, table, spec)
    assert all(one.dtype == dtype for one in actual)
    # the points are the rounded ones for both: what is left is rounding of the results and of the upstream gradient
    for one, other in zip(actual, expected_call(x, table, spec), strict=True):
        assert_relative(one, other, 4 * torch.finfo(dtype).eps)
