"""field on every backend, against the network written in numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import field, hash_encode
from neuralreg.kernels.backends.registry import BackendError
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .test_encoding import encode

ON = serving("field")

GRID = HashGrid(levels=4, features=2, base=3, finest=20, log2_table_size=8)
SPECS = {
    "grid relu": FieldSpec(encoding=GRID, hidden=(16, 16)),
    "grid sine": FieldSpec(encoding=GRID, hidden=(16,), activation="sine", omega=(5.0,), out=2),
    "grid 2-D": FieldSpec(ndim=2, encoding=GRID, hidden=(8, 12, 4), out=2),
    "fourier sine": FieldSpec(
        encoding=Fourier(frequencies=7), hidden=(9, 8, 10), activation="sine", omega=(1.0, 2.0, 0.5)
    ),
    "fourier relu": FieldSpec(encoding=Fourier(frequencies=5, scale=2.0), hidden=(13,), out=1),
    "siren": FieldSpec(hidden=(16, 16), activation="sine", omega=(30.0, 30.0)),
    "bare 2-D": FieldSpec(ndim=2, hidden=(3,), out=5),
    "widest": FieldSpec(hidden=(256, 1, 70), activation="sine", omega=(3.0, 1.0, 2.0), out=3),
    "eight layers": FieldSpec(encoding=GRID, hidden=(6,) * 8),
}


def parameters(spec: FieldSpec, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Parameters that keep the values of every layer near 1."""
    first = 0 if spec.encoding is None else 1
    made = []
    for position, shape in enumerate(spec.parameter_shapes()):
        weight = position >= first and len(shape) == 2
        scale = 1 / math.sqrt(shape[1]) if weight else 1.0
        made.append((scale * torch.randn(shape, dtype=torch.float64)).to(dtype))
    return made


def clear_points(count: int, spec: FieldSpec, params: list[Tensor]) -> Tensor:
    """Points of [-1, 1] where no grid plane and no ReLU kink is near, in float64."""
    x = 2 * torch.rand(60 * count, spec.ndim, dtype=torch.float64) - 1
    clear = torch.ones(len(x), dtype=torch.bool)
    if isinstance(spec.encoding, HashGrid):
        for r in spec.encoding.resolutions:
            p = (x + 1) / 2 * (r - 1)
            clear &= ((p - p.round()).abs() > 0.01).all(1)
    if spec.activation == "relu":
        for z in before_activation(x, [p.double() for p in params], spec)[:-1]:
            clear &= torch.from_numpy((np.abs(z) > 1e-4).all(1))
    assert int(clear.sum()) >= count
    return x[clear][:count]


def many(x: Tensor, table: Tensor, spec: HashGrid) -> Tensor:
    return hash_encode(x.double(), table, spec, backend="reference")


def before_activation(x: Tensor, params: list[Tensor], spec: FieldSpec) -> list[np.ndarray]:
    """z of every layer; the last is the output."""
    weights = [p.double().numpy() for p in params]
    v = x.double().numpy()
    if isinstance(spec.encoding, HashGrid):
        table = torch.from_numpy(weights.pop(0))
        # few points go through the oracle, many through the reference, which is held against it elsewhere
        few = len(v) <= 50
        v = encode(x, table, spec.encoding).numpy() if few else many(x, table, spec.encoding).numpy()
    elif isinstance(spec.encoding, Fourier):
        phase = spec.encoding.scale * v @ weights.pop(0)
        v = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    layers = []
    while weights:
        weight, bias = weights.pop(0), weights.pop(0)
        layers.append(v @ weight.T + bias)
        if spec.activation == "relu":
            v = np.maximum(layers[-1], 0)
        elif weights:
            v = np.sin(spec.omega[len(layers) - 1] * layers[-1])
    return layers


def with_gradients(on: On, x: Tensor, params: list[Tensor], spec: FieldSpec) -> list[Tensor]:
    """The value, and the gradients of a weighted sum of it to x and every parameter."""
    point, inner = leaf(x), [leaf(p) for p in params]
    value = on(field, point, inner, spec)
    factors = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)
    (value * factors.to(value.dtype)).sum().backward()
    return [value.detach(), point.grad, *[p.grad for p in inner]]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("count", [1, 37])
