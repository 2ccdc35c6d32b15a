"""cpu backend of ssim. Half types are computed in float32 and converted back."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads


def _shape(
    images: Tensor, window: list[int], weights: list[float], c1: float, c2: float, padding: str
) -> object:
    sizes = (images.shape[0], images.shape[1], list(images.shape[2:]))
    return native.load_cpu().SsimShape(*sizes, window, weights, c1, c2, padding == "valid")


def _out(images: Tensor, window: list[int], padding: str) -> list[int]:
    sizes = zip(images.shape[2:], window, strict=True)
    return [*images.shape[:2], *(n - k + 1 if padding == "valid" else n for n, k in sizes)]


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
    """As declared in csrc/cpu/ops.h; to save for the fixed image alone, the images trade places."""
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    f, w = fixed.to(dtype).contiguous(), warped.to(dtype).contiguous()
    out = _out(f, window, padding)
    values = None if mean else output(out, dtype)
    count = 4 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
    maps = output([count, *out], dtype)
    images = [address(f), address(w)]
    if save_fixed and not save_warped:
        images.reverse()  # the measure is symmetric
    total = function("ssim_forward", dtype)(
        _shape(f, window, weights, c1, c2, padding),
        *images,
        address(values),
        [address(m) for m in maps],
        threads(),
    )
    if values is not None:
        return values.to(fixed.dtype), maps
    windows = torch.Size(out).numel()
    return f.new_tensor(total / max(windows, 1)), maps


def ssim_backward(
    grad: Tensor,
    fixed: Tensor,
    warped: Tensor,
    maps: Tensor,
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
    """Where the maps are not there, they are made again, one channel of one item at a time."""
    dtype = torch.promote_types(fixed.dtype, torch.float32)
    f, w = fixed.to(dtype).contiguous(), warped.to(dtype).contiguous()
    windows = torch.Size(_out(f, window, padding)).numel()
    upstream = None if mean else grad.to(dtype).contiguous()
    scale = grad.item() / max(windows, 1) if mean else 1.0
    grad_f = output(f.shape, dtype) if want_fixed else None
    grad_w = output(w.shape, dtype) if want_warped else None

    def run(part: Callable[[Tensor], Tensor], derivatives: list[Tensor]) -> None:
        images = [address(part(x)) for x in (f, w)]
        targets = [0 if x is None else address(part(x)) for x in (grad_f, grad_w)]
        if want_fixed and not want_warped:
            images.reverse()
            targets.reverse()
            if len(derivatives) == 4:
                derivatives = [derivatives[3], derivatives[1], derivatives[2]]
        function("ssim_backward", dtype)(
            _shape(part(f), window, weights, c1, c2, padding),
            0 if upstream is None else address(part(upstream)),
            scale,
            *images,
            [address(d) for d in derivatives],
            *targets,
            threads(),
        )

    if (saved_fixed or not want_fixed) and (saved_warped or not want_warped):
        run(lambda x: x, [*maps])
    else:
        options = (window, weights, c1, c2, padding, True, want_fixed, want_warped)
        for item, channel in itertools.product(range(f.shape[0]), range(f.shape[1])):
            index = (slice(item, item + 1), slice(channel, channel + 1))
            run(lambda x, index=index: x[index], [*ssim_forward(f[index], w[index], *options)[1]])  # type: ignore[misc]
    return (
        fixed.new_empty(0) if grad_f is None else grad_f.to(fixed.dtype),
        warped.new_empty(0) if grad_w is None else grad_w.to(warped.dtype),
    )


registry.register("ssim_forward", "cpu", ssim_forward)
registry.register("ssim_backward", "cpu", ssim_backward)
registry.register("ssim", "cpu", ssim_forward)
