"""Products of the field's layers with factors rounded to bfloat16, on the cpu backend."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from neuralreg.kernels import field, field_jet
from neuralreg.kernels.spec import FieldSpec, Flow

from .calls import few_bits
from .common import assert_near, assert_relative, assert_same_for_any_threads, leaf
from .test_cuda_field import SPECS, compute, draw
from .test_isa import REASON, SERVES

pytestmark = pytest.mark.skipif(not SERVES, reason=REASON)
BOTH = pytest.mark.parametrize("public", [field, field_jet])


@BOTH
@pytest.mark.parametrize("count", [0, 1, 2, 95, 97, 301])
@pytest.mark.parametrize("widths", [(18, 20), (70, 33), (9, 256, 201)], ids=str)
def test_exact_where_the_factors_are(public: Any, count: int, widths: tuple[int, ...]) -> None:
    for one, other in zip(*few_bits(public, widths, count), strict=True):
        assert torch.equal(one, other)


@BOTH
@pytest.mark.parametrize("name", ["grid relu", "fourier", "siren", "gated", "volume", "skip first"])
def test_rounds_where_the_reference_does(name: str, public: Any) -> None:
    spec = replace(SPECS[name], products="bfloat16")
    call = draw(name, 130, torch.float32)
    expected, actual = (compute(public, spec, call, backend) for backend in ("reference", "cpu"))
    exact = compute(public, name, call, "cpu")
    assert not torch.equal(actual[0], exact[0])
    # The same factors but for the few that another order of a sum, in the layer before, rounds to their neighbour: 2^-8
    # of one term among a dozen.
    assert_near(actual[0], expected[0], 1e-3)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert_near(one, other, 0.03)  # the kernel rounds gradients and tangents, too


def test_a_flow() -> None:
    spec = FieldSpec(hidden=(16, 16), output="velocity", activation="tanh", flow=Flow(0.5, 2, "rk4"))
    params = [torch.randn(shape) / 4 for shape in spec.parameter_shapes()]
    call = {"x": 2 * torch.rand(40, 3) - 1, "params": params}
    rounded = replace(spec, products="bfloat16")
    for one, other in zip(
        compute(field, rounded, call, "cpu"), compute(field, rounded, call, "reference"), strict=True
    ):
        assert_near(one, other, 0.03)


def test_narrow_layers_are_not_rounded() -> None:
    spec = FieldSpec(hidden=(64, 8, 8), products="bfloat16")  # from 3 inputs, and to 8 outputs
    params = [torch.rand(shape) - 0.5 for shape in spec.parameter_shapes()]
    x = 2 * torch.rand(40, 3) - 1
    full = replace(spec, products="full")
    assert torch.equal(field(x, params, spec, backend="cpu"), field(x, params, full, backend="cpu"))


def test_what_is_not_finite_stays_with_its_point() -> None:
    spec = FieldSpec(hidden=(20, 18), activation="tanh", products="bfloat16")
    params = [torch.randn(shape) / 4 for shape in spec.parameter_shapes()]
    x = 2 * torch.rand(11, 3) - 1
    clean = field(x, params, spec, backend="cpu")
    x[4] = float("nan")
    found = field(x, params, spec, backend="cpu")
    assert found[4].isnan().all()
    others = torch.arange(11) != 4
    assert torch.equal(found[others], clean[others])
    # one weight that is not a number reaches what depends on it and nothing beyond
    params[2][5, 3] = float("nan")  # of the wide layer, whose rows are padded
    assert field(x[others], params, spec, backend="cpu").isnan().all()
    params[4][:, 5] = 0
    params[2][5, 3] = float("inf")
    assert torch.isfinite(field(x[others], params, spec, backend="cpu")).all()  # tanh of it is 1, times 0


def test_threads_and_strides_change_nothing() -> None:
    spec = replace(SPECS["siren"], products="bfloat16")
    call = draw("siren", 500, torch.float32)
    assert_same_for_any_threads(lambda: [field(call["x"], call["params"], spec, backend="cpu")])
    strided = call["x"].T.contiguous().T
    assert torch.equal(
        field(strided, call["params"], spec, backend="cpu"),
        field(call["x"], call["params"], spec, backend="cpu"),
    )


def test_training_with_rounded_products_learns() -> None:
    """A SIREN fitted to a smooth map by such products alone ends as near to it as one fitted in full."""
    x = 2 * torch.rand(2000, 3) - 1
    wanted = torch.stack([(3 * x[:, 0]).sin(), x[:, 1] * x[:, 2], x.square().sum(1) / 3], 1)
    errors = []
    for products in ("full", "bfloat16"):
        torch.manual_seed(0)
        spec = FieldSpec(hidden=(32, 32), activation="sine", omega=(3.0, 3.0), products=products)
        params = [leaf(torch.randn(shape) / shape[-1] ** 0.5) for shape in spec.parameter_shapes()]
        optimiser = torch.optim.Adam(params, 1e-2)
        for _ in range(80):
            optimiser.zero_grad()
            loss = (field(x, params, spec, backend="cpu") - wanted).square().mean()
            loss.backward()
            optimiser.step()
        errors.append(torch.tensor(loss.item()))
    assert errors[0] < 0.02, "of a mean square of about 0.3"
    assert_relative(errors[1], errors[0], 0.5)
