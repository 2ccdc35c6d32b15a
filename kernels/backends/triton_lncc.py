"""LNCC on the triton backend: images to sums of windows, to values and derivatives, to gradients.

Every axis takes one launch (triton_box.py); sums are float64 on their way through the axes in both directions:
with float32 between the launches the gradient's error on smooth images in [1, 2] was 2e-5, with float64 it is
5e-6, most of it from rounding the saved maps. The volume goes through in slabs of planes, so that what lies
between two launches stays small.

Memory beyond inputs and outputs: at most WORKSPACE bytes (more where a single plane needs more) for what lies
between the launches, 3 or 5 maps of derivatives where they are saved, and two float64 numbers a program. Without
saved maps the backward pass makes those of a slab at a time, RECOMPUTED bytes at most beside the workspace, or
one window of planes. Masks of one channel are copied for every channel, a byte a voxel; images that are not
contiguous are copied.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .triton_lncc_kernels import gradients_pass, windows_pass
from .triton_plan import Axis, Slab, axes_of, between, on_device, passes, plane_bytes, slabs, start_of, tail

WORKSPACE = 128 * 2**20
RECOMPUTED = 256 * 2**20


class Options(NamedTuple):
    window: list[int]
    padding: str
    squared: bool
    eps: float
    eps_mode: str
    numerator_eps: float
    flat_tol: float
    zero_rule: bool

    def constants(self) -> dict[str, Any]:
        """The formula's numbers. Compiled in: as arguments Triton would round them to float32."""
        voxels = math.prod(self.window)
        return {
            "INVERSE_N": 1 / voxels if voxels > 1 else 0.0,
            "EPS": float(self.eps),
            "NUMERATOR": float(self.numerator_eps),
            "FLAT": float(self.flat_tol),
            "ZERO_RULE": self.zero_rule,
            "MODE": self.eps_mode,
            "SQUARED": self.squared,
        }


class Volume(NamedTuple):
    """Contiguous images and mask, and how windows lie on them."""

    fixed: Tensor
    warped: Tensor
    mask: Tensor | None
    axes: list[Axis]

    @property
    def channels(self) -> int:
        return self.fixed.shape[0] * self.fixed.shape[1]

    @property
    def voxels(self) -> Slab:
        return Slab(0, self.channels, 0, self.axes[0].n_in)

    @property
    def windows(self) -> Slab:
        return Slab(0, self.channels, 0, self.axes[0].n_out)

    def traded(self) -> Volume:
        return self._replace(fixed=self.warped, warped=self.fixed)


def _volume(fixed: Tensor, warped: Tensor, mask: Tensor | None, options: Options) -> Volume:
    if mask is not None:
        mask = mask.expand(fixed.shape).contiguous().view(torch.uint8)
    axes = axes_of(list(fixed.shape[2:]), options.window, options.padding)
    return Volume(fixed.contiguous(), warped.contiguous(), mask, axes)


