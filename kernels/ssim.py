"""Structural similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import ssim as reference
from .ops import op
from .windows import SAVED_BYTES, check_windows, map_shape


@op("ssim_forward")
def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    """Value or map; maps of derivatives for the images to save for. ``weights``: all axes' windows in a row."""
    run = registry.implementation("ssim_forward", backend)
    return run(fixed, warped, window, weights, c1, c2, padding, mean, save_fixed, save_warped)


@_forward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    out = map_shape(fixed, window, padding)
    wide = torch.promote_types(fixed.dtype, torch.float32)
    value = fixed.new_empty((), dtype=wide) if mean else fixed.new_empty(out)
    return value, fixed.new_empty([adjoint_maps(save_fixed, save_warped), *out], dtype=wide)


@op("ssim_backward")
def _backward(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("ssim_backward", backend)
    options = (window, weights, c1, c2, padding, mean, saved_fixed, saved_warped)
    return run(grad, fixed, warped, adjoints, *options, want_fixed, want_warped)


@_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        fixed.new_empty(fixed.shape if want_fixed else (0,)),
        warped.new_empty(warped.shape if want_warped else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    fixed, warped, *ctx.options, ctx.backend = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(fixed, warped, output[1])


def _grad(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 9
    if grad is None:
        return None, None, *nothing
    want_fixed, want_warped = ctx.needs_input_grad[:2]
    grad_fixed, grad_warped = _backward(
        grad, *ctx.saved_tensors, *ctx.options, want_fixed, want_warped, ctx.backend
    )
    return grad_fixed if want_fixed else None, grad_warped if want_warped else None, *nothing


_forward.register_autograd(_grad, setup_context=_setup)


def ssim(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int] = 11,
    *,
    sigma: float | Sequence[float] = 1.5,
    data_range: float = 1.0,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "same",
    reduction: str = "mean",
    recompute: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Structural similarity of two images in Gaussian windows (Wang et al. 2004); larger is more alike.

    With E the Gaussian-weighted sum over a window, m_f = E f, m_w = E w, v_f = E ff - m_f^2,
    v_w = E ww - m_w^2 and c = E fw - m_f m_w::

        value = (2 m_f m_w + C1) (2 c + C2) / ((m_f^2 + m_w^2 + C1) (v_f + v_w + C2))
        C1 = (k1 data_range)^2, C2 = (k2 data_range)^2

    Args:
        fixed: (B, C, H, W) or (B, C, D, H, W), floating point, any strides. Channels count like batch items.
        warped: same shape and dtype.
        window: taps along every axis, or one number an axis; odd or even, from 1.
        sigma: standard deviation of the Gaussian in voxels, or one number an axis; above 0. The weights of an
            axis sum to 1.
        data_range: largest possible difference of intensities, above 0.
        k1, k2: constants of the formula, above 0.
        padding: "same": one window a voxel, zeros outside; "valid": full windows only.
        reduction: "mean" or "none", the map.
        recompute: False saves the maps of derivatives for the backward pass, True computes them again from
            the images; None saves them while they take at most 512 MiB.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar (float32 for half types; 0 for empty images), or with reduction "none" (B, C, *windows) in
        the images' dtype. Differentiable once in both images. Results do not depend on the number of threads.

    Memory beyond inputs and outputs: a few megabytes a thread; for the backward pass 3 volumes of the windows'
    size (gradient to one image) or 4 (both), none with ``recompute``.

    Raises:
        ValueError: a shape, dtype or option does not fit; a window larger than the volume with "valid".
    """
    windows, weights = _check(fixed, warped, window, sigma, data_range, k1, k2, padding, reduction)
    c1, c2 = (k1 * data_range) ** 2, (k2 * data_range) ** 2
    chosen = registry.choose("ssim", fixed.device, backend)
    if chosen == "reference":
        return reference.ssim(fixed, warped, weights, c1, c2, padding, reduction, recompute)
    wants = [torch.is_grad_enabled() and image.requires_grad for image in (fixed, warped)]
    if recompute is None:
        item = max(fixed.element_size(), 4)
        recompute = adjoint_maps(*wants) * math.prod(map_shape(fixed, windows, padding)) * item > SAVED_BYTES
    save_fixed, save_warped = (want and not recompute for want in wants)
    flat = [weight for line in weights for weight in line]
    mean = reduction == "mean"
    return _forward(fixed, warped, windows, flat, c1, c2, padding, mean, save_fixed, save_warped, chosen)[0]


def adjoint_maps(fixed: bool, warped: bool) -> int:
    """Volumes that the backward pass needs: the derivatives by E ff and E ww are one."""
    return 0 if not (fixed or warped) else 4 if fixed and warped else 3


def gaussian(window: int, sigma: float) -> list[float]:
    """``window`` taps of a Gaussian around their middle, their sum 1."""
    taps = [math.exp(-((i - (window - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(window)]
    total = math.fsum(taps)
    return [tap / total for tap in taps]


def _check(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int],
    sigma: float | Sequence[float],
    data_range: float,
    k1: float,
    k2: float,
    padding: str,
    reduction: str,
) -> tuple[list[int], list[list[float]]]:
    """Window and weights along every axis, after checking everything."""
    windows = check_windows("ssim", fixed, warped, window, padding, reduction)
    ndim = len(windows)
    for name, number in (("data_range", data_range), ("k1", k1), ("k2", k2)):
        if not 0 < number < math.inf:
            raise ValueError(f"ssim: {name} must be above 0 and finite, got {number}")
    sigmas = [float(sigma)] * ndim if isinstance(sigma, (int, float)) else [float(s) for s in sigma]
    if len(sigmas) != ndim or not all(0 < s < math.inf for s in sigmas):
        raise ValueError(f"ssim: sigma must be one or {ndim} numbers above 0, got {sigma}")
    return windows, [gaussian(w, s) for w, s in zip(windows, sigmas, strict=True)]
