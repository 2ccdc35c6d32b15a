"""SSIM on the triton backend: one launch an axis, slab by slab of planes, as for LNCC (triton_lncc.py).

Sums are float64 on their way through the axes. Memory beyond inputs and outputs: at most WORKSPACE bytes (more
where a single plane needs more) between the launches, 3 or 4 saved maps of derivatives, a float64 number a program.
Without saved maps the backward pass makes those of a slab at a time, RECOMPUTED bytes at most or one window of
planes. The weights go to the device once a process and setting, and stay there; images that are not contiguous are
copied.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from .triton_plan import Axis, Slab, axes_of, between, on_device, passes, plane_bytes, slabs, start_of, tail
from .triton_ssim_kernels import ssim_gradients_pass, ssim_windows_pass

WORKSPACE = 128 * 2**20
RECOMPUTED = 256 * 2**20
BLOCK = 32  # outputs along the axis in a tile: neighbours share their taps in the cache


@functools.cache
def _on_device(weights: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(weights, dtype=torch.float64, device=device)


class Ssim(NamedTuple):
    """Contiguous images, how windows lie on them, their weights along z, y and x, and the constants."""

    fixed: Tensor
    warped: Tensor
    axes: list[Axis]
    weights: list[tuple[float, ...]]
    c1: float
    c2: float

    @property
    def channels(self) -> int:
        return self.fixed.shape[0] * self.fixed.shape[1]

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.fixed.dtype, torch.float32)

    def windows(
        self, whole: Slab, maps: Tensor, values: Tensor | None = None, totals: bool = False
    ) -> Tensor:
        """Fills the maps (fields, channels of whole, planes of whole, y, x) and values (channels, z, y, x).

        Returns partial sums, none without totals.
        """
        z, y, x = self.axes
        cuts = list(slabs(whole, 1, plane_bytes(self.axes, 5), WORKSPACE))
        plans = [passes(self.axes, slab, BLOCK) for slab in cuts]
        buffers = between(plans, 5, self.fixed.device)
        weights = [_on_device(line, self.fixed.device) for line in self.weights]
        programs = [plan[-1].programs if totals else 0 for plan in plans]
        partial = torch.empty(sum(programs), dtype=torch.float64, device=self.fixed.device)
        in_plane, out_plane, done = y.n_in * x.n_in, y.n_out * x.n_out, 0
        for slab, plan, count in zip(cuts, plans, programs, strict=True):
            # The first pass sees whole channels where it runs along z, else the slab's planes alone.
            start = start_of(slab._replace(z0=0) if plan[0].axis == 0 else slab, in_plane, z.n_in)
            f, w = tail(self.fixed, start), tail(self.warped, start)
            to_values = f if values is None else tail(values, start_of(slab, out_plane, z.n_out))
            within = start_of(slab, out_plane, whole.z1 - whole.z0, whole.z0, whole.c0)
            to_maps = tail(maps, within) if maps.shape[0] else f
            source, source_field = f, 0
            for step, launch in enumerate(plan):
                target, target_field = (f, 0) if launch.is_last else (buffers[step], launch.size)
                launch.launch(
                    ssim_windows_pass,
                    *(f, w, weights[launch.axis], source, source_field, target, target_field),
                    *(to_values, to_maps, maps.stride(0), partial[done:] if totals else f, launch.block),
                    TAPS=launch.window,
                    VALUES=values is not None,
                    MAPS=maps.shape[0],
                    TOTALS=totals,
                    C1=self.c1,
                    C2=self.c2,
                )
                source, source_field = target, target_field
            done += count
        return partial

    def gradients(
        self,
        maps: Tensor,
        windows: Slab,
        places: tuple[int, int, int],
        whole: Slab,
        grad: Tensor,
        mean: bool,
        to_image: Tensor,
        to_partner: Tensor | None,
    ) -> None:
        """Gradient of the voxels in `whole` to the warped image, and to its partner where that is wanted.

        The maps hold the windows in `windows`.
        """
        z, y, x = (axis.adjoint() for axis in self.axes)
        axes = [Axis(z.window, z.first - windows.z0, windows.z1 - windows.z0, z.n_out), y, x]
        fields = 3 if to_partner is None else 4
        cuts = list(slabs(whole, 1, plane_bytes(axes, fields), WORKSPACE))
        plans = [passes(axes, slab, BLOCK) for slab in cuts]
        buffers = between(plans, fields, maps.device)
        weights = [_on_device(line[::-1], maps.device) for line in self.weights]
        in_plane, out_plane = y.n_in * x.n_in, y.n_out * x.n_out
        count = self.channels * math.prod(axis.n_out for axis in self.axes)
        for slab, plan in zip(cuts, plans, strict=True):
            seen = slab._replace(z0=windows.z0) if plan[0].axis == 0 else slab
            source = tail(maps, start_of(seen, in_plane, windows.z1 - windows.z0, windows.z0, windows.c0))
            upstream = source if mean else tail(grad, start_of(seen, in_plane, z.n_in))
            start = start_of(slab, out_plane, z.n_out)
            image, partner = tail(self.warped, start), tail(self.fixed, start)
            field = [place * maps.stride(0) for place in (*places, 3)]
            for step, launch in enumerate(plan):
                target, target_field = (source, 0) if launch.is_last else (buffers[step], launch.size)
                launch.launch(
                    ssim_gradients_pass,
                    *(source, *field, upstream, weights[launch.axis], target, target_field, image, partner),
                    *(tail(to_image, start), image if to_partner is None else tail(to_partner, start)),
                    *(grad, count, launch.block),
                    TAPS=launch.window,
                    BOTH=to_partner is not None,
                    MEAN=mean,
                )
                source, field = target, [k * target_field for k in range(4)]

    def recomputed(self, grad: Tensor, mean: bool, to_image: Tensor, to_partner: Tensor | None) -> None:
        """Slab by slab: the maps of the windows that see the slab, then its gradient."""
        z, y, x = self.axes
        back = z.adjoint()
        fields = 3 if to_partner is None else 4
        size = fields * self.wide.itemsize * y.n_out * x.n_out
        budget = max(size, RECOMPUTED - (z.window - 1) * size)
        for slab in slabs(Slab(0, self.channels, 0, z.n_in), 1, size, budget):
            p0, p1 = max(0, slab.z0 + back.first), min(z.n_out, slab.z1 - 1 + back.first + back.window)
            windows = Slab(slab.c0, slab.c1, p0, p1)
            shape = [fields, slab.c1 - slab.c0, p1 - p0, y.n_out, x.n_out]
            maps = torch.empty(shape, dtype=self.wide, device=self.fixed.device)
            self.windows(windows, maps)
            self.gradients(maps, windows, (0, 1, 2), slab, grad, mean, to_image, to_partner)


def _ssim(
    fixed: Tensor,
    warped: Tensor,
    window: list[int],
    weights: list[float],
    c1: float,
    c2: float,
    padding: str,
    swap: bool,
) -> Ssim:
    axes = axes_of(list(fixed.shape[2:]), window, padding, cut=False)
    taps = iter(weights)
    lines = [tuple(itertools.islice(taps, w)) for w in window]
    lines = [(1.0,)] * (3 - len(lines)) + lines
    f, w = fixed.contiguous(), warped.contiguous()
    return Ssim(*((w, f) if swap else (f, w)), axes, lines, c1, c2)


def ssim_forward(
    fixed: Tensor,
    warped: Tensor,
    window: list[int],
    weights: list[float],
    c1: float,
    c2: float,
    padding: str,
    mean: bool,
    save_fixed: bool,
    save_warped: bool,
) -> tuple[Tensor, Tensor]:
    """As the registered op. Maps: derivatives to the sums w, ff or ww, fw, f; to save for the fixed image alone,
    the images trade places (the measure is symmetric)."""
    with on_device(fixed):
        run = _ssim(fixed, warped, window, weights, c1, c2, padding, save_fixed and not save_warped)
        out = [*fixed.shape[:2], *(axis.n_out for axis in run.axes[5 - fixed.ndim :])]
        values = None if mean else fixed.new_empty(out)
        count = 4 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
        maps = torch.empty([count, *out], dtype=run.wide, device=fixed.device)
        if math.prod(out) == 0:
            return (torch.zeros((), dtype=run.wide, device=fixed.device) if values is None else values), maps
        sums = run.windows(Slab(0, run.channels, 0, run.axes[0].n_out), maps, values, totals=mean)
        return ((sums.sum() / math.prod(out)).to(run.wide) if values is None else values), maps


def ssim_backward(
    grad: Tensor,
    fixed: Tensor,
    warped: Tensor,
    adjoints: Tensor,
    window: list[int],
    weights: list[float],
    c1: float,
    c2: float,
    padding: str,
    mean: bool,
    saved_fixed: bool,
    saved_warped: bool,
    want_fixed: bool,
    want_warped: bool,
) -> tuple[Tensor, Tensor]:
    def room(want: bool) -> Tensor:
        return torch.empty(fixed.shape if want else (0,), dtype=fixed.dtype, device=fixed.device)

    grad_fixed, grad_warped = room(want_fixed), room(want_warped)
    if fixed.numel() == 0 or not (want_fixed or want_warped):
        return grad_fixed, grad_warped
    swap = want_fixed and not want_warped
    with on_device(fixed):
        run = _ssim(fixed, warped, window, weights, c1, c2, padding, swap)
        to_image, to_partner = (
            (grad_fixed, None) if swap else (grad_warped, grad_fixed if want_fixed else None)
        )
        upstream = grad.contiguous()
        if (saved_fixed or not want_fixed) and (saved_warped or not want_warped):
            places = (3, 1, 2) if swap and adjoints.shape[0] == 4 else (0, 1, 2)
            windows = Slab(0, run.channels, 0, run.axes[0].n_out)
            voxels = Slab(0, run.channels, 0, run.axes[0].n_in)
            run.gradients(adjoints, windows, places, voxels, upstream, mean, to_image, to_partner)
        else:
            run.recomputed(upstream, mean, to_image, to_partner)
    return grad_fixed, grad_warped
