"""triton backend of the refinement of a dense displacement.

Three passes an item, as on the CPU: warp; value and gradient of the similarity by the warped image (triton_lncc);
then in one kernel the image's slope, the diffusion's gradient and Adam. That kernel reads the field as it was from a
copy, since programs move their voxels while others still look at them. The step count stays on the device.

Not verified on a GPU. Regularisation, betas and eps are compiled in. Memory beyond the state, all given back: the
copy, one item's displacement; the gradient by the warped image and lncc's saved maps and workspace; 8 bytes for every
TILE voxels. Of ``work`` only the first image is used. Results are always the same.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_adam import bits_of, moments, rates, rule
from .triton_lattice import diffusion_weights
from .triton_lattice_access import TILE, elements, in_triton, is_wide, number, read, three, whole, write
from .triton_lattice_kernels import voxel_of
from .triton_lattice_smoothness import diffusion_gradient, first, share, squared
from .triton_lncc import lncc_backward, lncc_forward
from .triton_plan import on_device, parts
from .triton_sampling import fill_samples
from .triton_sampling_cells import cell, cell_along


@triton.jit
def step_kernel(
    old, u, mean, square, largest, moving, by_warped, steps, sums, lr_bits, points, m0, m1, m2, n0, n1, n2,
    channels, count0, count1, count2, W0: tl.constexpr, W1: tl.constexpr, W2: tl.constexpr,
    REGULARISATION: tl.constexpr, FIRST: tl.constexpr, SECOND: tl.constexpr, KEEP: tl.constexpr,
    LOG1: tl.constexpr, LOG2: tl.constexpr, EPS: tl.constexpr, AMSGRAD: tl.constexpr, D: tl.constexpr,
    BP: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """One item: moves `u` and Adam's moments (D, points), leaves the diffusion of `old` as one sum a program."""
    m0, m1, m2, n0, n1, n2 = whole(m0), whole(m1), whole(m2), whole(n0), whole(n1), whole(n2)
    point = elements(tl.program_id(0), BP, WIDE)
    exists = point < points
    length, voxels = m0.to(tl.int64) * m1 * m2, n0.to(tl.int64) * n1 * n2
    iz, iy, ix, _ = voxel_of(point, m0, m1, m2)
    zero = tl.zeros(point.shape, ACC)
    uy, ux = (
        read(old + (D - 2) * length, point, exists, ACC),
        read(old + (D - 1) * length, point, exists, ACC),
    )
    y, wy, _ = cell_along(uy + iy.to(ACC), n1, "zeros", True)
    x, wx, _ = cell_along(ux + ix.to(ACC), n2, "zeros", True)
    uz, z, wz = zero, tl.zeros(y.shape, tl.int32), zero
    if D == 3:
        uz = read(old, point, exists, ACC)
        z, wz, _ = cell_along(uz + iz.to(ACC), n0, "zeros", True)
    gz, gy, gx = zero, zero, zero
    for c in range(channels):
        upstream = read(by_warped + c * length, point, exists, ACC)
        _, dz, dy, dx, _, _, _ = cell(moving + c * voxels, exists, z, y, x, wz, wy, wx, n0, n1, n2, D, ACC)
        gz += upstream * dz
        gy += upstream * dy
        gx += upstream * dx
    w0, w1, w2 = share(count0, W0), share(count1, W1), share(count2, W2)
    rate, root = rates(lr_bits, number(steps, tl.float64), LOG1, LOG2, ACC)
    diffusion = tl.zeros(point.shape, tl.float64)
    for k in tl.static_range(3 - D, 3):
        here, gradient = ux, gx
        if k == 0:
            here, gradient = uz, gz
        elif k == 1:
            here, gradient = uy, gy
        channel = (k - 3 + D) * length
        field = old + channel
        diffusion += w2 * squared(first(field, point, here, 1, ix, m2, exists, ACC))
        diffusion += w1 * squared(first(field, point, here, m2, iy, m1, exists, ACC))
        diffusion += w0 * squared(first(field, point, here, m1 * m2, iz, m0, exists, ACC))
        gradient += (2.0 * REGULARISATION) * diffusion_gradient(
            field, point, here, iz, iy, ix, m0, m1, m2, w0.to(ACC), w1.to(ACC), w2.to(ACC), exists, ACC
        )
        m, s = read(mean + channel, point, exists, ACC), read(square + channel, point, exists, ACC)
        m, s = moments(gradient, m, s, FIRST, SECOND, KEEP)
        write(mean + channel, point, m, exists)
        write(square + channel, point, s, exists)
        if AMSGRAD:
            most = read(largest + channel, point, exists, ACC)
            s = tl.where(most >= s, most, s)  # NaN stays
            write(largest + channel, point, s, exists)
        write(u + channel, point, here - rate * m / (tl.sqrt(s) / root + EPS), exists)
    tl.store(sums + tl.program_id(0), tl.sum(diffusion))


def refine_step(
    displacement: Tensor,
    fixed: Tensor,
    moving: Tensor,
    mean: Tensor,
    square: Tensor,
    largest: Tensor,
    step: Tensor,
    work: Tensor,
    window: list[int],
    regularisation: float,
    lr: float,
    betas: list[float],
    eps: float,
    amsgrad: bool,
) -> Tensor:
    """In place; every tensor contiguous and of one dtype, as RefineState holds them."""
    energy = torch.zeros(len(displacement), dtype=torch.float64, device=displacement.device)
    step += 1
    if displacement.numel() == 0:
        return energy
    ndim, out = displacement.shape[1], list(displacement.shape[2:])
    points = math.prod(out)
    counts, factors = diffusion_weights(out, ndim, [1.0] * ndim)
    similarity = (window, "same", True, 1e-5, "product", 0.0, 1e-6, False, True)
    warped, programs = work[0], parts(points, TILE)
    with on_device(displacement):
        downhill = torch.full((), -1.0, dtype=displacement.dtype, device=displacement.device)
        for b in range(len(displacement)):
            f, m, u = fixed[b : b + 1], moving[b : b + 1], displacement[b : b + 1]
            fill_samples(m, u, None, False, "bilinear", "zeros", True, warped, None)
            value, maps, counted = lncc_forward(f, warped, None, *similarity, False, True)
            saved = (False, True, False, True)
            _, by_warped = lncc_backward(downhill, f, warped, None, maps, counted, *similarity, *saved)
            sums = torch.empty(programs, dtype=torch.float64, device=displacement.device)
            step_kernel[(programs,)](
                *(u.clone(), u, mean[b], square[b], largest[b] if amsgrad else u, m, by_warped, step, sums),
                *(bits_of(lr), points, *three(out), *three(m.shape[2:]), m.shape[1], *counts),
                REGULARISATION=regularisation,
                AMSGRAD=amsgrad,
                D=ndim,
                BP=TILE,
                WIDE=is_wide(ndim * points),
                ACC=in_triton(displacement.dtype),
                **factors,
                **rule((betas[0], betas[1]), eps),
            )
            energy[b] = regularisation * sums.sum() - value
    return energy
