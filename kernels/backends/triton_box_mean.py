"""Box means on the triton backend: sums along one axis after the other (triton_box.py), then one division.

Memory beyond the output: at most WORKSPACE bytes of float64 sums between the launches (more where a single plane needs
more), and a volume of quotients for the gradient.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_box import box_sum, box_tile, narrow, wide
from .triton_plan import Axis, Slab, axes_of, between, on_device, passes, plane_bytes, slabs, start_of, tail

WORKSPACE = 128 * 2**20


@triton.jit
def sums_pass(
    source, target, outer, blocks, n_in, n_out, inner, columns, first, window,
    BO: tl.constexpr, W2: tl.constexpr, BI: tl.constexpr, FIRST: tl.constexpr, LAST: tl.constexpr,
):  # fmt: skip
    """Box sums along one axis, in the pointers' types."""
    near, near_exists, far, far_exists, to, exists = box_tile(
        outer, blocks, n_in, n_out, inner, columns, first, window, BO, W2, BI
    )
    narrow(target, to, box_sum(wide(source, near, near_exists), wide(source, far, far_exists)), exists)


def box_mean_forward(image: Tensor, window: list[int], adjoint: bool) -> Tensor:
    dtype = torch.promote_types(image.dtype, torch.float32)
    axes = axes_of(list(image.shape[2:]), window, "same")
    x = image.to(dtype).contiguous()
    out = torch.empty_like(x)
    if image.numel() == 0:
        return out.to(image.dtype)
    with on_device(x):
        inside = voxels_inside(axes[5 - image.ndim :], x)
        if adjoint:
            x, axes = x / inside, [axis.adjoint() for axis in axes]
        _sums(x, out, axes)
        return (out if adjoint else out.div_(inside)).to(image.dtype)


def voxels_inside(axes: list[Axis], like: Tensor) -> Tensor:
    """How many voxels of the image each box holds, (*spatial)."""
    count = torch.ones((), dtype=like.dtype, device=like.device)
    for axis in axes:
        start = torch.arange(axis.n_out, device=like.device) + axis.first
        held = (start + axis.window).clamp(max=axis.n_in) - start.clamp(min=0)
        count = count[..., None] * held.to(like.dtype)
    return count


def _sums(x: Tensor, out: Tensor, axes: list[Axis]) -> None:
    z, y, x_axis = axes
    plane = y.n_in * x_axis.n_in
    whole = Slab(0, math.prod(x.shape[:2]), 0, z.n_out)
    cuts = list(slabs(whole, z.window, plane_bytes(axes, 1), WORKSPACE))
    plans = [passes(axes, slab) for slab in cuts]
    buffers = between(plans, 1, x.device)
    for slab, plan in zip(cuts, plans, strict=True):
        # The first pass sees whole channels where it runs along z, else the slab's planes alone.
        source = tail(x, start_of(slab._replace(z0=0) if plan[0].axis == 0 else slab, plane, z.n_in))
        for step, launch in enumerate(plan):
            target = tail(out, start_of(slab, plane, z.n_out)) if launch.is_last else buffers[step]
            launch.launch(sums_pass, source, target)
            source = target
