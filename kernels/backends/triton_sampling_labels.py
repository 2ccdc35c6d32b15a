"""Labels through warp in Triton: the nearest one, or the interpolated vote. Nothing is computed with them.

Memory beyond inputs and outputs: copies of inputs that are not contiguous.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import registry
from .triton_lattice_access import computed_in, elements, in_triton, whole
from .triton_plan import on_device
from .triton_sampling import walk
from .triton_sampling_cells import cell_along, located, nearest, whole_points

TILE = (
    2048 if registry.interpreted else 32
)  # points of a vote: each compares all its corners with one another


@triton.jit
def labels_kernel(
    labels, coordinates, affine, out, blocks, points, m1, m2, n0, n1, n2, channels,
    D: tl.constexpr, NORMALISED: tl.constexpr, NEAREST: tl.constexpr, PADDING: tl.constexpr,
    ALIGN: tl.constexpr, AFFINE: tl.constexpr, LARGEST: tl.constexpr, BP: tl.constexpr, WIDE: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Labels (B, C, points), 0 outside; LARGEST is at least every label."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    point = elements(tl.program_id(0) % blocks, BP, WIDE)
    exists = point < points
    length, voxels = whole_points(points), n0.to(tl.int64) * n1 * n2
    z, y, x, _, _, _ = located(
        coordinates + item * D * length, affine + item * (D * (D + 1)), point, exists, points, m1, m2,
        n0, n1, n2, D, NORMALISED, ALIGN, AFFINE, ACC,
    )  # fmt: skip
    if NEAREST:
        at, there = nearest(z, y, x, exists, n0, n1, n2, D, PADDING, ALIGN)
        for c in range(channels):
            plane = item * channels + c
            label = tl.load(labels + plane * voxels + at, mask=there, other=0)
            tl.store(out + plane * length + point, label, mask=exists)
    else:
        corner = tl.arange(0, 2**D)[None, :]
        y, wy, _ = cell_along(y, n1, PADDING, ALIGN)
        x, wx, _ = cell_along(x, n2, PADDING, ALIGN)
        y, y_weight = corner_of(y, wy, (corner >> 1) & 1)
        x, x_weight = corner_of(x, wx, corner & 1)
        weight = y_weight * x_weight
        there = exists[:, None] & (y >= 0) & (y < n1) & (x >= 0) & (x < n2)
        at = y * n2 + x
        if D == 3:
            z, wz, _ = cell_along(z, n0, PADDING, ALIGN)
            z, z_weight = corner_of(z, wz, corner >> 2)
            weight *= z_weight
            there = there & (z >= 0) & (z < n0)
            at += z * (n1 * n2)
        for c in range(channels):
            plane = item * channels + c
            label = tl.load(labels + plane * voxels + at, mask=there, other=0)
            votes = tl.where(label[:, :, None] == label[:, None, :], weight[:, None, :], 0.0)
            votes = tl.sum(votes, 2)
            most = tl.max(votes, 1)[:, None]
            best = tl.min(tl.where(votes == most, label, LARGEST), 1)  # the smallest of several
            tl.store(out + plane * length + point, best.to(out.dtype.element_ty), mask=exists)


@triton.jit
def corner_of(low, upper_weight, side):
    """Voxel and weight (points, corners) of the corners of cells along one axis."""
    weight = upper_weight.to(tl.float64)[:, None]
    return low[:, None] + side, tl.where(side != 0, weight, 1.0 - weight)


def labels_forward(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    plain = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    plain = (plain.float() if plain.dtype in (torch.float16, torch.bfloat16) else plain).contiguous()
    out = torch.empty([*labels.shape[:2], *displacement.shape[2:]], dtype=plain.dtype, device=labels.device)
    if out.numel():
        largest = float("inf") if plain.is_floating_point() else torch.iinfo(plain.dtype).max
        displacement = displacement.contiguous()
        matrix = displacement if affine is None else affine.contiguous()
        plan = walk(plain, displacement, affine, False, padding_mode, True, TILE)
        with on_device(plain):
            labels_kernel[plan.grid](
                *(plain, displacement, matrix, out, *plan.sizes),
                NEAREST=mode == "nearest",
                LARGEST=largest,
                ACC=in_triton(computed_in(displacement)),
                **plan.constants,
            )
    return out.view(torch.bool) if labels.dtype == torch.bool else out.to(labels.dtype)