def _windows(
    volume: Volume,
    options: Options,
    whole: Slab,
    maps: Tensor,
    values: Tensor | None = None,
    totals: bool = False,
) -> tuple[Tensor, Tensor]:
    """Fills the maps (fields, channels of whole, planes of whole, y, x) and values (channels, z, y, x).

    Returns partial sums and counts, empty without totals.
    """
    axes, masked = volume.axes, volume.mask is not None
    z, y, x = axes
    fields = 6 if masked else 5
    cuts = list(slabs(whole, z.window, plane_bytes(axes, fields), WORKSPACE))
    plans = [passes(axes, slab) for slab in cuts]
    buffers = between(plans, fields, volume.fixed.device)
    programs = [plan[-1].programs if totals else 0 for plan in plans]
    partial = torch.empty(2, sum(programs), dtype=torch.float64, device=volume.fixed.device)
    in_plane, out_plane = y.n_in * x.n_in, y.n_out * x.n_out
    centre = [(w - 1) // 2 if options.padding == "valid" else 0 for w in options.window]
    centre = [0] * (3 - len(centre)) + centre
    constants = options.constants() | {"MASKED": masked, "MAPS": maps.shape[0], "TOTALS": totals}
    done = 0
    for slab, plan, count in zip(cuts, plans, programs, strict=True):
        # The first pass sees whole channels where it runs along z, else the slab's planes alone.
        start = start_of(slab._replace(z0=0) if plan[0].axis == 0 else slab, in_plane, z.n_in)
        f, w = tail(volume.fixed, start), tail(volume.warped, start)
        inside = f if volume.mask is None else tail(volume.mask, start)
        centres = (
            f if volume.mask is None else tail(volume.mask, start_of(slab._replace(z0=0), in_plane, z.n_in))
        )
        to_values = f if values is None else tail(values, start_of(slab, out_plane, z.n_out))
        within = start_of(slab, out_plane, whole.z1 - whole.z0, whole.z0, whole.c0)
        to_maps = tail(maps, within) if maps.shape[0] else f
        sums, counts = (partial[0, done:], partial[1, done:]) if totals else (f, f)
        done += count
        source, source_field = f, 0
        for step, launch in enumerate(plan):
            target, target_field = (f, 0) if launch.is_last else (buffers[step], launch.size)
            launch.launch(
                windows_pass,
                *(f, w, inside, source, source_field, target, target_field, centres),
                *(to_values, to_maps, maps.stride(0), sums, counts),
                *(slab.z1 - slab.z0, y.n_out, x.n_out, z.n_in, y.n_in, x.n_in),
                *(centre[0] + slab.z0, centre[1], centre[2]),
                VALUES=values is not None,
                **constants,
            )
            source, source_field = target, target_field
    return partial[0], partial[1]


def lncc_forward(
    fixed: Tensor,
    warped: Tensor,
    mask: Tensor | None,
    window: list[int],
    padding: str,
    squared: bool,
    eps: float,
    eps_mode: str,
    numerator_eps: float,
    flat_tol: float,
    zero_rule: bool,
    mean: bool,
    save_fixed: bool,
    save_warped: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """As the registered op. Maps: derivatives to the sums w, ww, fw, f, ff; to save for the fixed image alone,
    the images trade places (the measure is symmetric)."""
    options = Options(window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    with on_device(fixed):
        volume = _volume(fixed, warped, mask, options)
        out = [*fixed.shape[:2], *(axis.n_out for axis in volume.axes[5 - fixed.ndim :])]
        values = None if mean else fixed.new_empty(out)
        count = 5 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
        maps = torch.empty([count, *out], dtype=dtype, device=fixed.device)
        if math.prod(out) == 0:
            nothing = torch.zeros((), dtype=torch.float64, device=fixed.device)
            return (nothing.to(dtype) if values is None else values), maps, nothing
        if save_fixed and not save_warped:
            volume = volume.traded()
        sums, counts = _windows(volume, options, volume.windows, maps, values, totals=True)
        counted = counts.sum()
        if values is None:
            return (sums.sum() / counted.clamp(min=1)).to(dtype), maps, counted
        return values, maps, counted


def lncc_backward(
    grad: Tensor,
    fixed: Tensor,
    warped: Tensor,
    mask: Tensor | None,
    adjoints: Tensor,
    count: Tensor,
    window: list[int],
    padding: str,
    squared: bool,
    eps: float,
    eps_mode: str,
    numerator_eps: float,
    flat_tol: float,
    zero_rule: bool,
    mean: bool,
    saved_fixed: bool,
    saved_warped: bool,
    want_fixed: bool,
    want_warped: bool,
) -> tuple[Tensor, Tensor]:
    options = Options(window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    nothing = fixed.new_empty(0)
    if not (want_fixed or want_warped):
        return nothing, nothing
    grad_fixed = torch.empty(fixed.shape, dtype=fixed.dtype, device=fixed.device) if want_fixed else nothing
    grad_warped = torch.empty(fixed.shape, dtype=fixed.dtype, device=fixed.device) if want_warped else nothing
    if fixed.numel() == 0:
        return grad_fixed, grad_warped
    both = want_fixed and want_warped
    # "image" gets a gradient: the warped one, or the fixed one when it is the only one that wants it.
    swap = want_fixed and not want_warped
    with on_device(fixed):
        volume = _volume(fixed, warped, mask, options)
        to_image, to_partner = (grad_fixed, nothing) if swap else (grad_warped, grad_fixed)
        if swap:
            volume = volume.traded()
        saved = (saved_fixed or not want_fixed) and (saved_warped or not want_warped)
        places = (3, 4, 2) if swap and adjoints.shape[0] == 5 else (0, 1, 2)
        gradient = Gradient(volume, options, both, None if mean else grad.contiguous(), grad, count)
        if saved:
            gradient.run(adjoints, volume.windows, places, volume.voxels, to_image, to_partner)
        else:
            gradient.recompute(to_image, to_partner)
    return grad_fixed, grad_warped


class Gradient(NamedTuple):
    """What the gradient of an image (the second of the volume), or of both, is made of."""

    volume: Volume
    options: Options
    both: bool
    upstream: Tensor | None  # a map, or None when the mean was asked for
    grad: Tensor
    counted: Tensor

    def recompute(self, to_image: Tensor, to_partner: Tensor) -> None:
        """Slab by slab: the maps of the windows that see the slab, then its gradient."""
        z, y, x = self.volume.axes
        back = z.adjoint()
        fields = 5 if self.both else 3
        dtype = torch.promote_types(self.volume.fixed.dtype, torch.float32)
        plane = y.n_out * x.n_out
        size = fields * dtype.itemsize * plane
        budget = max(size, RECOMPUTED - (z.window - 1) * size)
        for slab in slabs(self.volume.voxels, back.window, size, budget):
            p0 = max(0, slab.z0 + back.first)
            p1 = min(z.n_out, slab.z1 - 1 + back.first + back.window)
            windows = Slab(slab.c0, slab.c1, p0, p1)
            shape = [fields, slab.c1 - slab.c0, p1 - p0, y.n_out, x.n_out]
            maps = torch.empty(shape, dtype=dtype, device=self.volume.fixed.device)
            _windows(self.volume, self.options, windows, maps)
            self.run(maps, windows, (0, 1, 2), slab, to_image, to_partner)

    def run(
        self,
        maps: Tensor,
        windows: Slab,
        places: tuple[int, int, int],
        whole: Slab,
        to_image: Tensor,
        to_partner: Tensor,
    ) -> None:
        """Gradient of the voxels in `whole` from maps that hold the windows in `windows`."""
        volume, both = self.volume, self.both
        z, y, x = (axis.adjoint() for axis in volume.axes)
        axes = [Axis(z.window, z.first - windows.z0, windows.z1 - windows.z0, z.n_out), y, x]
        fields = 5 if both else 3
        cuts = list(slabs(whole, z.window, plane_bytes(axes, fields), WORKSPACE))
        plans = [passes(axes, slab) for slab in cuts]
        buffers = between(plans, fields, maps.device)
        in_plane, out_plane = y.n_in * x.n_in, y.n_out * x.n_out
        for slab, plan in zip(cuts, plans, strict=True):
            along_z = plan[0].axis == 0
            seen = slab._replace(z0=windows.z0) if along_z else slab
            source = tail(maps, start_of(seen, in_plane, windows.z1 - windows.z0, windows.z0, windows.c0))
            upstream = source
            if self.upstream is not None:
                upstream = tail(self.upstream, start_of(seen, in_plane, z.n_in))
            start = start_of(slab, out_plane, z.n_out)
            image, partner = tail(volume.warped, start), tail(volume.fixed, start)
            inside = image if volume.mask is None else tail(volume.mask, start)
            field = [place * maps.stride(0) for place in (*places, 3, 4)]
            for step, launch in enumerate(plan):
                target, target_field = (source, 0) if launch.is_last else (buffers[step], launch.size)
                launch.launch(
                    gradients_pass,
                    *(source, *field, upstream, target, target_field, image, partner, inside),
                    *(tail(to_image, start), tail(to_partner, start) if both else image),
                    *(self.grad, self.counted),
                    MASKED=volume.mask is not None,
                    BOTH=both,
                    MEAN=self.upstream is None,
                )
                source, field = target, [k * target_field for k in range(5)]
