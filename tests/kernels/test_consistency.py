"""Gradient inverse consistency in one pass, against the reference's jets put together."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import gradient_inverse_consistency
from neuralreg.kernels.spec import FieldSpec, Fourier

from .common import assert_near, assert_relative, leaf, serving, strided, threads
from .test_cuda_field import SPECS, draw
from .test_cuda_field import compute as compute_any

MAPS = [name for name, spec in SPECS.items() if spec.out == spec.ndim]
ON = pytest.mark.parametrize("on", serving("gradient_inverse_consistency", "cpu"))
NEPHI = FieldSpec(
    encoding=Fourier(7, 1.0),
    hidden=(19, 19),
    latent=3,
    latent_volume=5,
    skip="first",
    gate_omega=(2.0, 1.0),
    activation="sine",
    omega=(1.0, 2.0),
)


def two_maps(name: str, count: int, dtype: torch.dtype = torch.float64, **how: Any) -> dict[str, Any]:
    """Arguments of the op: small displacements of a spec's two fields, which share their codes."""
    call = draw(name, count, dtype, **how)
    own, there, back = call.pop("params"), [], []
    for tensor in own:
        there.append(tensor)
        back.append(tensor + 0.3 * torch.randn(tensor.shape, dtype=torch.float64).to(dtype))
    return {**call, "params": there, "inverse_params": back}


def two_maps_of(spec: FieldSpec, count: int) -> dict[str, Any]:
    """The same of any spec with both codes, Jacobians around 1."""
    params = [
        [torch.randn(shape).double() * 0.8 / math.sqrt(shape[-1]) for shape in spec.parameter_shapes()]
        for _ in range(2)
    ]
    return {
        "x": 2 * torch.rand(count, spec.ndim).double() - 1,
        "latent": torch.randn(spec.latent).double(),
        "volume": torch.randn(spec.latent_volume, 4, 3, 5).double(),
        "params": params[0],
        "inverse_params": params[1],
    }


def single(call: dict[str, Any]) -> dict[str, Any]:
    """A call in float32."""
    return {k: [t.float() for t in v] if isinstance(v, list) else v.float() for k, v in call.items()}


def compute(spec: FieldSpec, call: dict[str, Any], backend: str, wanted: Any = None) -> list[Tensor]:
    """The value, and its gradient by every tensor of the call, or of those that are named."""
    return compute_any(gradient_inverse_consistency, spec, call, backend, wanted)


def assert_all_near(actual: list[Tensor], expected: list[Tensor], bound: float) -> None:
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == other.dtype
        assert_near(one, other, bound)


@ON
@pytest.mark.parametrize("count", [1, 7, 97])
@pytest.mark.parametrize("name", MAPS)
def test_equals_the_reference(name: str, count: int, on: Any) -> None:
    torch.manual_seed(count)
    call = two_maps(name, count)
    expected = compute(SPECS[name], call, "reference")
    assert expected[0] > 1e-3
    assert_all_near(compute(SPECS[name], call, on.backend), expected, 1e-9)


@ON
@pytest.mark.parametrize("name", ["latent", "gated", "volume"])
def test_a_latent_a_point(name: str, on: Any) -> None:
    torch.manual_seed(0)
    call = two_maps(name, 61, per_point=True)
    assert_all_near(compute(SPECS[name], call, on.backend), compute(SPECS[name], call, "reference"), 1e-9)


@ON
def test_float32_is_as_near_as_its_numbers(on: Any) -> None:
    torch.manual_seed(0)
    call = two_maps_of(NEPHI, 200)
    expected = compute(NEPHI, call, "reference")
    # a hundred sums of products of four layers, each a few units of 2^-24
    for one, other in zip(compute(NEPHI, single(call), on.backend), expected, strict=True):
        assert_relative(one, other, 2e-5)


@ON
@pytest.mark.parametrize(
    "wanted", [[], ["x"], ["latent"], ["volume"], ["latent", "volume"], ["inverse_params"]], ids=str
)
def test_what_is_wanted_alone(wanted: list[str], on: Any) -> None:
    torch.manual_seed(1)
    call = two_maps_of(NEPHI, 53)
    assert_all_near(compute(NEPHI, call, on.backend, wanted), compute(NEPHI, call, "reference", wanted), 1e-9)


@ON
def test_more_points_than_wait_at_once(on: Any) -> None:
    """Encoding gradients go through a queue that holds some 6,000 points of two jets."""
    torch.manual_seed(0)
    spec = replace(NEPHI, encoding=None, hidden=(3,), omega=(1.0,), gate_omega=(1.0,), latent_volume=2)
    call = two_maps_of(spec, 7001)
    assert_all_near(compute(spec, call, on.backend), compute(spec, call, "reference"), 1e-9)


