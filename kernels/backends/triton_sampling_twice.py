"""Second derivatives of grid_sample and warp in Triton: the adjoint of sampling's adjoint.

With t the direction that arrives at the gradient of the coordinates and H the image that arrives at the gradient of
the image, it is the derivative of: sum over points and channels of grad (H(x) + t . dI/dx (x)).

Not verified on a GPU. Memory and determinism as in triton_sampling.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_lattice_access import computed_in, elements, in_triton, number, read, whole, write
from .triton_plan import on_device
from .triton_sampling import Scatter, fill_samples, largest, walk
from .triton_sampling_cells import (
    along_column,
    along_row,
    cell,
    cell_along,
    channels_of,
    located,
    passed,
    turned,
    unnormalised_slope,
    whole_points,
    write_slopes,
)
from .triton_sampling_kernels import add_rows, add_shifts, spread


@triton.jit
def direction(
    tangent, tangent_affine, affine, point, exists, points, pz, py, px, n0, n1, n2,
    D: tl.constexpr, NORMALISED: tl.constexpr, ALIGN: tl.constexpr, AFFINE: tl.constexpr, MOVED: tl.constexpr,
    TURNED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """t in voxel coordinates before padding, and in those of the displacement. What arrives at the affine's gradient
    comes in through the points that it was multiplied with."""
    zero = tl.zeros(point.shape, ACC)
    uz, uy, ux = zero, zero, zero
    tz, ty, tx = zero, zero, zero
    if MOVED:
        if NORMALISED:
            row = tangent + point * D
            tx = read(row, 0, exists, ACC) * unnormalised_slope(n2, ALIGN, ACC)
            ty = read(row, 1, exists, ACC) * unnormalised_slope(n1, ALIGN, ACC)
            if D == 3:
                tz = read(row, 2, exists, ACC) * unnormalised_slope(n0, ALIGN, ACC)
        else:
            uz, uy, ux = channels_of(tangent, point, exists, points, D, ACC)
            tz, ty, tx = turned(affine, uz, uy, ux, AFFINE, D, ACC)
    if TURNED:
        if D == 3:
            tz += along_row(tangent_affine, 0, pz, py, px, D, ACC) + number(tangent_affine + 3, ACC)
        row_y = along_row(tangent_affine, D - 2, pz, py, px, D, ACC)
        ty += row_y + number(tangent_affine + (D - 2) * (D + 1) + D, ACC)
        row_x = along_row(tangent_affine, D - 1, pz, py, px, D, ACC)
        tx += row_x + number(tangent_affine + (D - 1) * (D + 1) + D, ACC)
    return tz, ty, tx, uz, uy, ux


@triton.jit
def along(t, derivative):
    """Their product; padding's zero slope has made the direction 0, and the image may be infinite there."""
    return tl.where(t != 0, t * derivative, 0.0)


