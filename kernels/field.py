"""A neural field as one op: encoding and layers from coordinates to values, and to values with their Jacobian."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import field as reference
from .encoding import check_same_kind
from .ops import op
from .spec import FieldSpec, HashGrid, flatten, unflatten

LARGE_TABLE = 1 << 20  # numbers; below, a table stays in the cache and encoding again is cheaper than memory
KEPT_BYTES = 128 << 20


# The forwards return what their backward shall find again as a last tensor, empty where it recomputes.
@op("field_forward")
def _forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    kept = _kept(x, tensors, ints, floats, False, keep, backend)
    run = registry.implementation("field_forward", backend)
    return run(x, tensors, ints, floats, *_given(kept)), kept


@_forward.register_fake
def _(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], keep: bool, backend: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], ints[1]), _kept(x, tensors, ints, floats, False, keep, backend)


@op("field_backward")
def _backward(
    grad: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    kept: Tensor,
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    run = registry.implementation("field_backward", backend)
    return run(grad, x, tensors, ints, floats, want, *_given(kept))


@_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    kept: Tensor,
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    return _gradients_like(x, tensors, ints, floats, want, backend)


@op("field_jet_forward")
def _jet_forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _kept(x, tensors, ints, floats, True, keep, backend)
    run = registry.implementation("field_jet_forward", backend)
    return *run(x, tensors, ints, floats, *_given(kept)), kept


@_jet_forward.register_fake
def _(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], keep: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    kept = _kept(x, tensors, ints, floats, True, keep, backend)
    return x.new_empty(x.shape[0], ints[1]), x.new_empty(x.shape[0], ints[1], x.shape[1]), kept


@op("field_jet_backward")
def _jet_backward(
    grad: Tensor,
    grad_jacobian: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    kept: Tensor,
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    run = registry.implementation("field_jet_backward", backend)
    return run(grad, grad_jacobian, x, tensors, ints, floats, want, *_given(kept))


@_jet_backward.register_fake
def _(
    grad: Tensor,
    grad_jacobian: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    kept: Tensor,
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> list[Tensor]:
    return _gradients_like(x, tensors, ints, floats, want, backend)


def _kept(
    x: Tensor,
    tensors: list[Tensor],
    ints: list[int],
    floats: list[float],
    jet: bool,
    keep: bool,
    backend: str,
) -> Tensor:
    if not keep:
        return x.new_empty(0)
    room: Tensor = registry.implementation("field_kept", backend)(x, tensors, ints, floats, jet)
    return room


def _given(kept: Tensor) -> tuple[Tensor, ...]:
    return (kept,) if kept.numel() else ()


def _gradients_like(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], want: list[bool], backend: str
) -> list[Tensor]:
    found = [x.new_empty(t.shape if w else (0,)) for t, w in zip([x, *tensors], want, strict=True)]
    at = unflatten(ints, floats).volume_index
    if at is not None and want[1 + at] and backend == "cpu":
        codes_last = tensors[at].movedim(0, -1)
        if codes_last.is_contiguous():  # and so is its gradient
            found[1 + at] = torch.empty_like(codes_last).movedim(-1, 0)
    return found


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, tensors, ctx.ints, ctx.floats, _, ctx.backend = inputs
    kept = output[-1]
    ctx.mark_non_differentiable(kept)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, kept, *tensors)


def _gradients(ctx: Any, backward: Any, *upstream: Tensor) -> tuple[Any, ...]:
    x, kept, *tensors = ctx.saved_tensors
    want_x, want_tensors = ctx.needs_input_grad[:2]
    if not isinstance(want_tensors, (list, tuple)):
        want_tensors = [want_tensors] * len(tensors)
    want = [want_x, *want_tensors]
    grads = backward(*upstream, x, tensors, kept, ctx.ints, ctx.floats, want, ctx.backend)
    found = [g if w else None for g, w in zip(grads, want, strict=True)]
    return found[0], found[1:], None, None, None, None


def _nothing(ctx: Any) -> tuple[Any, ...]:
    return None, [None] * (len(ctx.saved_tensors) - 2), None, None, None, None


def _grad(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Any, ...]:
    return _nothing(ctx) if grad is None else _gradients(ctx, _backward, grad)


def _jet_grad(ctx: Any, grad: Tensor | None, grad_jacobian: Tensor | None, *_: None) -> tuple[Any, ...]:
    if grad is None and grad_jacobian is None:
        return _nothing(ctx)
    x, out = ctx.saved_tensors[0], ctx.ints[1]
    grad = x.new_zeros(len(x), out) if grad is None else grad
    if grad_jacobian is None:
        grad_jacobian = x.new_zeros(len(x), out, x.shape[1])
    return _gradients(ctx, _jet_backward, grad, grad_jacobian)


_forward.register_autograd(_grad, setup_context=_setup)
_jet_forward.register_autograd(_jet_grad, setup_context=_setup)


def field(
    x: Tensor,
    params: list[Tensor],
    spec: FieldSpec,
    *,
    latent: Tensor | None = None,
    volume: Tensor | None = None,
    recompute: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """A neural field at points: encoding, latents, layers, output and flow in one op; see :class:`FieldSpec`.

    Args:
        x: (N, ndim) coordinates, in [-1, 1] for grids and latent volumes.
        params: tensors of the shapes ``spec.parameter_shapes()``: the grid's table or the Fourier matrix B, then W
            (out, in) and b (out,) layer by layer, then those of the modulator.
        spec: what the field is made of.
        latent: (spec.latent,) for all points, or (N, spec.latent).
        volume: (spec.latent_volume, *size), read at x as :func:`hash_encode` reads a dense level, size free. One whose
            channels lie behind each other in memory, a transposed (*size, spec.latent_volume), spares the cpu backend
            a copy each way.
        recompute: False keeps the encoded points of a grid for the backward (cpu backend), True encodes again; None
            keeps those of a table of more than 2^20 numbers while that takes at most 128 MiB. On the reference it is
            autograd that keeps what it needs.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (N, spec.out). Differentiable once in x, every parameter and both latents.

    Memory beyond inputs and outputs, cpu backend: the activations of at most 96 points a thread and, for grids, 2^20
    numbers of encoded points a thread; in the backward also
    a copy of the layers' weights a thread and, for grids and latent volumes, the encoding's gradient of at most 49,152
    points (evaluations, of a flow). Of size N x width only the encoded points may be kept between forward and backward
    (``recompute``), N x inputs numbers; all else the backward recomputes, a flow step by step.

    Raises:
        ValueError: a shape or dtype does not fit the spec; nothing can be kept here (recompute=False).
    """
    tensors = field_tensors("field", x, params, spec, latent, volume)
    chosen = chosen_backend("field", x, spec, backend)
    if chosen == "reference":
        return reference.field(x, tensors, spec)
    ints, floats = flatten(spec)
    keep = _keep("field", x, tensors, spec, 1, recompute, chosen)
    return _forward(x, tensors, ints, floats, keep, chosen)[0]


def field_jet(
    x: Tensor,
    params: list[Tensor],
    spec: FieldSpec,
    *,
    latent: Tensor | None = None,
    volume: Tensor | None = None,
    recompute: bool | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """The field and its Jacobian together, by forward-mode tangents carried through the layers.

    A loss on the Jacobian then needs one hand-written backward instead of a double backward. Each point carries its
    value and ndim tangents: ``t = W T`` in a layer, ``T = act'(z) t`` behind it; the backward returns
    ``zbar = act'(z) Vbar + act''(z) sum_k t_k Tbar_k`` and ``tbar_k = act'(z) Tbar_k``.

    Args:
        x, params, spec, latent, volume, recompute, backend: as in :func:`field`; ndim is 2 or 3.

    Returns:
        y (N, spec.out) and J (N, spec.out, ndim) with ``J[n, i, k] = dy_i / dx_k``. Both differentiable once in x,
        every parameter and both latents; exact wherever the field has the derivative (at a ReLU's kink and a grid's
        planes, one side's).

    Memory: as :func:`field`, times ndim + 1.

    Raises:
        ValueError: a shape or dtype does not fit the spec.
    """
    tensors = field_tensors("field_jet", x, params, spec, latent, volume)
    if spec.ndim not in (2, 3):
        raise ValueError(f"field_jet: ndim must be 2 or 3, got {spec.ndim}")
    chosen = chosen_backend("field_jet", x, spec, backend)
    if chosen == "reference":
        return reference.field_jet(x, tensors, spec)
    ints, floats = flatten(spec)
    keep = _keep("field_jet", x, tensors, spec, 1 + spec.ndim, recompute, chosen)
    y, jacobian, _ = _jet_forward(x, tensors, ints, floats, keep, chosen)
    return y, jacobian


def chosen_backend(op: str, x: Tensor, spec: FieldSpec, backend: str | None) -> str:
    """The backend that serves a spec."""
    chosen = registry.choose(op, x.device, backend)
    if spec.products == "full":
        return chosen
    if x.dtype != torch.float32:
        raise ValueError(f"{op}: products in bfloat16 take float32 tensors, got {x.dtype}")
    return chosen


def _keep(
    op: str,
    x: Tensor,
    tensors: list[Tensor],
    spec: FieldSpec,
    channels: int,
    recompute: bool | None,
    backend: str,
) -> bool:
    """Whether the forward keeps the encoded points."""
    able = (
        isinstance(spec.encoding, HashGrid) and spec.flow is None and registry.serves("field_kept", backend)
    )
    if recompute is False and not able:
        raise ValueError(f"{op}: recompute=False needs a grid without a flow, and the cpu backend")
    if not able or recompute or not torch.is_grad_enabled():
        return False
    if not any(t.requires_grad for t in (x, *tensors)):
        return False
    size = len(x) * channels * (spec.encoded + spec.latent + spec.latent_volume) * x.element_size()
    return recompute is False or (tensors[0].numel() > LARGE_TABLE and size <= KEPT_BYTES)


def field_tensors(
    op: str, x: Tensor, params: list[Tensor], spec: FieldSpec, latent: Tensor | None, volume: Tensor | None
) -> list[Tensor]:
    """All tensors in the order of the registered ops: encoding, latent (rows, width), volume, layers. Checks them."""
    if x.ndim != 2 or x.shape[1] != spec.ndim:
        raise ValueError(f"{op}: x must be (N, {spec.ndim}) for this spec, got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{op}: x must be floating point, got {x.dtype}")
    shapes = spec.parameter_shapes()
    if [tuple(p.shape) for p in params] != shapes:
        raise ValueError(
            f"{op}: params must have the shapes {shapes}, got {[tuple(p.shape) for p in params]}"
        )
    tensors = list(params)
    first_layer = 0 if spec.encoding is None else 1
    for name, given, channels in (
        ("latent", latent, spec.latent),
        ("volume", volume, spec.latent_volume),
    ):
        if (given is None) != (channels == 0):
            raise ValueError(
                f"{op}: the spec has {channels} {name} channels and {'no' if given is None else 'a'} {name} was given"
            )
    if latent is not None:
        if latent.shape not in ((spec.latent,), (x.shape[0], spec.latent)):
            raise ValueError(
                f"{op}: latent must be ({spec.latent},) or ({x.shape[0]}, {spec.latent}), got {tuple(latent.shape)}"
            )
        tensors.insert(first_layer, latent[None] if latent.ndim == 1 else latent)
    if volume is not None:
        if volume.ndim != 1 + spec.ndim or volume.shape[0] != spec.latent_volume or 0 in volume.shape:
            raise ValueError(
                f"{op}: volume must be ({spec.latent_volume}, {', '.join(['size'] * spec.ndim)}), "
                f"got {tuple(volume.shape)}"
            )
        tensors.insert(first_layer + (latent is not None), volume)
    check_same_kind(op, x=x, **{f"tensor {index}": tensor for index, tensor in enumerate(tensors)})
    return tensors