@ON
def test_threads_change_only_how_sums_are_rounded(on: Any) -> None:
    torch.manual_seed(0)
    call = two_maps_of(NEPHI, 333)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(compute(NEPHI, call, on.backend))
            for one, again in zip(found[-1], compute(NEPHI, call, on.backend), strict=True):
                assert torch.equal(one, again)
    for others in found[1:]:
        assert_all_near(others, found[0], 1e-12)


@ON
def test_any_strides(on: Any) -> None:
    torch.manual_seed(0)
    call = two_maps_of(NEPHI, 20)
    expected = compute(NEPHI, call, on.backend)
    for number in range(2):
        other = {
            key: [strided(t)[number] for t in value] if isinstance(value, list) else strided(value)[number]
            for key, value in call.items()
        }
        for one, wanted in zip(compute(NEPHI, other, on.backend), expected, strict=True):
            assert torch.equal(one, wanted)


@ON
def test_maps_that_undo_each_other(on: Any) -> None:
    """x / 2 + 1 / 4 and 2 x - 1 / 2, by a layer that passes coordinates through a softplus far from its bend."""
    spec = FieldSpec(hidden=(3,), activation="softplus")

    def scaled(factor: float, shift: float) -> list[Tensor]:
        eye, ones = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
        return [eye, 100 * ones, (factor - 1) * eye, (shift - 100 * (factor - 1)) * ones]

    x = torch.rand(30, 3, dtype=torch.float64)
    there, back = scaled(0.5, 0.25), scaled(2.0, -0.5)
    assert float(gradient_inverse_consistency(x, there, back, spec, backend=on.backend)) < 1e-24
    # the composition of a halving with itself is a quarter: the error's diagonal is -3/4
    twice = gradient_inverse_consistency(x, there, there, spec, backend=on.backend)
    assert float(twice) == pytest.approx((3 / 4) ** 2 / 3)


@ON
def test_no_points(on: Any) -> None:
    torch.manual_seed(0)
    value, *grads = compute(NEPHI, two_maps_of(NEPHI, 0), on.backend)
    assert value.isnan()
    assert not any(g[g == g].any() for g in grads)


@ON
def test_a_point_that_is_no_number_shows(on: Any) -> None:
    torch.manual_seed(0)
    call = two_maps_of(NEPHI, 9)
    call["x"][3, 1] = float("nan")
    assert compute(NEPHI, call, on.backend)[0].isnan()


@ON
def test_bfloat16_products(on: Any) -> None:
    torch.manual_seed(0)
    call = single(two_maps_of(NEPHI, 100))
    rounded = replace(NEPHI, products="bfloat16")
    actual = compute(rounded, call, on.backend)
    assert not torch.equal(actual[0], compute(NEPHI, call, on.backend)[0])
    for one, other in zip(actual, compute(rounded, call, "reference"), strict=True):
        assert_relative(one, other, 0.03)  # the kernel rounds gradients and tangents, too


@ON
def test_gradcheck(on: Any) -> None:
    torch.manual_seed(0)
    spec = replace(NEPHI, encoding=Fourier(2, 1.0), hidden=(4, 4), latent=2, latent_volume=2)
    call = two_maps_of(spec, 5)
    count = len(call["params"])

    def value(x: Tensor, latent: Tensor, volume: Tensor, *params: Tensor) -> Tensor:
        there, back = list(params[:count]), list(params[count:])
        return gradient_inverse_consistency(
            x, there, back, spec, latent=latent, volume=volume, backend=on.backend
        )

    inputs = [leaf(t) for t in (call["x"], call["latent"], call["volume"])]
    inputs += [leaf(t) for t in (*call["params"], *call["inverse_params"])]
    assert torch.autograd.gradcheck(value, inputs)


@pytest.mark.parametrize("on", serving("field_jet"))
def test_every_backend_that_has_jets_serves(on: Any) -> None:
    """Where a backend has no pass of its own, its jets are put together."""
    torch.manual_seed(0)
    call = two_maps_of(NEPHI, 17)
    x, latent, volume, params, inverse_params = single(call).values()
    found = on(gradient_inverse_consistency, x, params, inverse_params, NEPHI, latent=latent, volume=volume)
    assert_relative(found, compute(NEPHI, call, "reference")[0], 2e-5)


@ON
def test_errors_name_the_op(on: Any) -> None:
    spec = FieldSpec(hidden=(4,))
    params = [torch.zeros(shape) for shape in spec.parameter_shapes()]
    for bad, options in (
        ((torch.zeros(2, 2), params, params, spec), {}),
        ((torch.zeros(2, 3), params, params[:-1], spec), {}),
        ((torch.zeros(2, 3), params, params, spec), {"latent": torch.zeros(2)}),
        ((torch.zeros(2, 3), params, params, replace(spec, out=2)), {}),
    ):
        with pytest.raises(ValueError, match="gradient_inverse_consistency: "):
            gradient_inverse_consistency(*bad, **options, backend=on.backend)
