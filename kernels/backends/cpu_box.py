"""cpu backend of box means. Half types are computed in float32 and converted back."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads


def box_mean_forward(image: Tensor, window: list[int], adjoint: bool) -> Tensor:
    dtype = torch.promote_types(image.dtype, torch.float32)
    x = image.to(dtype).contiguous()
    out = output(x.shape, dtype)
    shape = native.load_cpu().BoxShape(x.shape[0] * x.shape[1], list(x.shape[2:]), window, adjoint)
    function("box_mean", dtype)(shape, address(x), address(out), threads())
    return out.to(image.dtype)


registry.register("box_mean_forward", "cpu", box_mean_forward)
registry.register("box_mean", "cpu", box_mean_forward)