def test_values(on: On, name: str, count: int) -> None:
    spec = SPECS[name]
    params = parameters(spec)
    x = 2.4 * torch.rand(count, spec.ndim, dtype=torch.float64) - 1.2
    expected = torch.from_numpy(before_activation(x, params, spec)[-1])
    assert expected.abs().max() > 0.1
    assert_near(on(field, x, params, spec), expected, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", SPECS)
def test_gradcheck(on: On, name: str) -> None:
    spec = SPECS[name]
    params = parameters(spec)
    x = clear_points(5, spec, params)
    inputs = (leaf(x), *[leaf(p) for p in params])
    assert torch.autograd.gradcheck(lambda p, *w: on(field, p, list(w), spec), inputs, fast_mode=True)


@pytest.mark.parametrize("on", serving("field", "reference"))
@pytest.mark.parametrize("name", ["grid sine", "fourier sine"])
def test_second_derivatives_of_the_reference(on: On, name: str) -> None:
    spec = SPECS[name]
    params = parameters(spec)
    inputs = (leaf(clear_points(3, spec, params)), *[leaf(p) for p in params])
    assert torch.autograd.gradgradcheck(lambda p, *w: on(field, p, list(w), spec), inputs, fast_mode=True)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", SPECS)
def test_float32(on: On, name: str) -> None:
    spec = SPECS[name]
    params = parameters(spec, torch.float32)
    x = clear_points(301, spec, params).float()
    expected = with_gradients(On("reference", "cpu"), x.double(), [p.double() for p in params], spec)
    actual = with_gradients(on, x, params, spec)
    # every layer multiplies rounding errors of 6e-8 by omega and a few; omega is 30 twice in "siren"
    growth = math.prod(max(1.0, omega) for omega in spec.omega)
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert_relative(one, other, 1e-5 * max(1.0, growth / 10))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("count", [95, 96, 97, 1000])
def test_any_number_of_points(on: On, count: int) -> None:
    # a fused kernel works in blocks: what is left over must be computed too, and every point counted once
    spec = SPECS["grid relu"]
    params = parameters(spec)
    x = clear_points(count, spec, params)
    expected = with_gradients(On("reference", "cpu"), x, params, spec)
    for one, other in zip(with_gradients(on, x, params, spec), expected, strict=True):
        assert_relative(one, other, 1e-10)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("wanted", [0, 1, 2, 3, 6])
def test_gradient_to_one_input_only(on: On, wanted: int) -> None:
    spec = SPECS["grid relu"]
    params = parameters(spec)
    x = clear_points(11, spec, params)
    expected = with_gradients(on, x, params, spec)[1 + wanted]
    inputs = [x, *params]
    inputs[wanted] = leaf(inputs[wanted])
    value = on(field, inputs[0], inputs[1:], spec)
    (value * torch.linspace(-1, 2, value.numel(), dtype=torch.float64).view_as(value)).sum().backward()
    assert_relative(inputs[wanted].grad, expected, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", ["grid relu", "fourier sine", "bare 2-D"])
def test_strides(on: On, name: str) -> None:
    spec = SPECS[name]
    params = parameters(spec)
    x = clear_points(11, spec, params)
    expected = with_gradients(on, x, params, spec)
    for kind in (0, 1):
        actual = with_gradients(on, strided(x)[kind], [strided(p)[kind] for p in params], spec)
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", ["grid relu", "fourier sine"])
def test_no_points(on: On, name: str) -> None:
    spec = SPECS[name]
    value, grad_x, *grads = with_gradients(on, torch.zeros(0, 3).double(), parameters(spec), spec)
    assert value.shape == (0, spec.out)
    assert grad_x.shape == (0, 3)
    assert all(torch.count_nonzero(g) == 0 for g in grads)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", ["grid relu", "fourier sine", "siren"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_point_does_not_touch_the_others(on: On, name: str, bad: float) -> None:
    spec = SPECS[name]
    params = parameters(spec, torch.float32)
    x = clear_points(200, spec, params).float()
    expected = on(field, x, params, spec)
    x[77, 1] = bad
    value = with_gradients(on, x, params, spec)[0]
    others = torch.arange(200) != 77
    # neighbours may take another path through the sine, no more than its last digits apart
    assert_near(value[others], expected[others], 1e-5)
    if not isinstance(spec.encoding, HashGrid):  # the grid clamps
        assert bool(value[77].isnan().all())


@pytest.mark.parametrize("on", serving("field", "cpu"))
@pytest.mark.parametrize("name", ["grid relu", "fourier sine"])
def test_same_bits_for_any_number_of_threads(on: On, name: str) -> None:
    spec = SPECS[name]
    params = parameters(spec, torch.float32)
    x = (2 * torch.rand(5003, 3) - 1).float()
    assert_same_for_any_threads(lambda: with_gradients(on, x, params, spec)[:2])  # gathers: value and x


def wrong_cases() -> dict[str, tuple[tuple[Any, ...], str]]:
    spec = SPECS["grid relu"]
    x, params = torch.rand(4, 3), parameters(spec, torch.float32)
    return {
        "points of another dimension": ((x[:, :2], params, spec), "x must be"),
        "points on a grid": ((x[None], params, spec), "x"),
        "a parameter is missing": ((x, params[:-1], spec), "params"),
        "shape of a parameter": ((x, [*params[:-1], params[-1][1:]], spec), "params"),
        "dtype of a parameter": ((x, [*params[:-1], params[-1].double()], spec), "dtype"),
        "integers": ((x.int(), params, spec), "float"),
    }


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    arguments, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(field, *arguments)


WRONG_SPECS: list[tuple[Any, dict[str, Any], str]] = [
    (HashGrid, {"levels": 0}, "levels"),
    (HashGrid, {"base": 1}, "base"),
    (HashGrid, {"base": 16, "finest": 8}, "finest"),
    (HashGrid, {"log2_table_size": 31}, "log2_table_size"),
    (Fourier, {"frequencies": 0}, "frequencies"),
    (FieldSpec, {"ndim": 4, "encoding": HashGrid()}, "ndim"),
    (FieldSpec, {"activation": "gelu"}, "activation.*gelu"),
    (FieldSpec, {"hidden": ()}, "hidden"),
    (FieldSpec, {"hidden": (300,)}, "hidden"),
    (FieldSpec, {"activation": "sine"}, "omega"),
    (FieldSpec, {"omega": (1.0, 1.0)}, "omega"),
    (FieldSpec, {"out": 0}, "out"),
]


@pytest.mark.parametrize(("kind", "options", "message"), WRONG_SPECS)
def test_wrong_specs(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_unknown_backend() -> None:
    spec = SPECS["siren"]
    with pytest.raises(BackendError, match="abacus"):
        field(torch.rand(4, 3), parameters(spec, torch.float32), spec, backend="abacus")
