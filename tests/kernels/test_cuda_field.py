"""The CUDA kernels of the field, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import field, field_jet
from neuralreg.kernels.backends import cuda_field
from neuralreg.kernels.spec import FieldSpec, Flow, Fourier, HashGrid

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .common import assert_near, assert_relative, leaf, strided

GRID = HashGrid(levels=3, features=2, base=3, finest=12, log2_table_size=7)
SMOOTH = HashGrid(levels=2, features=3, base=3, finest=9, log2_table_size=6, interpolation="smoothstep")
SINE: dict[str, Any] = {"activation": "sine", "omega": (3.0, 1.5)}
SPECS = {
    "grid relu": FieldSpec(encoding=GRID, hidden=(16, 12)),
    "grid tanh": FieldSpec(encoding=GRID, hidden=(70,), activation="tanh", out=2),
    "smooth grid 2-D": FieldSpec(ndim=2, encoding=SMOOTH, hidden=(9, 11), out=2, activation="softplus"),
    "fourier": FieldSpec(encoding=Fourier(5, 2.0), hidden=(10, 66), **SINE),
    "fourier raw 2-D": FieldSpec(
        ndim=2, encoding=Fourier(3, 1.5, True), hidden=(7,), out=1, activation="silu"
    ),
    "siren": FieldSpec(hidden=(18, 16), **SINE),
    "bare 2-D": FieldSpec(ndim=2, hidden=(3,), out=5, activation="silu"),
    "wide output": FieldSpec(hidden=(5,), out=67, activation="tanh"),
    "latent": FieldSpec(hidden=(12, 9), latent=4, **SINE),
    "volume": FieldSpec(encoding=GRID, hidden=(12,), latent=2, latent_volume=3, activation="tanh"),
    "volume 2-D": FieldSpec(ndim=2, hidden=(12,), latent_volume=9, out=2, activation="tanh"),
    "skip first": FieldSpec(hidden=(10,) * 4, activation="tanh", skip="first"),
    "skip previous": FieldSpec(encoding=Fourier(4), hidden=(12,) * 3, activation="softplus", skip="previous"),
    "gated": FieldSpec(
        encoding=Fourier(6, 1.0),
        hidden=(11, 13),
        latent=3,
        gate_omega=(1.0, 2.0),
        activation="sine",
        omega=(2.0, 1.0),
    ),
    "gated skip first": FieldSpec(
        hidden=(10,) * 3, latent=3, gate_omega=(1.0,) * 3, activation="sine", omega=(2.0,) * 3, skip="first"
    ),
    "gated skip previous": FieldSpec(
        encoding=GRID,
        hidden=(9,) * 3,
        latent_volume=2,
        gate_omega=(1.0, 2.0, 1.5),
        activation="sine",
        omega=(2.0, 1.0, 1.5),
        skip="previous",
    ),
    "position": FieldSpec(encoding=GRID, hidden=(8,), output="position", activation="silu"),
    "velocity": FieldSpec(hidden=(8, 8), output="velocity", **SINE),
    "eight layers": FieldSpec(ndim=2, hidden=(6,) * 8, out=2, activation="tanh"),
    "flow": FieldSpec(hidden=(8,), output="velocity", activation="tanh", flow=Flow(0.5, 2, "rk4")),
    "flow euler": FieldSpec(
        ndim=2, encoding=GRID, hidden=(8,), out=2, activation="tanh", latent=2, flow=Flow(-0.3, 3, "euler")
    ),
}


def draw(
    name: str | FieldSpec, count: int, dtype: torch.dtype = torch.float64, per_point: bool = False
) -> dict[str, Any]:
    """Points and tensors that keep the values of every layer near 1, as arguments of the public functions.

    name: of SPECS, or a spec.
    """
    spec = name if isinstance(name, FieldSpec) else SPECS[name]
    first = 0 if spec.encoding is None else 1
    params = []
    for position, shape in enumerate(spec.parameter_shapes()):
        weight = position >= first and len(shape) == 2
        params.append(torch.randn(shape, dtype=torch.float64) / (math.sqrt(shape[1]) if weight else 1))
    call: dict[str, Any] = {
        "x": 2.2 * torch.rand(count, spec.ndim, dtype=torch.float64) - 1.1,
        "params": params,
    }
    if spec.latent:
        call["latent"] = torch.randn(
            (count, spec.latent) if per_point else (spec.latent,), dtype=torch.float64
        )
    if spec.latent_volume:
        call["volume"] = torch.randn(spec.latent_volume, *(4, 1, 5)[: spec.ndim], dtype=torch.float64)
    return {
        key: [v.to(dtype) for v in value] if isinstance(value, list) else value.to(dtype)
        for key, value in call.items()
    }


def compute(
    public: Any, name: str | FieldSpec, call: dict[str, Any], backend: str, only: Sequence[str] | None = None
) -> list[Tensor]:
    """The results, and the gradients of their weighted sum to everything, or to what is named; name: as for draw."""
    spec = name if isinstance(name, FieldSpec) else SPECS[name]
    only = list(call) if only is None else only
    inputs: dict[str, Any] = {}
    for key, value in call.items():
        copy = leaf if key in only else Tensor.detach
        inputs[key] = [copy(t) for t in value] if isinstance(value, list) else copy(value)
    found = public(spec=spec, backend=backend, **inputs)
    results = found if isinstance(found, tuple) else (found,)
    total = sum((r * torch.linspace(-1, 2, r.numel(), dtype=r.dtype).view_as(r)).sum() for r in results)
    flat = [t for key in only for t in (inputs[key] if isinstance(inputs[key], list) else [inputs[key]])]
    grads = torch.autograd.grad(total, flat, allow_unused=True, materialize_grads=True) if flat else ()
    return [*[r.detach() for r in results], *grads]


def check(public: Any, name: str, call: dict[str, Any], bound: float = 1e-10) -> None:
    double = {k: [p.double() for p in v] if isinstance(v, list) else v.double() for k, v in call.items()}
    expected = compute(public, name, double, "reference")
    for one, other in zip(compute(public, name, call, "cuda"), expected, strict=True):
        assert one.dtype == call["x"].dtype
        assert_near(one, other, bound)


@pytest.mark.parametrize("name", SPECS)
def test_values(name: str) -> None:
    check(field, name, draw(name, 70))


@pytest.mark.parametrize("name", SPECS)
def test_jets(name: str) -> None:
    check(field_jet, name, draw(name, 35))


@pytest.mark.parametrize("public", [field, field_jet])
@pytest.mark.parametrize("name", ["latent", "volume", "gated", "gated skip first", "flow euler"])
def test_latents_a_point(name: str, public: Any) -> None:
    check(public, name, draw(name, 40, per_point=True))


# a tile holds 64 points, or 16 with three tangents, 21 with two
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 21, 22, 63, 64, 65, 200])
def test_any_number_of_points(count: int) -> None:
    for name in ("volume", "bare 2-D"):
        check(field, name, draw(name, count))
        check(field_jet, name, draw(name, count))


def test_no_points_of_a_flow() -> None:
    check(field_jet, "flow euler", draw("flow euler", 0))


@pytest.mark.parametrize("name", ["gated skip previous", "skip first", "fourier"])
def test_tiles_beyond_shared_memory(name: str, kernels: Library) -> None:  # noqa: F811
    expected = [compute(public, name, draw_again, "cuda") for public, draw_again in both(name)]
    kernels.shared_memory(24 * 1024)
    for (public, call), wanted in zip(both(name), expected, strict=True):
        for one, other in zip(compute(public, name, call, "cuda"), wanted, strict=True):
            assert torch.equal(one, other)


def both(name: str) -> list[tuple[Any, dict[str, Any]]]:
    torch.manual_seed(3)
    return [(public, draw(name, 90)) for public in (field, field_jet)]


@pytest.mark.parametrize("name", ["volume", "flow euler", "latent"])
def test_points_in_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_field, "CHUNK_BYTES", 1)
    monkeypatch.setattr(cuda_field, "LEAST_CHUNK", 37)
    for public in (field, field_jet):
        check(public, name, draw(name, 100))


@pytest.mark.parametrize("public", [field, field_jet])
def test_width_256(public: Any, kernels: Library) -> None:  # noqa: F811
    SPECS["wide"] = FieldSpec(hidden=(256, 200), activation="sine", omega=(2.0, 1.0))
    try:
        check(public, "wide", draw("wide", 20))
    finally:
        del SPECS["wide"]


@pytest.mark.parametrize("name", ["grid tanh", "smooth grid 2-D", "siren", "gated", "volume", "velocity"])
def test_float32(name: str) -> None:
    for public in (field, field_jet):
        check(public, name, draw(name, 67, torch.float32), 1e-4)


def test_float16_is_computed_in_float32() -> None:
    check(field, "siren", draw("siren", 40, torch.float16), 2**-10)


@pytest.mark.parametrize("name", ["gated", "volume", "skip first"])
def test_bfloat16(name: str) -> None:
    for public in (field, field_jet):
        call = draw(name, 40, torch.bfloat16)
        exact = compute(public, name, {k: _double(v) for k, v in call.items()}, "reference")
        for one, other in zip(compute(public, name, call, "cuda"), exact, strict=True):
            assert one.dtype == torch.bfloat16
            assert_near(one, other, 0.06)  # a few products with factors rounded to 2^-9


@pytest.mark.parametrize("widths", [(18, 20), (70, 33)], ids=str)
def test_bfloat16_products_are_exact_where_the_factors_are(widths: tuple[int, int]) -> None:
    spec = FieldSpec(hidden=widths)
    shapes = spec.parameter_shapes()
    params = [torch.randint(-2, 3, s) / 2 * (torch.rand(s) < 6 / s[-1]) for s in shapes]
    x = torch.randint(-4, 5, (70, 3)) / 4
    for public in (field, field_jet):
        found = []
        for backend, dtype in (("cuda", torch.bfloat16), ("reference", torch.float64)):
            inputs = [leaf(t.to(dtype)) for t in (x, *params)]
            results = public(inputs[0], inputs[1:], spec, backend=backend)
            results = results if isinstance(results, tuple) else (results,)
            torch.manual_seed(1)
            upstream = [torch.randint(-2, 3, r.shape).to(dtype) for r in results]
            found.append([*results, *torch.autograd.grad(results, inputs, upstream, materialize_grads=True)])
        for one, other in zip(*found, strict=True):
            assert torch.equal(one.detach(), other.detach().bfloat16())


@pytest.mark.parametrize("name", ["grid relu", "siren", "gated"])
def test_bfloat16_products_of_float32_tensors(name: str) -> None:
    """Results, gradients and coordinates stay float32: where the reference rounds, the kernel does."""
    spec = replace(SPECS[name], products="bfloat16")
    call = draw(name, 40, torch.float32)
    for public in (field, field_jet):
        expected, actual = (compute(public, spec, call, backend) for backend in ("reference", "cuda"))
        exact = compute(public, name, call, "reference")
        assert not torch.equal(actual[0], exact[0])
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == torch.float32
            assert_near(one, other, 0.03)  # the kernel rounds gradients and tangents, too


def test_bfloat16_products_keep_plain_coordinates() -> None:
    spec = FieldSpec(hidden=(16, 3), products="bfloat16")
    params = [torch.rand(shape) - 0.5 for shape in spec.parameter_shapes()]
    x = torch.rand(40, 3) / 2 + 0.5
    moved = field(x + 2e-4, params, spec, backend="cuda") - field(x, params, spec, backend="cuda")
    full = replace(spec, products="full")
    expected = field(x + 2e-4, params, full, backend="cuda") - field(x, params, full, backend="cuda")
    assert_relative(moved, expected, 0.02)


def _double(value: Any) -> Any:
    return [v.double() for v in value] if isinstance(value, list) else value.double()


@pytest.mark.parametrize("name", ["volume", "gated"])
def test_strides(name: str) -> None:
    call = draw(name, 19)
    expected = compute(field_jet, name, call, "cuda")
    for kind in (0, 1):
        other = {
            k: [strided(p)[kind] for p in v] if k == "params" else strided(v)[kind] for k, v in call.items()
        }
        for one, wanted in zip(compute(field_jet, name, other, "cuda"), expected, strict=True):
            assert_near(one, wanted, 1e-13)


@pytest.mark.parametrize("name", ["volume", "fourier", "gated", "flow euler"])
def test_each_gradient_alone(name: str) -> None:
    call = draw(name, 20, per_point=name == "gated")
    spec = SPECS[name]
    keys = [key for key in call if key != "params"]
    places: list[Any] = [*keys, *range(len(call["params"]))]
    values, *expected = compute(field, name, call, "cuda", [*keys, "params"])
    weights = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view_as(values)
    for place, wanted in zip(places, expected, strict=True):
        given = {**call, "params": list(call["params"])}
        if isinstance(place, int):
            given["params"][place] = one = leaf(given["params"][place])
        else:
            given[place] = one = leaf(given[place])
        x, params = given.pop("x"), given.pop("params")
        (actual,) = torch.autograd.grad(
            (field(x, params, spec, backend="cuda", **given) * weights).sum(), [one]
        )
        assert_near(actual, wanted, 1e-13)


@pytest.mark.parametrize("name", ["grid relu", "fourier", "siren", "volume"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_bad_point_does_not_touch_the_others(name: str, bad: float) -> None:
    for public in (field, field_jet):
        call = draw(name, 70, torch.float32)
        good = compute(public, name, call, "cuda")
        call["x"][33, 1] = bad
        others = torch.arange(70) != 33
        results = 2 if public is field_jet else 1
        for one, wanted in zip(compute(public, name, call, "cuda")[:results], good, strict=False):
            assert torch.equal(one[others], wanted[others])
            if name in ("fourier", "siren"):
                assert one[33].isnan().any()
        gradient = compute(public, name, call, "cuda")[results]
        assert_near(gradient[others], good[results][others], 1e-6)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["volume", "gated", "fourier"])
def test_same_bits_in_any_order(name: str, deterministic: None, kernels: Library) -> None:  # noqa: F811
    call = draw(name, 130, torch.float32)
    for public in (field, field_jet):
        kernels.order(0)
        expected = compute(public, name, call, "cuda")
        for order in (1, 2, 3):
            kernels.order(order)
            for one, wanted in zip(compute(public, name, call, "cuda"), expected, strict=True):
                assert torch.equal(one, wanted)


@pytest.mark.parametrize("name", ["siren", "gated"])
def test_gradcheck(name: str) -> None:
    call = draw(name, 4)
    x, params, rest = (
        call["x"],
        call["params"],
        {k: leaf(v) for k, v in call.items() if k in ("latent", "volume")},
    )
    inputs = (leaf(x), *rest.values(), *[leaf(p) for p in params])

    def run(point: Tensor, *others: Tensor) -> Any:
        given = dict(zip(rest, others, strict=False))
        return field_jet(point, list(others[len(rest) :]), SPECS[name], backend="cuda", **given)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


def test_opcheck_and_compile() -> None:
    from neuralreg.kernels.spec import flatten

    call = draw("siren", 5)
    x, params = leaf(call["x"]), [leaf(p) for p in call["params"]]
    for op in (torch.ops.neuralreg.field_forward, torch.ops.neuralreg.field_jet_forward):
        torch.library.opcheck(op, (x, params, *flatten(SPECS["siren"]), False, "cuda"))
    compiled = torch.compile(field_jet, fullgraph=True, backend="aot_eager")
    found = compiled(x, params, SPECS["siren"], backend="cuda")
    for one, other in zip(found, field_jet(x, params, SPECS["siren"], backend="cuda"), strict=True):
        assert_relative(one.detach(), other.detach(), 1e-14)
