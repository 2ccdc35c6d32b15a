"""Encoded points kept between forward and backward: the same gradients as encoding again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import field, field_jet
from neuralreg.kernels.field import LARGE_TABLE
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid

from .common import leaf

GRID = HashGrid(levels=3, features=2, base=3, finest=20, log2_table_size=8)
SPECS = {
    "3-D": FieldSpec(encoding=GRID, hidden=(16, 16)),
    "2-D": FieldSpec(ndim=2, encoding=GRID, hidden=(9,), out=2, activation="sine", omega=(5.0,)),
    "latents": FieldSpec(encoding=GRID, hidden=(16,), latent=2, latent_volume=3),
}


def gradients(name: str, count: int, jet: bool, recompute: bool, threads: int = 2) -> list[Tensor]:
    torch.manual_seed(0)
    spec = SPECS[name]
    x = leaf(2 * torch.rand(count, spec.ndim, dtype=torch.float64) - 1)
    params = [leaf(torch.randn(shape, dtype=torch.float64) / 4) for shape in spec.parameter_shapes()]
    given = {}
    if spec.latent:
        given = {
            "latent": leaf(torch.randn(spec.latent).double()),
            "volume": leaf(torch.randn(3, 4, 5, 6).double()),
        }
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        if jet:
            results = field_jet(x, params, spec, recompute=recompute, backend="cpu", **given)
        else:
            results = (field(x, params, spec, recompute=recompute, backend="cpu", **given),)
        loss = sum(
            ((r * torch.linspace(0, 1, r.numel()).view_as(r)).sin().sum() for r in results), x.new_zeros(())
        )
        return list(torch.autograd.grad(loss, [x, *params, *given.values()]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("jet", [False, True])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [0, 1, 95, 1333])
def test_kept_is_as_recomputed(name: str, count: int, jet: bool) -> None:
    for found, wanted in zip(
        gradients(name, count, jet, False), gradients(name, count, jet, True), strict=True
    ):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("jet", [False, True])
def test_kept_by_other_threads(jet: bool) -> None:
    """What one number of threads has kept is read by another in the same places."""
    spec = SPECS["3-D"]
    torch.manual_seed(0)
    x = 2 * torch.rand(1500, 3, dtype=torch.float64) - 1
    params = [leaf(torch.randn(shape, dtype=torch.float64) / 4) for shape in spec.parameter_shapes()]
    found = []
    before = torch.get_num_threads()
    try:
        for forward, backward in ((1, 1), (3, 2), (1, 3)):
            torch.set_num_threads(forward)
            run = field_jet if jet else field
            results = run(x, params, spec, recompute=False, backend="cpu")
            loss = torch.cat([r.flatten() for r in (results if jet else (results,))]).sin().sum()
            torch.set_num_threads(backward)
            found.append(torch.autograd.grad(loss, params))
    finally:
        torch.set_num_threads(before)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_large_tables_are_kept_by_themselves() -> None:
    """Unasked, memory is spent where a table outgrows the cache and a gradient is wanted, and nowhere else."""

    def kept(spec: FieldSpec, wanted: bool) -> int:
        params = [torch.zeros(shape).requires_grad_(wanted) for shape in spec.parameter_shapes()]
        y = field(torch.zeros(5, 3), params, spec, backend="cpu")
        return y.grad_fn.saved_tensors[1].numel() if wanted else 0  # type: ignore[union-attr]

    large = FieldSpec(encoding=HashGrid(levels=8, features=4, base=64, finest=128), hidden=(4,))
    assert torch.Size(large.parameter_shapes()[0]).numel() > LARGE_TABLE
    assert kept(large, True) >= 5 * 32
    assert kept(SPECS["3-D"], True) == 0


@pytest.mark.parametrize("spec", [FieldSpec(hidden=(4,)), FieldSpec(encoding=Fourier(3), hidden=(4,))])
def test_nothing_to_keep_is_told(spec: FieldSpec) -> None:
    params = [torch.zeros(shape) for shape in spec.parameter_shapes()]
    for op in (field, field_jet):
        with pytest.raises(ValueError, match="needs a grid without a flow"):
            op(torch.zeros(2, 3), params, spec, recompute=False, backend="cpu")


@pytest.mark.parametrize("jet", [False, True])
def test_opcheck_keeping(jet: bool) -> None:
    from neuralreg.kernels.spec import flatten

    spec = SPECS["3-D"]
    params = [leaf(torch.randn(shape, dtype=torch.float64) / 4) for shape in spec.parameter_shapes()]
    x = leaf(2 * torch.rand(7, 3, dtype=torch.float64) - 1)
    ops = torch.ops.neuralreg
    op = ops.field_jet_forward if jet else ops.field_forward
    torch.library.opcheck(op, (x, params, *flatten(spec), True, "cpu"))
