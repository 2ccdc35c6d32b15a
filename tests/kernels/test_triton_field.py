"""What the triton backend's field has of its own: every option of the spec, blocks, chunks and programs.

These run where triton serves: on a GPU, or on the CPU with TRITON_INTERPRET=1 (see test_triton.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import field
from neuralreg.kernels.backends import registry
from neuralreg.kernels.field import field_jet
from neuralreg.kernels.spec import FieldSpec, Flow, Fourier, HashGrid

from .common import On, assert_near, leaf, serving, strided
from .test_ops import Recorder, copied, name_of

ON = serving("field_jet", "triton")
REFERENCE = On("reference", "cpu")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)

GRID = HashGrid(levels=3, features=2, base=3, finest=20, log2_table_size=7)
SMOOTH = HashGrid(levels=2, features=3, base=3, finest=9, log2_table_size=6, interpolation="smoothstep")
ONE_LEVEL = HashGrid(levels=1, features=3, base=5, finest=5)
SINE = {"activation": "sine", "omega": (2.0, 1.0, 0.5)}
SPECS = {
    "grid relu": FieldSpec(encoding=GRID, hidden=(16, 12)),
    "smooth tanh": FieldSpec(ndim=2, encoding=SMOOTH, hidden=(8,), out=2, activation="tanh", output="position"),
    "siren": FieldSpec(hidden=(16, 3, 16), omega=(8.0, 3.0, 1.0), activation="sine"),
    "raw octaves softplus": FieldSpec(encoding=Fourier(5, 2.0, raw=True), hidden=(9, 20), out=2, activation="softplus"),
    "latents silu": FieldSpec(
        ndim=2, encoding=Fourier(20, 2.0), hidden=(9, 9, 9), out=20, activation="silu", skip="previous", latent=3
    ),
    "everything": FieldSpec(
        encoding=SMOOTH, hidden=(9, 9, 9), skip="first", output="velocity", latent=2, latent_volume=3, **SINE
    ),
    "gated": FieldSpec(
        encoding=Fourier(4, 2.0), hidden=(10, 12, 5), gate_omega=(2.0, 1.0, 1.5), latent=20, output="velocity", **SINE
    ),
    "gated, skips": FieldSpec(
        ndim=2, hidden=(10, 10, 10), out=2, gate_omega=(2.0, 1.0, 1.5), latent=2, latent_volume=1, skip="first",
        output="position", **SINE
    ),
    "gated grid": FieldSpec(
        encoding=GRID, hidden=(10, 10, 10), gate_omega=(2.0, 1.0, 1.5), latent=2, skip="previous", **SINE
    ),
    "flow": FieldSpec(
        ndim=2, hidden=(6,), out=2, activation="tanh", output="velocity", flow=Flow(0.4, 2, "rk4"), latent=1
    ),
    "euler": FieldSpec(encoding=SMOOTH, hidden=(6,), activation="silu", flow=Flow(0.4, 2, "euler")),
}  # fmt: skip


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 points, chunks of few blocks, as many points have them."""
    from neuralreg.kernels.backends import triton_field

    monkeypatch.setattr(triton_field, "BLOCK", 16)
    monkeypatch.setattr(triton_field, "WORKSPACE", 16 * 1024)


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(
    spec: FieldSpec, count: int, dtype: torch.dtype = torch.float64, own_latents: bool = True
) -> dict[str, Any]:
    """x, params, and latents where the spec has them; some points lie outside [-1, 1]."""

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype)

    made: dict[str, Any] = {"x": (2.2 * torch.rand(count, spec.ndim, dtype=torch.float64) - 1.1).to(dtype)}
    made["params"] = [randn(*shape) / math.sqrt(shape[-1]) for shape in spec.parameter_shapes()]
    if spec.latent:
        made["latent"] = randn(count, spec.latent) if own_latents else randn(spec.latent)
    if spec.latent_volume:
        made["volume"] = randn(spec.latent_volume, *(4, 1, 5)[: spec.ndim])
    return made


def leaves(call: dict[str, Any]) -> list[Tensor]:
    return [call["x"], *call["params"], *[call[name] for name in ("latent", "volume") if name in call]]