@triton.jit
def sample_twice_kernel(
    tangent_image, tangent, tangent_affine, grad, image, coordinates, affine,
    to_grad, to_image, to_coordinates, partial, scale, blocks, points, m1, m2, n0, n1, n2, channels,
    D: tl.constexpr, NORMALISED: tl.constexpr, PADDING: tl.constexpr, ALIGN: tl.constexpr,
    AFFINE: tl.constexpr, SEEN: tl.constexpr, MOVED: tl.constexpr, TURNED: tl.constexpr,
    WANT_GRAD: tl.constexpr, WANT_IMAGE: tl.constexpr, WANT_COORDINATES: tl.constexpr,
    WANT_AFFINE: tl.constexpr, FIXED: tl.constexpr, BP: tl.constexpr, WIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """SEEN, MOVED, TURNED: something arrives at the gradient of the image, the coordinates, the affine."""
    n0, n1, n2 = whole(n0), whole(n1), whole(n2)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    point = elements(tl.program_id(0) % blocks, BP, WIDE)
    exists = point < points
    length, voxels = whole_points(points), n0.to(tl.int64) * n1 * n2
    matrix, second_matrix = affine + item * (D * (D + 1)), tangent_affine + item * (D * (D + 1))
    unit = tl.full((), 1.0, tl.float64)
    if FIXED:
        unit = tl.load(scale)
    z, y, x, pz, py, px = located(
        coordinates + item * D * length, matrix, point, exists, points, m1, m2, n0, n1, n2,
        D, NORMALISED, ALIGN, AFFINE, ACC,
    )  # fmt: skip
    y, wy, sy = cell_along(y, n1, PADDING, ALIGN)
    x, wx, sx = cell_along(x, n2, PADDING, ALIGN)
    z, wz, sz = cell_along(z, n0, PADDING, ALIGN)
    if D == 2:
        z = tl.zeros(y.shape, tl.int32)
    tz, ty, tx, uz, uy, ux = direction(
        tangent + item * D * length, second_matrix, matrix, point, exists, points, pz, py, px, n0, n1, n2,
        D, NORMALISED, ALIGN, AFFINE, MOVED, TURNED, ACC,
    )  # fmt: skip
    tz, ty, tx = passed(tz, sz), passed(ty, sy), passed(tx, sx)
    zero = tl.zeros(y.shape, ACC)
    gz, gy, gx, once_z, once_y, once_x = zero, zero, zero, zero, zero, zero
    for c in range(channels):
        plane = item * channels + c
        a = read(grad + plane * length, point, exists, ACC)
        _, dz, dy, dx, zy, zx, yx = cell(
            image + plane * voxels, exists, z, y, x, wz, wy, wx, n0, n1, n2, D, ACC
        )
        value = along(tz, dz) + along(ty, dy) + along(tx, dx)
        once_z += a * dz
        once_y += a * dy
        once_x += a * dx
        gz += a * (ty * zy + tx * zx)  # the pure second derivatives inside a cell are 0
        gy += a * (tz * zy + tx * yx)
        gx += a * (tz * zx + ty * yx)
        if SEEN:
            v, dz, dy, dx, _, _, _ = cell(
                tangent_image + plane * voxels, exists, z, y, x, wz, wy, wx, n0, n1, n2, D, ACC
            )
            value += v
            gz += a * dz
            gy += a * dy
            gx += a * dx
        if WANT_GRAD:
            write(to_grad + plane * length, point, value, exists)
        if WANT_IMAGE:
            spread(
                to_image + plane * voxels, exists, z, y, x, zero, a * tz, a * ty, a * tx, wz, wy, wx, n0, n1, n2,
                unit, D, FIXED,
            )  # fmt: skip
    gz, gy, gx = passed(gz, sz), passed(gy, sy), passed(gx, sx)
    once_z, once_y, once_x = passed(once_z, sz), passed(once_y, sy), passed(once_x, sx)
    if WANT_COORDINATES:
        to = to_coordinates + item * D * length
        if TURNED:
            rz = zero
            if D == 3:
                rz = along_column(matrix, 0, gz, gy, gx, D, ACC)
                rz += along_column(second_matrix, 0, once_z, once_y, once_x, D, ACC)
            ry = along_column(matrix, D - 2, gz, gy, gx, D, ACC)
            ry += along_column(second_matrix, D - 2, once_z, once_y, once_x, D, ACC)
            rx = along_column(matrix, D - 1, gz, gy, gx, D, ACC)
            rx += along_column(second_matrix, D - 1, once_z, once_y, once_x, D, ACC)
            write_slopes(
                to, matrix, point, exists, points, rz, ry, rx, n0, n1, n2, D, False, ALIGN, False, ACC
            )
        else:
            write_slopes(
                to, matrix, point, exists, points, gz, gy, gx, n0, n1, n2, D, NORMALISED, ALIGN, AFFINE, ACC
            )
    if WANT_AFFINE:
        sums = add_shifts(add_rows(tl.zeros((16,), tl.float64), gz, gy, gx, pz, py, px, D), gz, gy, gx, D)
        if MOVED:
            sums = add_rows(sums, once_z, once_y, once_x, uz, uy, ux, D)
        entry = tl.arange(0, 16)
        target = partial + tl.program_id(0).to(tl.int64) * (D * (D + 1))
        tl.store(target + entry, sums, mask=entry < D * (D + 1))


def sample_double_backward(
    tangent_image: Tensor | None,
    tangent_coordinates: Tensor | None,
    tangent_affine: Tensor | None,
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_grad: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype, ndim, device = computed_in(image, coordinates), image.ndim - 2, image.device
    like = coordinates if affine is None else affine

    def room(tensor: Tensor, want: bool) -> Tensor:
        return torch.zeros(tensor.shape if want else (0,), dtype=tensor.dtype, device=device)

    to_grad, to_coordinates = room(grad, want_grad), room(coordinates, want_coordinates)
    nearest = mode == "nearest"  # linear in the image, and constant in the coordinates
    if nearest or grad.numel() == 0:
        if nearest and want_grad and tangent_image is not None:
            options = (normalised, mode, padding_mode, align_corners)
            fill_samples(tangent_image.to(dtype), coordinates, affine, *options, to_grad, None)
        return to_grad, room(image, want_image), to_coordinates, room(like, want_affine)
    want_affine = want_affine and affine is not None
    grad, image, coordinates = grad.contiguous(), image.contiguous(), coordinates.contiguous()
    matrix = image if affine is None else affine.contiguous()
    arriving = [
        image if t is None else t.contiguous() for t in (tangent_image, tangent_coordinates, tangent_affine)
    ]
    moved, turned_ = tangent_coordinates is not None, tangent_affine is not None

    def bound() -> Tensor:
        """The direction's magnitude in voxels, as in the kernel, on either side of each of ndim axes."""
        length = torch.zeros((), dtype=torch.float64, device=device)
        if tangent_coordinates is not None:
            scale = max(image.shape[2:]) / 2 if normalised else 1.0
            length = length + scale * largest(tangent_coordinates)
            length = length if affine is None else length * ndim * largest(affine)
        if tangent_affine is not None:
            places = largest(coordinates) + max(coordinates.shape[2:])
            length = length + largest(tangent_affine) * (ndim * places + 1)
        return ndim * length * largest(grad) * (grad.numel() // (grad.shape[0] * grad.shape[1]))

    with on_device(image):
        plan = walk(image, coordinates, affine, normalised, padding_mode, align_corners)
        scatter = Scatter(image, dtype, bound) if want_image else None
        entries = ndim * (ndim + 1) if want_affine else 0
        partial = torch.empty(plan.items, plan.blocks, entries, dtype=torch.float64, device=device)
        sample_twice_kernel[plan.grid](
            *(*arriving, grad, image, coordinates, matrix, to_grad),
            *(image if scatter is None else scatter.target, to_coordinates, partial),
            *(image if scatter is None else scatter.scale, *plan.sizes),
            SEEN=tangent_image is not None,
            MOVED=moved,
            TURNED=turned_,
            WANT_GRAD=want_grad,
            WANT_IMAGE=scatter is not None and (moved or turned_),
            WANT_COORDINATES=want_coordinates,
            WANT_AFFINE=want_affine,
            FIXED=scatter is not None and scatter.fixed,
            ACC=in_triton(dtype),
            **plan.constants,
        )
        to_image = image.new_empty(0) if scatter is None else scatter.result(image.dtype)
        to_affine = partial.sum(1).view(like.shape).to(like.dtype) if want_affine else room(like, False)
        return to_grad, to_image, to_coordinates, to_affine
