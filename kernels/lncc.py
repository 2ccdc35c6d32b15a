"""Local normalised cross-correlation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .backends.reference import lncc as reference
from .ops import op
from .windows import SAVED_BYTES, check_windows, map_shape

EPS_MODES = ("product", "clamp", "each")

# Backends whose forward pass of a mean computes the gradient along the way.
ONE_PASS = ("cpu",)


@op("lncc_forward")
def _forward(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value or map; what is saved for the gradients; number of windows in the mean.

    Saved are the maps of derivatives for the images to save for; for a mean on a backend in ONE_PASS, the gradients
    for a sum.
    """
    run = registry.implementation("lncc_forward", backend)
    options = (window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    return run(fixed, warped, mask, *options, mean, save_fixed, save_warped)


@_forward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    out = map_shape(fixed, window, padding)
    wide = torch.promote_types(fixed.dtype, torch.float32)
    value = fixed.new_empty((), dtype=wide) if mean else fixed.new_empty(out)
    if mean and backend in ONE_PASS and (save_fixed or save_warped):
        saved = fixed.new_empty([int(save_fixed) + int(save_warped), *fixed.shape], dtype=wide)
    else:
        saved = fixed.new_empty([adjoint_maps(save_fixed, save_warped), *out], dtype=wide)
    return value, saved, fixed.new_empty((), dtype=torch.float64)


@op("lncc_backward")
def _backward(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    run = registry.implementation("lncc_backward", backend)
    options = (window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    saved = (adjoints, count, *options, mean, saved_fixed, saved_warped)
    return run(grad, fixed, warped, mask, *saved, want_fixed, want_warped)


@_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, Tensor]:
    return (
        fixed.new_empty(fixed.shape if want_fixed else (0,)),
        warped.new_empty(warped.shape if want_warped else (0,)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    fixed, warped, mask, *ctx.options, ctx.backend = inputs
    _, adjoints, count = output
    ctx.mark_non_differentiable(adjoints, count)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(fixed, warped, mask, adjoints, count)


def _grad(ctx: Any, grad: Tensor | None, *unused: Tensor | None) -> tuple[Tensor | None, ...]:
    nothing = (None,) * 13
    if grad is None:
        return None, None, *nothing
    want_fixed, want_warped = ctx.needs_input_grad[:2]
    grad_fixed, grad_warped = _backward(
        grad, *ctx.saved_tensors, *ctx.options, want_fixed, want_warped, ctx.backend
    )
    return grad_fixed if want_fixed else None, grad_warped if want_warped else None, *nothing


_forward.register_autograd(_grad, setup_context=_setup)


def lncc(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int] = 9,
    *,
    padding: str = "same",
    mask: Tensor | None = None,
    squared: bool = True,
    eps: float = 1e-5,
    eps_mode: str = "product",
    numerator_eps: float = 0.0,
    flat_tol: float = 1e-6,
    zero_rule: bool = False,
    reduction: str = "mean",
    recompute: bool | None = None,
    backend: str | None = None,
) -> Tensor:
    """Local normalised cross-correlation of two images in box windows; larger is more alike.

    With the window's sums Sf, Sw, Sff, Sww, Sfw and its number of voxels n::

        c = Sfw - Sf Sw / n        v_f = Sff - Sf^2 / n        v_w = Sww - Sw^2 / n
        value = (c^2 + numerator_eps) / d        or, not squared, (c + numerator_eps) / sqrt(d)
        "product": d = v_f v_w + eps                             (VoxelMorph, Balakrishnan et al. 2019)
        "clamp":   d = max(v_f, eps) max(v_w, eps)               (MONAI)
        "each":    d = (v_f + eps) (v_w + eps), where c, v_f and v_w are divided by n     (ICON)

    A window is flat when v_f <= flat_tol Sff or v_w <= flat_tol Sww or n < 2: it counts 0, has no gradient
    and stays in the mean's denominator.

    Args:
        fixed: (B, C, H, W) or (B, C, D, H, W), floating point, any strides. Channels count like batch items.
        warped: same shape and dtype.
        window: voxels along every axis, or one number an axis; odd or even, from 1. The cost does not depend
            on it.
        padding: "same": one window a voxel, (w - 1) // 2 voxels before it and w // 2 after; what lies outside
            counts as zeros, so that n is the product of the window. "valid": full windows only, N - w + 1 an
            axis.
        mask: (B, 1 or C, *spatial), any dtype, nonzero inside. Sums run over the mask's voxels and n is their
            number; values outside do not matter, NaN included. Windows whose centre, voxel (w - 1) // 2 of
            the window, is outside leave the mean and are 0 in the map.
        squared: False keeps the sign of the correlation: values in [-1, 1] instead of [0, 1].
        eps: regularises the denominator, at least 0; its unit depends on ``eps_mode``.
        eps_mode: "product", "clamp" or "each", see above.
        numerator_eps: added to the numerator.
        flat_tol: least variance of a window relative to its mean square, at least 0.
        zero_rule: windows with Sf <= 0 or Sw <= 0 leave the mean and are 0 in the map (NIR's rule for
            background).
        reduction: "mean" over the windows that stay (0 when none stays), or "none", the map.
        recompute: False saves for the backward pass (on the cpu backend the gradient of a mean itself, computed
            along with the value; elsewhere the maps of derivatives), True computes again from the images; None
            saves while that takes at most 512 MiB.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar (float32 for half types), or with reduction "none" (B, C, *windows) in the images' dtype.
        Differentiable once in both images. Sums are float64, so offsets of 1e4 and constant regions are
        harmless. On the cpu backend a sum of squares below 2^-42 of the largest in its strip of rows counts
        as zero, being within the rounding of running sums. Results do not depend on the number of threads.
        NaN in an image spreads to the mean.

    Memory beyond inputs and outputs: one to a few megabytes a thread. Saved for the backward pass of a map are
    3 volumes of the windows' size (gradient to one image) or 5 (both), in the images' dtype but at least
    float32; of a mean on the cpu backend, 1 or 2 volumes, and 3 or 5 slabs of 15 + window planes while it
    runs. With ``recompute`` nothing is kept, and the backward pass allocates those slabs. A mask costs one
    byte a voxel more.

    Raises:
        ValueError: a shape, dtype or option does not fit; a window larger than the volume with "valid".
    """
    windows = _check(fixed, warped, window, padding, mask, eps, eps_mode, flat_tol, reduction)
    chosen = registry.choose("lncc", fixed.device, backend)
    if chosen == "reference":
        return reference.lncc(
            fixed,
            warped,
            windows,
            padding=padding,
            mask=mask,
            squared=squared,
            eps=eps,
            eps_mode=eps_mode,
            numerator_eps=numerator_eps,
            flat_tol=flat_tol,
            zero_rule=zero_rule,
            reduction=reduction,
            recompute=recompute,
        )
    wants = [torch.is_grad_enabled() and image.requires_grad for image in (fixed, warped)]
    if recompute is None:
        item = max(fixed.element_size(), 4)
        one_pass = reduction == "mean" and chosen in ONE_PASS
        volumes = sum(wants) if one_pass else adjoint_maps(*wants)
        recompute = volumes * math.prod(map_shape(fixed, windows, padding)) * item > SAVED_BYTES
    save_fixed, save_warped = (want and not recompute for want in wants)
    inside = None if mask is None else mask != 0
    options = (windows, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    mean = reduction == "mean"
    return _forward(fixed, warped, inside, *options, mean, save_fixed, save_warped, chosen)[0]


def adjoint_maps(fixed: bool, warped: bool) -> int:
    """Volumes that the backward pass needs for gradients to these images."""
    return 0 if not (fixed or warped) else 5 if fixed and warped else 3


def _check(
    fixed: Tensor,
    warped: Tensor,
    window: int | Sequence[int],
    padding: str,
    mask: Tensor | None,
    eps: float,
    eps_mode: str,
    flat_tol: float,
    reduction: str,
) -> list[int]:
    """The window as one number an axis, after checking everything."""
    windows = check_windows("lncc", fixed, warped, window, padding, reduction)
    if eps_mode not in EPS_MODES:
        raise ValueError(f"lncc: eps_mode must be one of {EPS_MODES}, got {eps_mode!r}")
    for name, number in (("eps", eps), ("flat_tol", flat_tol)):
        if not number >= 0:
            raise ValueError(f"lncc: {name} must be at least 0, got {number}")
    if mask is not None:
        allowed = [(fixed.shape[0], channels, *fixed.shape[2:]) for channels in (1, fixed.shape[1])]
        if tuple(mask.shape) not in allowed:
            raise ValueError(
                f"lncc: mask must be {allowed[0]} or {allowed[1]} for these images, got {tuple(mask.shape)}"
            )
        if mask.device != fixed.device:
            raise ValueError(f"lncc: mask is on {mask.device}, the images on {fixed.device}")
    return windows
