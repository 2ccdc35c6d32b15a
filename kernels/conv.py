"""Two small convolutions with a ReLU between them, as one op that keeps no hidden channel."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .backends import registry
from .backends.reference import conv as reference
from .ops import op


@op("conv_relu_conv_forward")
def _forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, backend: str) -> Tensor:
    return registry.implementation("conv_relu_conv_forward", backend)(x, w1, b1, w2, b2)


@_forward.register_fake
def _(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[0], w2.shape[0], *x.shape[2:])


@op("conv_relu_conv_backward")
def _backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, want: list[bool], backend: str
) -> list[Tensor]:
    """Gradients of the five tensors; an empty one where not wanted."""
    return registry.implementation("conv_relu_conv_backward", backend)(grad, x, w1, b1, w2, b2, want)


@_backward.register_fake
def _(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, want: list[bool], backend: str
) -> list[Tensor]:
    return [t.new_empty(t.shape if w else (0,)) for t, w in zip((x, w1, b1, w2, b2), want, strict=True)]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _grad(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    want = list(ctx.needs_input_grad[:5])
    grads = _backward(grad, *ctx.saved_tensors, want, ctx.backend)
    return *(g if w else None for g, w in zip(grads, want, strict=True)), None


_forward.register_autograd(_grad, setup_context=_setup)


def conv_relu_conv(
    x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, *, backend: str | None = None
) -> Tensor:
    """w2 * relu(w1 * x + b1) + b2: two convolutions of three taps an axis, zeros outside (NCF's smoothing module).

    Args:
        x: (B, C, H, W) or (B, C, D, H, W).
        w1, b1: (hidden, C, 3, 3[, 3]) and (hidden,), as torch's convolutions have them.
        w2, b2: (out, hidden, 3, 3[, 3]) and (out,).
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        (B, out, *spatial) in the dtype of x; half types are computed in float32. Differentiable once in all five,
        without limit with backend="reference". Results do not depend on the number of threads.

    Memory beyond inputs and outputs: nothing is kept for the backward pass, which computes the hidden channels again;
    on the CPU about a megabyte a thread, and for the weights' gradients 40 kB for every 30,000 voxels (3 -> 32 -> 3).

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    _check(x, w1, b1, w2, b2)
    chosen = registry.choose("conv_relu_conv", x.device, backend)
    if chosen == "reference":
        return reference.conv_relu_conv(x, w1, b1, w2, b2)
    return _forward(x, w1, b1, w2, b2, chosen)


def _check(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> None:
    if x.ndim not in (4, 5):
        raise ValueError(f"conv_relu_conv: x must be (B, C, H, W) or (B, C, D, H, W), got {tuple(x.shape)}")
    kernel = (3,) * (x.ndim - 2)
    hidden = w1.shape[0] if w1.ndim else 0
    expected = {
        "w1": (w1, (hidden, x.shape[1], *kernel)),
        "b1": (b1, (hidden,)),
        "w2": (w2, (w2.shape[0] if w2.ndim else 0, hidden, *kernel)),
        "b2": (b2, (w2.shape[0] if w2.ndim else 0,)),
    }
    for name, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"conv_relu_conv: {name} must be {shape} here, got {tuple(tensor.shape)}")
    if min(x.shape[1], hidden, w2.shape[0]) < 1:
        raise ValueError(
            f"conv_relu_conv: needs at least one channel, got {x.shape[1]}, {hidden}, {w2.shape[0]}"
        )
    for name, tensor in {"x": x, **{name: tensor for name, (tensor, _) in expected.items()}}.items():
        if not tensor.is_floating_point():
            raise ValueError(f"conv_relu_conv: {name} must be floating point, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"conv_relu_conv: {name} is on {tensor.device}, x on {x.device}")