def with_gradients(on: On, call: dict[str, Any], spec: FieldSpec, jet: bool) -> list[Tensor]:
    """Value (and Jacobian), and the gradients of a weighted sum of them to everything."""
    call = {
        name: [leaf(t) for t in given] if isinstance(given, list) else leaf(given)
        for name, given in call.items()
    }
    options = {name: call[name] for name in ("latent", "volume") if name in call}
    found = on(field_jet if jet else field, call["x"], call["params"], spec, **options)
    results = found if isinstance(found, tuple) else (found,)
    total = sum((weights(r) * r).sum() for r in results)
    wanted = leaves(call)
    grads = torch.autograd.grad(total, wanted, allow_unused=True)  # a volume of one voxel has no slope
    return [
        *[r.detach() for r in results],
        *[torch.zeros_like(t) if g is None else g for g, t in zip(grads, wanted, strict=True)],
    ]


def weights(result: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(result.shape, generator=generator, dtype=torch.float64).to(result.dtype)


def wide(call: dict[str, Any]) -> dict[str, Any]:
    return {n: [t.double() for t in g] if isinstance(g, list) else g.double() for n, g in call.items()}


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
@pytest.mark.parametrize("name", SPECS)
def test_every_option(on: On, name: str, jet: bool) -> None:
    spec = SPECS[name]
    call = arguments(spec, 21)
    expected = with_gradients(REFERENCE, call, spec, jet)
    for one, other in zip(with_gradients(on, call, spec, jet), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
@pytest.mark.parametrize("count", [1, 16, 17, 70])
@pytest.mark.usefixtures("small_pieces")
def test_blocks_and_chunks(on: On, count: int, jet: bool) -> None:
    """70 points: five blocks, in chunks of two or three, on two programs."""
    spec = FieldSpec(
        ndim=2, encoding=ONE_LEVEL, hidden=(9,), out=2, activation="silu", latent=2, output="position"
    )
    call = arguments(spec, count, own_latents=False)
    expected = with_gradients(REFERENCE, call, spec, jet)
    for one, other in zip(with_gradients(on, call, spec, jet), expected, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
def test_no_points(on: On, jet: bool) -> None:
    spec = SPECS["everything"]
    call = arguments(spec, 0)
    expected = with_gradients(REFERENCE, call, spec, jet)
    for one, other in zip(with_gradients(on, call, spec, jet), expected, strict=True):
        assert one.shape == other.shape
        assert torch.count_nonzero(one) == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
def test_widest_in_float32(on: On, jet: bool) -> None:
    spec = FieldSpec(encoding=Fourier(140, 1.0), hidden=(256, 200), activation="sine", omega=(1.0, 2.0))
    call = arguments(spec, 20, torch.float32)
    expected = with_gradients(REFERENCE, wide(call), spec, jet)
    for one, other in zip(with_gradients(on, call, spec, jet), expected, strict=True):
        assert one.dtype == torch.float32
        assert_near(one, other, 2e-6)  # sums of 256 products, rounded to 6e-8 each, through three layers


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("name", "jet"), [("grid relu", False), ("smooth tanh", True), ("gated, skips", True)]
)
def test_bfloat16(on: On, name: str, jet: bool) -> None:
    spec = SPECS[name]
    call = arguments(spec, 40, torch.bfloat16)
    expected = with_gradients(REFERENCE, wide(call), spec, jet)
    for one, other in zip(with_gradients(on, call, spec, jet), expected, strict=True):
        assert one.dtype == torch.bfloat16
        # rounding to 2^-9 in every layer; a ReLU on the other side of its kink moves single entries, not the whole
        assert float((one.double() - other).norm()) <= 0.05 * max(1.0, float(other.norm()))


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("name", "jet"), [("grid relu", False), ("raw octaves softplus", True), ("gated grid", False)]
)
def test_bfloat16_products_of_float32_tensors(on: On, name: str, jet: bool) -> None:
    spec = replace(SPECS[name], products="bfloat16")
    call = arguments(spec, 40, torch.float32)
    expected, exact = (with_gradients(REFERENCE, call, s, jet) for s in (spec, SPECS[name]))
    actual = with_gradients(on, call, spec, jet)
    assert not torch.equal(actual[0], exact[0])
    for one, other in zip(actual, expected, strict=True):
        assert one.dtype == torch.float32
        assert float((one - other).norm()) <= 0.05 * max(1.0, float(other.norm()))


@pytest.mark.parametrize("on", ON)
def test_bfloat16_products_of_plain_coordinates_are_refused(on: On) -> None:
    spec = replace(SPECS["siren"], products="bfloat16")
    call = arguments(spec, 3, torch.float32)
    with pytest.raises(registry.BackendError, match="coordinates would have 8 bits"):
        on(field, call["x"], call["params"], spec)


@pytest.mark.parametrize("on", ON)
def test_float16_is_refused(on: On) -> None:
    spec = SPECS["siren"]
    call = arguments(spec, 3, torch.float16)
    with pytest.raises(registry.BackendError, match="float16"):
        on(field, call["x"], call["params"], spec)


@pytest.mark.parametrize("on", ON)
def test_strides(on: On) -> None:
    spec = SPECS["gated, skips"]
    call = arguments(spec, 9)
    expected = with_gradients(on, call, spec, True)
    for kind in (0, 1):
        other = {
            n: [strided(t)[kind] for t in g] if isinstance(g, list) else strided(g)[kind]
            for n, g in call.items()
        }
        for one, same in zip(with_gradients(on, other, spec, True), expected, strict=True):
            assert_near(one, same, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("name", ["grid relu", "gated"])
def test_one_bad_point_does_not_touch_the_others(on: On, name: str) -> None:
    spec = SPECS[name]
    call = arguments(spec, 40, torch.float32)
    y, jacobian, to_x, *_ = with_gradients(on, call, spec, True)
    call["x"][17, 1] = math.nan
    bad_y, bad_jacobian, bad_to_x, *_ = with_gradients(on, call, spec, True)
    others = torch.arange(40) != 17
    for one, other in ((y, bad_y), (jacobian, bad_jacobian), (to_x, bad_to_x)):
        assert torch.equal(one[others], other[others])
    assert spec.encoding == GRID or bool(bad_y[17].isnan().all())  # the grid clamps


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("wanted", [0, 1, 2, -2, -1])
def test_gradient_to_one_input_only(on: On, wanted: int) -> None:
    spec = SPECS["everything"]
    call = arguments(spec, 9)
    expected = with_gradients(on, call, spec, False)[1:][wanted]
    inputs = leaves(call)
    inputs[wanted] = leaf(inputs[wanted])
    x, *params, latent, volume = inputs
    value = on(field, x, params, spec, latent=latent, volume=volume)
    (value * weights(value)).sum().backward()
    assert_near(inputs[wanted].grad, expected, 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.usefixtures("deterministic", "small_pieces")
def test_same_bits_again(on: On) -> None:
    spec = FieldSpec(ndim=2, encoding=ONE_LEVEL, hidden=(9, 9), out=2, activation="tanh", latent_volume=2)
    call = arguments(spec, 40, torch.float32)
    first, second = (with_gradients(on, call, spec, True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for one, other in zip(first, with_gradients(REFERENCE, wide(call), spec, True), strict=True):
        assert_near(one, other, 1e-5)


@pytest.mark.skipif(not registry.interpreted, reason="the calls are on the CPU")
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
def test_opcheck(jet: bool) -> None:
    spec = SPECS["gated, skips"]
    with Recorder() as recorder:
        with_gradients(On("triton", "cpu"), arguments(spec, 5), spec, jet)
    assert len(recorder.seen) == 2
    for op, args, kwargs in recorder.seen:
        backward = name_of(op).endswith("backward")
        torch.library.opcheck(
            op, copied(args, not backward), kwargs, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.skipif(not registry.interpreted, reason="the calls are on the CPU")
def test_compiles_in_one_graph() -> None:
    spec = SPECS["grid relu"]
    call = arguments(spec, 7, torch.float32)
    x = leaf(call["x"])

    def loss(x: Tensor) -> Tensor:
        y, jacobian = field_jet(x, call["params"], spec, backend="triton")
        return y.square().sum() + jacobian.square().sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected, actual = (torch.autograd.grad(f(x), x)[0] for f in (loss, compiled))
    assert_near(actual, expected, 1e-6)
