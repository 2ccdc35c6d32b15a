"""cpu backend of the two small convolutions. Half types are computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads


def _wide(*tensors: Tensor) -> list[Tensor]:
    """Contiguous, in the widest dtype of all, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


def _shape(x: Tensor, w1: Tensor, w2: Tensor) -> object:
    return native.load_cpu().ConvShape(x.shape[0], x.shape[1], w1.shape[0], w2.shape[0], list(x.shape[2:]))


def conv_relu_conv_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    wide = _wide(x, w1, b1, w2, b2)
    y = output([len(x), len(w2), *x.shape[2:]], wide[0].dtype)
    run = function("conv_relu_conv_forward", y.dtype)
    run(_shape(x, w1, w2), *map(address, wide), address(y), threads())
    return y.to(x.dtype)


def conv_relu_conv_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, want: list[bool]
) -> list[Tensor]:
    upstream, *wide = _wide(grad, x, w1, b1, w2, b2)
    grads = [output(t.shape, t.dtype) if w else t.new_empty(0) for t, w in zip(wide, want, strict=True)]
    places = [address(g) if w else 0 for g, w in zip(grads, want, strict=True)]
    run = function("conv_relu_conv_backward", upstream.dtype)
    run(_shape(x, w1, w2), address(upstream), *map(address, wide[:4]), places[0], places[1:], threads())
    return [g.to(t.dtype) for g, t in zip(grads, (x, w1, b1, w2, b2), strict=True)]


for _op in (conv_relu_conv_forward, conv_relu_conv_backward):
    registry.register(_op.__name__, "cpu", _op)
registry.register("conv_relu_conv", "cpu", conv_relu_conv_forward)
