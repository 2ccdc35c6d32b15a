"""The triton backend's Adam, on fields and on tables, in tiles.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuralreg.kernels import refine, refine_state, refine_step, table_adam
from neuralreg.kernels.backends import registry

from .common import On, assert_near, serving, strided
from .test_refine import images, loop

ON = serving("refine", "triton")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few voxels and few rows a program, as large fields and tables have them."""
    from neuralreg.kernels.backends import triton_adam, triton_refine

    monkeypatch.setattr(triton_refine, "TILE", 64)
    monkeypatch.setattr(triton_adam, "TILE", 16)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("sizes", "amsgrad"), [([5, 4, 6], True), ([7, 9], False), ([1, 6, 5], False), ([1, 1], True)], ids=str
)
@pytest.mark.usefixtures("small_tiles")
def test_equals_a_loop_with_torchs_adam(on: On, sizes: list[int], amsgrad: bool) -> None:
    u, fixed, moving = images(sizes, channels=1 + amsgrad)
    options: dict[str, Any] = {"lr": 0.07, "betas": (0.8, 0.95), "eps": 1e-3, "amsgrad": amsgrad}
    actual = on(refine, u, fixed, moving, 3, window=3, regularisation=0.7, **options)
    assert_near(actual, loop(u, fixed, moving, 3, 3, 0.7, **options)[0], 1e-10)
    assert torch.equal(actual, on(refine, u, fixed, moving, 3, window=3, regularisation=0.7, **options))


@pytest.mark.parametrize("on", ON)
def test_energies_a_changing_rate_and_no_first_beta(on: On) -> None:
    inputs = [x.to(on.device) for x in images([5, 4, 6])]
    state = refine_state(*inputs, window=3, betas=(0.0, 0.999), backend=on.backend)
    found = [refine_step(state).cpu() for _ in range(2)]
    expected, history = loop(*(x.cpu() for x in inputs), 2, 3, betas=(0.0, 0.999))
    for one, other in zip(found, history, strict=True):
        assert one.dtype == torch.float64
        assert_near(one, other, 1e-12)
    state.lr = 0.0
    refine_step(state)
    assert_near(state.displacement.cpu(), expected, 1e-10)
    assert state.step.tolist() == [3]


@pytest.mark.parametrize("on", ON)
def test_float32_strides_nothing_and_nan(on: On) -> None:
    u, fixed, moving = images([5, 6, 4])
    u = torch.randint(-16, 16, u.shape) / 16 + 1 / 32  # off the lattice, where gradients do not jump
    expected = on(refine, u.double(), fixed.float().double(), moving.float().double(), 2, window=3)
    actual = on(refine, u.float(), fixed.float(), moving.float(), 2, window=3)
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().quantile(0.99)) < 1e-4
    v, f, m = (strided(x)[0] for x in (u.float(), fixed.float(), moving.float()))
    assert torch.equal(on(refine, v, f, m, 2, window=3), actual)
    assert on(refine, u[:0].float(), fixed[:0].float(), moving[:0].float(), 1).shape == (0, 3, 5, 6, 4)
    spoilt = moving.float().clone()
    spoilt[0, 0, 2, 2, 2] = float("nan")
    found = on(refine, u.float(), fixed.float(), spoilt, 2, window=3)
    assert bool(found[0].isnan().any())
    assert torch.equal(found[1], actual[1])


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("features", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.usefixtures("small_tiles")
def test_table_adam(on: On, features: int, dtype: torch.dtype) -> None:
    rows = 13
    tensors = [torch.randn(rows, features, dtype=torch.float64).to(dtype) for _ in range(4)]
    tensors[1] *= torch.rand(rows, 1).to(dtype) < 0.6  # half of the rows have no gradient
    tensors[1][4, 0], tensors[1][7] = float("nan"), 0
    tensors[3].abs_()
    steps = 3 * torch.arange(rows, dtype=torch.int32)
    found = []
    for kind, backend in ((dtype, on.backend), (torch.float64, "reference")):
        moved = [t.to(kind).to(on.device, copy=True) for t in (*tensors,)]
        count = steps.clone().to(on.device)
        for _ in range(2):
            table_adam(*moved, count, lr=0.03, betas=(0.9, 0.99), eps=1e-9, backend=backend)
            moved[1].copy_(tensors[1].flip(0))
        found.append([*moved, count])
    assert torch.equal(found[0][4], found[1][4])
    for one, other in zip(found[0][:4], found[1][:4], strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert_near(
            one.nan_to_num().cpu(), other.nan_to_num().cpu(), 1e-12 if dtype == torch.float64 else 1e-5
        )
