"""The CUDA backend's box means. Half types are computed in float32 and converted back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address
from .cuda_encoding import run


def box_mean_forward(image: Tensor, window: list[int], adjoint: bool) -> Tensor:
    (x,) = cuda._computing(image)
    shape = cuda._loaded().BoxShape(x.shape[0] * x.shape[1], list(x.shape[2:]), window, adjoint)
    out = torch.empty_like(x)
    device, _ = cuda._where(x)
    scratch = x.new_empty(cuda._loaded().box_mean_scratch(shape, device), dtype=torch.uint8)
    run("box_mean", x, shape, address(x), address(out), address(scratch))
    return out.to(image.dtype)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "box_mean": box_mean_forward,
    "box_mean_forward": box_mean_forward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
