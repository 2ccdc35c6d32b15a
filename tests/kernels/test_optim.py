"""Adam for feature tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import TableAdam, table_adam

from .common import On, assert_near, assert_same_for_any_threads, serving

ON = serving("table_adam")


def start(table: Tensor) -> list[Tensor]:
    return [torch.zeros_like(table), torch.zeros_like(table), torch.zeros(len(table), dtype=torch.int32)]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-6)])
def test_is_adam_where_every_row_is_touched(on: On, dtype: torch.dtype, bound: float) -> None:
    table = torch.randn(37, 3, dtype=dtype)
    dense = torch.nn.Parameter(table.double())
    adam = torch.optim.Adam([dense], lr=0.1, betas=(0.8, 0.95), eps=1e-3)
    state = start(table)
    for _ in range(5):
        grad = torch.randn(37, 3, dtype=dtype)
        dense.grad = grad.double()
        adam.step()
        table_adam(table, grad, *state, lr=0.1, betas=(0.8, 0.95), eps=1e-3, backend=on.backend)
        assert not grad.any()
    assert_near(table, dense.detach(), bound)
    assert bool((state[2] == 5).all())


@pytest.mark.parametrize("on", ON)
def test_untouched_rows_stay_and_count_for_themselves(on: On) -> None:
    table = torch.randn(6, 2, dtype=torch.float64)
    before, state = table.clone(), start(table)
    rows = [[0, 1], [1, 4], [1]]
    for touched in rows:
        grad = torch.zeros_like(table)
        grad[touched, 1] = 1.0  # one feature of the row is enough
        table_adam(table, grad, *state, lr=0.1, backend=on.backend)
    assert state[2].tolist() == [1, 3, 0, 0, 1, 0]
    assert torch.equal(table[[2, 3, 5]], before[[2, 3, 5]])
    assert torch.equal(table[:, 0], before[:, 0])
    # the first step of Adam is lr times the sign, whenever it comes
    assert_near(before[[0, 4], 1] - table[[0, 4], 1], torch.full((2,), 0.1, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("on", ON)
def test_nan_in_a_gradient_spoils_its_row_alone(on: On) -> None:
    table = torch.zeros(4, 2)
    grad = torch.tensor([[1.0, 1], [float("nan"), 0], [0, 0], [2, 2]])
    table_adam(table, grad, *start(table), lr=0.1, backend=on.backend)
    assert table.isnan().any(1).tolist() == [False, True, False, False]


def test_same_bits_for_any_threads() -> None:
    table, grad = torch.randn(40_000, 2), torch.randn(40_000, 2).relu()

    def compute() -> list[Tensor]:
        copies = [table.clone(), grad.clone(), *start(table)]
        table_adam(*copies, lr=0.1)
        return copies

    assert_same_for_any_threads(compute)


def test_optimiser() -> None:
    table = torch.nn.Parameter(torch.randn(20, 2))
    expected, grad = table.detach().clone(), torch.randn(20, 2)
    state = start(expected)
    optimiser = TableAdam([table], lr=0.05)
    for _ in range(3):
        table.grad = grad.clone()
        optimiser.step()
        table_adam(expected, grad.clone(), *state, lr=0.05)
        assert not table.grad.any()
    assert torch.equal(table.detach(), expected)
    with pytest.raises(ValueError, match="betas"):
        TableAdam([table], betas=(1.0, 0.9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grad": torch.zeros(5, 3)}, "grad must be like table"),
        ({"mean": torch.zeros(5, 2).double()}, "mean must be like table"),
        ({"steps": torch.zeros(5)}, "int32"),
        ({"table": torch.zeros(2, 5).T}, "contiguous"),
    ],
)
def test_wrong_arguments(change: dict[str, Tensor], message: str) -> None:
    names = ("table", "grad", "mean", "square", "steps")
    given = dict(zip(names, [torch.zeros(5, 2), torch.zeros(5, 2), *start(torch.zeros(5, 2))], strict=True))
    with pytest.raises(ValueError, match=message):
        table_adam(**{**given, **change}, lr=0.1)
