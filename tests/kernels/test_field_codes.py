"""Codes of a field: one that all points share, and volumes and grids whose entries are whole vectors of features."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from neuralreg.kernels import field, field_jet
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid

from .common import assert_near, assert_relative, leaf, serving, strided, threads
from .test_cuda_field import compute, draw

ON = pytest.mark.parametrize("on", serving("field_jet", "cpu"))
BOTH = pytest.mark.parametrize("public", [field, field_jet])
WIDE = HashGrid(levels=2, features=16, base=3, finest=7, log2_table_size=6, interpolation="smoothstep")
SPECS = {
    "volume": FieldSpec(hidden=(12,), latent=5, latent_volume=32, activation="tanh"),
    "volume 2-D": FieldSpec(ndim=2, out=2, hidden=(12,), latent_volume=16, activation="tanh"),
    "gated": FieldSpec(
        encoding=Fourier(5, 1.0),
        hidden=(11, 11),
        latent=7,
        latent_volume=16,
        skip="first",
        gate_omega=(1.0, 2.0),
        activation="sine",
        omega=(2.0, 1.0),
    ),
    "grid": FieldSpec(encoding=WIDE, hidden=(9,), latent=1, activation="silu"),
    "grid 2-D": FieldSpec(ndim=2, out=2, encoding=WIDE, hidden=(9,), activation="silu"),
}


def tensors_of(spec: FieldSpec, count: int, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    torch.manual_seed(count)
    return draw(spec, count, dtype)


@ON
@BOTH
@pytest.mark.parametrize("count", [0, 1, 50, 203])
@pytest.mark.parametrize("name", SPECS)
def test_equals_the_reference(name: str, count: int, public: Any, on: Any) -> None:
    call = tensors_of(SPECS[name], count)
    expected = compute(public, SPECS[name], call, "reference")
    for number in (1, 2, 3):  # threads share the channels of a volume: 16, 8 and 5 or 6 each
        with threads(number):
            actual = compute(public, SPECS[name], call, on.backend)
        for one, other in zip(actual, expected, strict=True):
            assert_near(one, other, 1e-11)


@ON
@BOTH
@pytest.mark.parametrize("name", SPECS)
def test_float32(name: str, public: Any, on: Any) -> None:
    expected = compute(public, SPECS[name], tensors_of(SPECS[name], 150), "reference")
    actual = compute(public, SPECS[name], tensors_of(SPECS[name], 150, torch.float32), on.backend)
    for one, other in zip(actual, expected, strict=True):
        # sums of a hundred products; x rounded to 2^-24 counts by the second derivative of a grid's cell
        assert_relative(one, other, 3e-5)


@ON
@BOTH
@pytest.mark.parametrize(
    ("name", "only"),
    [
        ("volume", ("latent",)),
        ("volume", ("volume",)),
        ("volume", ("latent", "volume")),
        ("gated", ("latent",)),
        ("gated", ("volume",)),
        ("gated", ("latent", "volume")),
        ("gated", ("x",)),
        ("gated", ("params",)),
        ("grid", ("latent",)),
    ],
    ids=str,
)
def test_gradients_that_are_wanted_alone(name: str, only: tuple[str, ...], public: Any, on: Any) -> None:
    """Columns of the input whose gradient nobody wants are left out: what is left is not changed by it."""
    call = tensors_of(SPECS[name], 99)
    expected = compute(public, SPECS[name], call, "reference", only)
    for one, other in zip(compute(public, SPECS[name], call, on.backend, only), expected, strict=True):
        assert_near(one, other, 1e-11)


@ON
@BOTH
def test_a_volume_of_any_layout(public: Any, on: Any) -> None:
    """Channels behind each other in memory spare a copy, and the gradient lies as the volume does."""
    spec, call = SPECS["gated"], tensors_of(SPECS["gated"], 40)
    expected = compute(public, spec, call, on.backend)
    volume = call["volume"]
    last = volume.movedim(0, -1).contiguous().movedim(-1, 0)
    assert last.stride() != volume.stride()
    for other in (last, *strided(volume)):
        found = compute(public, spec, {**call, "volume": other}, on.backend)
        for one, wanted in zip(found, expected, strict=True):
            assert torch.equal(one, wanted)
    assert (
        compute(public, spec, {**call, "volume": last}, on.backend, ("volume",))[-1].stride() == last.stride()
    )


@ON
def test_a_shared_latent_is_as_the_same_one_at_every_point(on: Any) -> None:
    spec, call = SPECS["gated"], tensors_of(SPECS["gated"], 30)
    shared = compute(field_jet, spec, call, on.backend)
    each = compute(field_jet, spec, {**call, "latent": call["latent"].expand(30, -1)}, on.backend)
    names = ["y", "jacobian", "x", *(["params"] * len(call["params"])), "latent", "volume"]
    for name, one, other in zip(names, shared, each, strict=True):
        assert_near(other.sum(0) if name == "latent" else other, one, 1e-12)


@ON
def test_opcheck_of_a_volume_with_its_channels_last(on: Any) -> None:
    from neuralreg.kernels.field import field_tensors
    from neuralreg.kernels.spec import flatten

    spec, call = SPECS["volume"], tensors_of(SPECS["volume"], 8)
    volume = leaf(call["volume"].movedim(0, -1).contiguous().movedim(-1, 0))
    x, params = leaf(call["x"]), [leaf(p) for p in call["params"]]
    tensors = field_tensors("field", x, params, spec, leaf(call["latent"]), volume)
    numbers = flatten(spec)
    ops = torch.ops.neuralreg
    torch.library.opcheck(ops.field_forward, (x, tensors, *numbers, False, on.backend))
    detached = [t.detach() for t in tensors]
    want = [True] * (1 + len(tensors))
    empty = x.detach().new_empty(0)
    torch.library.opcheck(
        ops.field_backward,
        (torch.randn(8, 3).double(), x.detach(), detached, empty, *numbers, want, on.backend),
    )
