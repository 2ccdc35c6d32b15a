"""The CUDA backend's two small convolutions. Half types are computed in float32 and converted back.

Device memory beyond inputs and outputs: of the weights' gradients a set a block, of which there are at most 512:
10 MiB for 3 -> 32 -> 3 in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address


def _shape(x: Tensor, w1: Tensor, w2: Tensor) -> object:
    return cuda._loaded().ConvShape(x.shape[0], x.shape[1], w1.shape[0], w2.shape[0], list(x.shape[2:]))


def conv_relu_conv_forward(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    wide = cuda._computing(x, w1, b1, w2, b2)
    y = wide[0].new_empty(len(x), len(w2), *x.shape[2:])
    run = getattr(cuda._loaded(), "conv_relu_conv_forward" + cuda._SUFFIX[y.dtype])
    run(_shape(x, w1, w2), *map(address, wide), address(y), *cuda._where(y))
    return y.to(x.dtype)


def conv_relu_conv_backward(
    grad: Tensor, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, want: list[bool]
) -> list[Tensor]:
    upstream, *wide = cuda._computing(grad, x, w1, b1, w2, b2)
    if not x.numel():
        return [
            torch.zeros_like(t) if w else t.new_empty(0)
            for t, w in zip((x, w1, b1, w2, b2), want, strict=True)
        ]
    grads = [torch.empty_like(t) if w else None for t, w in zip(wide, want, strict=True)]
    module, shape = cuda._loaded(), _shape(x, w1, w2)
    size = module.conv_relu_conv_scratch(shape, upstream.element_size()) if any(want[1:]) else 0
    scratch = upstream.new_empty(size, dtype=torch.uint8)
    getattr(module, "conv_relu_conv_backward" + cuda._SUFFIX[upstream.dtype])(
        shape,
        address(upstream),
        *map(address, wide[:4]),
        address(grads[0]),
        [address(g) for g in grads[1:]],
        address(scratch),
        *cuda._where(upstream),
    )
    return [cuda._result(g, t) for g, t in zip(grads, (x, w1, b1, w2, b2), strict=True)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv_relu_conv": conv_relu_conv_forward,
    "conv_relu_conv_forward": conv_relu_conv_forward,
    "conv_relu_conv_backward": conv_relu_conv_backward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
