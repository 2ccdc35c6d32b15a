"""cpu backend of the image ops. Half types are computed in float32 and converted back."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads

_PADDING = {"zeros": 0, "border": 1, "reflection": 2}
_EPS_MODE = {"product": 0, "clamp": 1, "each": 2}


def _computing_type(*tensors: Tensor) -> torch.dtype:
    """Their common type, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _buffer(like: Tensor, dtype: torch.dtype, want: bool, zeros: bool = True) -> Tensor | None:
    """A gradient buffer shaped like ``like``, or None where the gradient is not wanted."""
    if not want:
        return None
    return output(like.shape, dtype, zeros)


def _leaves_gaps(grad: Tensor, mode: str) -> bool:
    """Whether the gradient of the coordinates is not written: nearest has none, nor has an empty output."""
    return mode == "nearest" or grad.numel() == 0


def _result(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient in the dtype of its tensor; empty stands for one that nobody wanted."""
    return like.new_empty(0) if gradient is None else gradient.to(like.dtype)


def _sample_shape(
    image: Tensor, out: torch.Size, normalised: bool, mode: str, padding_mode: str, align_corners: bool
) -> object:
    return native.load_cpu().SampleShape(
        image.shape[0],
        image.shape[1],
        list(image.shape[2:]),
        list(out),
        normalised,
        mode == "nearest",
        _PADDING[padding_mode],
        align_corners,
    )


def grid_sample_forward(
    input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    dtype = _computing_type(input, grid)
    x, points = input.to(dtype).contiguous(), grid.to(dtype).contiguous()
    out = output([*x.shape[:2], *grid.shape[1:-1]], dtype)
    shape = _sample_shape(x, grid.shape[1:-1], True, mode, padding_mode, align_corners)
    function("sample_forward", dtype)(shape, address(x), address(points), 0, address(out), threads())
    return out.to(input.dtype)


def grid_sample_backward(
    grad: Tensor,
    input: Tensor,
    grid: Tensor,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_input: bool,
    want_grid: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _computing_type(input, grid)
    upstream, x, points = (t.to(dtype).contiguous() for t in (grad, input, grid))
    grad_x = _buffer(input, dtype, want_input)
    grad_points = _buffer(grid, dtype, want_grid, _leaves_gaps(grad, mode))
    shape = _sample_shape(x, grid.shape[1:-1], True, mode, padding_mode, align_corners)
    function("sample_backward", dtype)(
        shape,
        address(upstream),
        address(x),
        address(points),
        0,
        address(grad_x),
        address(grad_points),
        0,
        threads(),
    )
    return _result(grad_x, input), _result(grad_points, grid)


def warp_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    dtype = _computing_type(image, displacement)
    x, u = image.to(dtype).contiguous(), displacement.to(dtype).contiguous()
    matrix = None if affine is None else affine.to(dtype).contiguous()
    out = output([*x.shape[:2], *u.shape[2:]], dtype)
    shape = _sample_shape(x, u.shape[2:], False, mode, padding_mode, True)
    function("sample_forward", dtype)(shape, address(x), address(u), address(matrix), address(out), threads())
    return out.to(image.dtype)


def warp_backward(
    grad: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    mode: str,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _computing_type(image, displacement)
    upstream, x, u = (t.to(dtype).contiguous() for t in (grad, image, displacement))
    matrix = None if affine is None else affine.to(dtype).contiguous()
    grad_x = _buffer(image, dtype, want_image)
    grad_u = _buffer(displacement, dtype, want_displacement, _leaves_gaps(grad, mode))
    grad_matrix = None if affine is None else _buffer(affine, dtype, want_affine)
    shape = _sample_shape(x, u.shape[2:], False, mode, padding_mode, True)
    function("sample_backward", dtype)(
        shape,
        address(upstream),
        address(x),
        address(u),
        address(matrix),
        address(grad_x),
        address(grad_u),
        address(grad_matrix),
        threads(),
    )
    return (
        _result(grad_x, image),
        _result(grad_u, displacement),
        _result(grad_matrix, displacement if affine is None else affine),
    )


def _lncc_shape(
    fixed: Tensor,
    mask: Tensor | None,
    window: list[int],
    padding: str,
    squared: bool,
    eps: float,
    eps_mode: str,
    numerator_eps: float,
    flat_tol: float,
    zero_rule: bool,
) -> object:
    return native.load_cpu().LnccShape(
        fixed.shape[0],
        fixed.shape[1],
        list(fixed.shape[2:]),
        window,
        padding == "valid",
        0 if mask is None else mask.shape[1],
        squared,
        _EPS_MODE[eps_mode],
        eps,
        numerator_eps,
        flat_tol,
        zero_rule,
    )


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
    """As declared in csrc/cpu/ops.h; to save for the fixed image alone, the images trade places.

    What is saved for a mean is the gradient itself, without the mean's denominator: one pass gives both, and
    the maps of derivatives stay in the cache.
    """
    dtype = _computing_type(fixed)
    f, w = fixed.to(dtype).contiguous(), warped.to(dtype).contiguous()
    mask = None if mask is None else mask.contiguous()
    shape = _lncc_shape(f, mask, window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    sizes = zip(f.shape[2:], window, strict=True)
    out = [*f.shape[:2], *(n - k + 1 if padding == "valid" else n for n, k in sizes)]
    images = [address(f), address(w)]
    if save_fixed and not save_warped:
        images.reverse()  # the measure is symmetric
    values = None if mean else output(out, dtype)
    if mean and (save_fixed or save_warped):
        saved = output([int(save_fixed) + int(save_warped), *f.shape], dtype)
        targets = [address(s) for s in saved] if save_fixed and save_warped else [0, address(saved)]
        total, count = function("lncc_gradient", dtype)(
            shape, 0, 1.0, *images, address(mask), *targets, threads()
        )
    else:
        maps = 5 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
        saved = output([maps, *out], dtype)
        total, count = function("lncc_forward", dtype)(
            shape, *images, address(mask), address(values), [address(s) for s in saved], threads()
        )
    counted = torch.tensor(count, dtype=torch.float64)
    if values is None:
        return f.new_tensor(total / max(count, 1)), saved, counted
    return values.to(fixed.dtype), saved, counted


def lncc_backward(
    grad: Tensor,
    fixed: Tensor,
    warped: Tensor,
    mask: Tensor | None,
    saved: Tensor,
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
    dtype = _computing_type(fixed)
    scale = grad.item() / max(count.item(), 1) if mean else 1.0
    is_saved = (saved_fixed or not want_fixed) and (saved_warped or not want_warped)
    if mean and is_saved:
        grads = [
            _buffer(x, dtype, want, zeros=False) for x, want in ((fixed, want_fixed), (warped, want_warped))
        ]
        for gradient, of_sum in zip(grads, (saved[0], saved[-1]), strict=True):
            if gradient is not None:
                torch.mul(of_sum, scale, out=gradient)
        return _result(grads[0], fixed), _result(grads[1], warped)
    f, w = fixed.to(dtype).contiguous(), warped.to(dtype).contiguous()
    mask = None if mask is None else mask.contiguous()
    shape = _lncc_shape(f, mask, window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    upstream = None if mean else grad.to(dtype).contiguous()
    grad_f = _buffer(f, dtype, want_fixed, zeros=False)
    grad_w = _buffer(w, dtype, want_warped, zeros=False)
    images, targets = [address(f), address(w)], [address(grad_f), address(grad_w)]
    maps = list(saved) if is_saved else []
    if want_fixed and not want_warped:
        images.reverse()
        targets.reverse()
        if len(maps) == 5:
            maps = [maps[3], maps[4], maps[2]]
    task = (shape, address(upstream), scale, *images, address(mask))
    if maps:
        function("lncc_backward", dtype)(*task, [address(m) for m in maps], *targets, threads())
    else:
        function("lncc_gradient", dtype)(*task, *targets, threads())
    return _result(grad_f, fixed), _result(grad_w, warped)


for _op in (
    grid_sample_forward,
    grid_sample_backward,
    warp_forward,
    warp_backward,
    lncc_forward,
    lncc_backward,
):
    registry.register(_op.__name__, "cpu", _op)
for _public in ("grid_sample", "warp", "lncc"):
    registry.register(_public, "cpu", globals()[_public + "_forward"])
