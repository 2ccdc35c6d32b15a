"""A neural field as one op: encoding and MLP from coordinates to values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import field as reference
from .encoding import check_points, check_same_kind
from .spec import ACTIVATIONS, FieldSpec, Fourier, HashGrid

_KIND = {"identity": 0, "fourier": 1, "grid": 2}


def flatten(spec: FieldSpec) -> tuple[list[int], list[float]]:
    """The spec as the numbers that the registered op takes.

    ints: encoding kind, features, table size, frequencies, activation, number of levels, resolutions, widths.
    floats: Fourier scale, omegas.
    """
    encoding = spec.encoding
    features = table_size = frequencies = 0
    resolutions: tuple[int, ...] = ()
    scale = 0.0
    kind = "identity"
    if isinstance(encoding, HashGrid):
        kind, features, table_size = "grid", encoding.features, 1 << encoding.log2_table_size
        resolutions = encoding.resolutions
    elif isinstance(encoding, Fourier):
        kind, frequencies, scale = "fourier", encoding.frequencies, encoding.scale
    head = [
        _KIND[kind],
        features,
        table_size,
        frequencies,
        ACTIVATIONS.index(spec.activation),
        len(resolutions),
    ]
    return [*head, *resolutions, *spec.widths], [scale, *spec.omega]


@torch.library.custom_op("neuralreg::field_forward", mutates_args=())
def _forward(x: Tensor, params: list[Tensor], ints: list[int], floats: list[float], backend: str) -> Tensor:
    return registry.implementation("field_forward", backend)(x, params, ints, floats)


@_forward.register_fake
def _(x: Tensor, params: list[Tensor], ints: list[int], floats: list[float], backend: str) -> Tensor:
    return x.new_empty(x.shape[0], params[-1].shape[0])


@torch.library.custom_op("neuralreg::field_backward", mutates_args=())
def _backward(
    grad: Tensor,
    x: Tensor,
    params: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    return registry.implementation("field_backward", backend)(grad, x, params, ints, floats, want)


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    params: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    return [x.new_empty(t.shape if w else (0,)) for t, w in zip([x, *params], want, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, params, ctx.ints, ctx.floats, ctx.backend = inputs
    ctx.save_for_backward(x, *params)


def _grad(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, *params = ctx.saved_tensors
    want_x, want_params = ctx.needs_input_grad[:2]
    want = [want_x, *(want_params if isinstance(want_params, (list, tuple)) else [want_params] * len(params))]
    grads = _backward(grad, x, params, ctx.ints, ctx.floats, want, ctx.backend)
    kept = [g if w else None for g, w in zip(grads, want, strict=True)]
    return kept[0], kept[1:], None, None, None


_forward.register_autograd(_grad, setup_context=_setup)


def field(x: Tensor, params: list[Tensor], spec: FieldSpec, *, backend: str | None = None) -> Tensor:
    """Encoding + MLP from coordinates to values, fused.

    ``z = W v + b`` layer by layer from the encoded coordinates; hidden layers apply ReLU or ``sin(omega_l z)``
    (SIREN, Sitzmann et al. 2020), the last is linear.

    Args:
        x: (N, ndim) coordinates, in [-1, 1] for grids.
        params: tensors of the shapes ``spec.parameter_shapes()``: the grid's table or the Fourier matrix B, then W
            (out, in) and b (out,) layer by layer.
        spec: what the field is made of.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (N, spec.out). Differentiable once in x and every parameter.

    Memory beyond inputs and outputs, cpu backend: activations of 96 points a thread; in the backward also one copy
    of the layers' weights a thread and, for grids, the encoding's gradient of at most 49,152 points. Nothing of size
    N x width is kept between forward and backward: the backward recomputes.

    Raises:
        ValueError: a shape or dtype does not fit the spec.
    """
    check_points(x, "field")
    if x.shape[1] != spec.ndim:
        raise ValueError(f"field: x has {x.shape[1]} coordinates, the spec wants {spec.ndim}")
    shapes = spec.parameter_shapes()
    if [tuple(p.shape) for p in params] != shapes:
        raise ValueError(
            f"field: params must have the shapes {shapes}, got {[tuple(p.shape) for p in params]}"
        )
    for index, parameter in enumerate(params):
        check_same_kind("field", x=x, **{f"params[{index}]": parameter})
    chosen = registry.choose("field", x.device, backend)
    if chosen == "reference":
        return reference.field(x, params, spec)
    ints, floats = flatten(spec)
    return _forward(x, list(params), ints, floats, chosen)
