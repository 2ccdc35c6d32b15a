"""The CUDA kernels of refine and table_adam, run on the CPU by tests/cuda_on_cpu, against torch's Adam."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import refine, refine_state, refine_step, table_adam

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import On, assert_near, strided
from .test_optim import start
from .test_refine import images, loop

CUDA = On("cuda", "cpu")
# The last has several tiles along every axis.
SIZES = [[9, 8, 11], [13, 12], [1, 6, 5], [5, 1, 40], [1, 20], [1, 1, 1], [17, 9, 33]]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("amsgrad", [True, False])
def test_equals_a_loop_with_torchs_adam(sizes: list[int], amsgrad: bool) -> None:
    steps = 2 if max(sizes) == 33 else 4
    u, fixed, moving = images(sizes, channels=1 + amsgrad)
    before = u.clone()
    actual = CUDA(refine, u, fixed, moving, steps, 0.1, 5, 0.7, amsgrad)
    expected, _ = loop(u, fixed, moving, steps, 5, 0.7, amsgrad=amsgrad)
    assert_near(actual, expected, 1e-10)
    if max(sizes) > 1:
        assert float((actual - u).abs().max()) > 0.05
    assert torch.equal(u, before)


def test_options_reach_the_loop() -> None:
    u, fixed, moving = images([7, 8, 6], batch=1)
    options: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}
    actual = CUDA(refine, u, fixed, moving, 3, window=(3, 4, 7), regularisation=0.0, **options)
    assert_near(actual, loop(u, fixed, moving, 3, (3, 4, 7), 0.0, **options)[0], 1e-10)
    assert torch.equal(CUDA(refine, u, fixed, moving, 0), u)
    smooth = CUDA(refine, u, 0 * fixed, moving, 2, regularisation=2.0)  # the diffusion alone
    assert_near(smooth, loop(u, 0 * fixed, moving, 2, 9, 2.0)[0], 1e-10)


def test_steps_one_by_one_with_energies_and_a_changing_rate() -> None:
    u, fixed, moving = images([8, 7, 9])
    state = refine_state(u, fixed, moving, window=5, backend="cuda")
    tensors = (state.displacement, state.mean, state.square, state.largest, state.step, state.work)
    addresses = [tensor.data_ptr() for tensor in tensors]
    found = [refine_step(state) for _ in range(3)]
    expected, history = loop(u, fixed, moving, 3, 5)
    for one, other in zip(found, history, strict=True):
        assert one.dtype == torch.float64
        assert_near(one, other, 1e-12)
    assert_near(state.displacement, expected, 1e-10)
    assert state.step.tolist() == [3]
    tensors = (state.displacement, state.mean, state.square, state.largest, state.step, state.work)
    assert [tensor.data_ptr() for tensor in tensors] == addresses
    state.lr = 0.0
    refine_step(state)
    assert_near(state.displacement, expected, 1e-10)
    assert state.step.tolist() == [4]


def test_float32() -> None:
    # As in test_refine: off the lattice, where gradients do not jump, all but a few keep clear of a turn.
    u, fixed, moving = images([12, 13, 14], batch=1)
    u = torch.randint(-16, 16, u.shape) / 16 + 1 / 32
    actual = CUDA(refine, u.float(), fixed.float(), moving.float(), 3)
    expected, _ = loop(u.double(), fixed.float().double(), moving.float().double(), 3)
    assert actual.dtype == torch.float32
    error = (actual.double() - expected).abs()
    assert float(error.quantile(0.99)) < 1e-4
    assert float(error.max()) < 0.1


def test_strides_and_empty_batches() -> None:
    inputs = images([6, 5, 7])
    expected = CUDA(refine, *inputs, 2, window=3)
    for u, fixed, moving in zip(*map(strided, inputs), strict=True):
        assert torch.equal(CUDA(refine, u, fixed, moving, 2, window=3), expected)
    assert CUDA(refine, *[x[:0] for x in inputs], 2).shape == (0, 3, 6, 5, 7)
    state = refine_state(*[x[:0] for x in inputs], backend="cuda")
    assert refine_step(state).shape == (0,)
    assert state.step.tolist() == [1]


def test_what_is_not_finite_stays_where_it_is() -> None:
    u, fixed, moving = images([6, 7, 30])
    clean = CUDA(refine, u, fixed, moving, 2, window=3)
    moving[0, 0, 3, 3, 3] = float("nan")
    u[0, 1, 5, 6, 29] = float("nan")
    spoilt = CUDA(refine, u, fixed, moving, 2, window=3)
    assert bool(spoilt[0].isnan().any())
    assert bool(spoilt[0, ..., 12:24].isfinite().all())
    assert torch.equal(spoilt[1], clean[1])
    far = CUDA(refine, 1e30 * u, fixed, moving, 2, window=3)  # reads nothing but zeros
    assert bool(far[1].isfinite().all())


def test_same_bits_for_any_order_of_threads_and_blocks(kernels: Library) -> None:  # noqa: F811
    u, fixed, moving = images([17, 9, 33], batch=1, dtype=torch.float32)

    def compute() -> list[Tensor]:
        state = refine_state(u, fixed, moving, window=5, backend="cuda")
        return [refine_step(state), refine_step(state), state.displacement, state.square]

    kernels.order(0)
    expected = compute()
    for order in (1, 2):
        kernels.order(order)
        for one, other in zip(compute(), expected, strict=True):
            assert torch.equal(one, other)


def test_the_registered_op() -> None:
    state = refine_state(*images([4, 5, 6], batch=1), window=3, backend="cuda")
    arguments = (
        *(state.displacement, state.fixed, state.moving),
        *(state.mean, state.square, state.largest, state.step, state.work),
        *([3, 3, 3], 1.0, 0.1, [0.9, 0.999], 1e-8, True, "cuda"),
    )
    torch.library.opcheck(torch.ops.neuralreg.refine_step, arguments)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_table_adam_is_adam_where_every_row_is_touched(dtype: torch.dtype, bound: float) -> None:
    table = torch.randn(300, 3, dtype=dtype)
    dense = torch.nn.Parameter(table.double())
    adam = torch.optim.Adam([dense], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    state = start(table)
    for _ in range(4):
        grad = torch.randn(300, 3, dtype=dtype)
        dense.grad = grad.double()
        adam.step()
        table_adam(table, grad, *state, lr=0.1, betas=(0.8, 0.95), eps=1e-3, backend="cuda")
        assert not grad.any()
    assert_near(table, dense.detach(), bound)
    assert bool((state[2] == 4).all())


def test_rows_without_a_gradient_stay_and_count_for_themselves() -> None:
    tables = [torch.randn(1030, 2, dtype=torch.float64)] * 2
    tables = [table.clone() for table in tables]
    states = [start(table) for table in tables]
    for _ in range(3):
        grad = torch.randn(1030, 2, dtype=torch.float64) * (torch.rand(1030, 1) < 0.4)
        grad[7, 0] = 0  # one feature of a row is enough
        for table, state, backend in zip(tables, states, ("cuda", "reference"), strict=True):
            table_adam(table, grad.clone(), *state, lr=0.1, backend=backend)
    assert_near(tables[0], tables[1], 1e-13)
    for one, other in zip(states[0], states[1], strict=True):
        assert_near(one, other, 1e-13)
    assert set(states[0][2].tolist()) == {0, 1, 2, 3}


def test_nan_in_a_gradient_spoils_its_row_alone() -> None:
    table = torch.zeros(4, 2)
    grad = torch.tensor([[1.0, 1], [float("nan"), 0], [0, 0], [2, 2]])
    table_adam(table, grad, *start(table), lr=0.1, backend="cuda")
    assert table.isnan().any(1).tolist() == [False, True, False, False]
    empty = torch.zeros(0, 2)
    table_adam(empty, empty.clone(), *start(empty), lr=0.1, backend="cuda")
