"""The CUDA backend: tensors of the device become addresses, and the module _cuda launches on torch's stream.

Half types are computed in float32 and converted back. Nothing here waits for the device, and scratch comes
from torch's allocator, so that a CUDA graph can capture every call. No kernel has run on a GPU yet: all are
registered as unverified.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import registry
from .cpu import address

_EPS_MODE = {"product": 0, "clamp": 1, "each": 2}
_SUFFIX = {torch.float32: "_f32", torch.float64: "_f64"}


def _load() -> ModuleType | None:
    """The module _cuda, or None where it was not built or does not load."""
    try:
        return importlib.import_module(f"{__package__}._cuda")
    except ImportError:
        return None


module = _load()


def _loaded() -> ModuleType:
    if module is None:
        raise registry.BackendError("the native module _cuda is not built: `make gpu`, or NEURALREG_CUDA=1")
    return module


def _where(tensor: Tensor) -> tuple[int, int]:
    """The tensor's device and torch's current stream on it."""
    device = tensor.device
    return device.index, torch.cuda.current_stream(device).cuda_stream


def _computing(*tensors: Tensor) -> list[Tensor]:
    """The tensors, contiguous, in their common type, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype).contiguous() for tensor in tensors]


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
    return _loaded().LnccShape(
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
    """As declared in csrc/cuda/ops.h; to save for the fixed image alone, the images trade places."""
    f, w = _computing(fixed, warped)
    mask = None if mask is None else mask.contiguous()
    shape = _lncc_shape(f, mask, window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    sizes = zip(f.shape[2:], window, strict=True)
    out = [*f.shape[:2], *(n - k + 1 if padding == "valid" else n for n, k in sizes)]
    value = f.new_empty(() if mean else out)
    count = f.new_empty((), dtype=torch.float64)
    maps = 5 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
    adjoints = f.new_empty([maps, *out])
    device, stream = _where(f)
    scratch = f.new_empty(_loaded().lncc_forward_scratch(shape, device), dtype=torch.uint8)
    if save_fixed and not save_warped:
        f, w = w, f  # the measure is symmetric
    getattr(_loaded(), "lncc_forward" + _SUFFIX[f.dtype])(
        shape,
        address(f),
        address(w),
        address(mask),
        0 if mean else address(value),
        address(value) if mean else 0,
        address(count),
        [address(a) for a in adjoints],
        address(scratch),
        device,
        stream,
    )
    return value if mean else value.to(fixed.dtype), adjoints, count


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
    f, w = _computing(fixed, warped)
    upstream = grad.to(f.dtype).contiguous()
    mask = None if mask is None else mask.contiguous()
    shape = _lncc_shape(f, mask, window, padding, squared, eps, eps_mode, numerator_eps, flat_tol, zero_rule)
    grad_f = torch.empty_like(f) if want_fixed else None
    grad_w = torch.empty_like(w) if want_warped else None
    maps: list[Tensor] = []
    if (saved_fixed or not want_fixed) and (saved_warped or not want_warped):
        maps = list(adjoints)
    first, second, to_first, to_second = f, w, grad_f, grad_w
    if want_fixed and not want_warped:
        first, second, to_first, to_second = w, f, grad_w, grad_f
        if len(maps) == 5:
            maps = [maps[3], maps[4], maps[2]]
    device, stream = _where(f)
    fields, item = (5 if want_fixed and want_warped else 3), f.element_size()
    size = _loaded().lncc_backward_scratch(shape, fields, not maps, item, device)
    scratch = f.new_empty(size, dtype=torch.uint8)
    getattr(_loaded(), "lncc_backward" + _SUFFIX[f.dtype])(
        shape,
        address(upstream),
        mean,
        address(count),
        address(first),
        address(second),
        address(mask),
        [address(m) for m in maps],
        address(to_first),
        address(to_second),
        address(scratch),
        device,
        stream,
    )
    return _result(grad_f, fixed), _result(grad_w, warped)


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
    """As declared in csrc/cuda/ops.h; to save for the fixed image alone, the images trade places."""
    f, w = _computing(fixed, warped)
    shape = _ssim_shape(f, window, weights, c1, c2, padding)
    sizes = zip(f.shape[2:], window, strict=True)
    out = [*f.shape[:2], *(n - k + 1 if padding == "valid" else n for n, k in sizes)]
    value = f.new_empty(() if mean else out)
    maps = 4 if save_fixed and save_warped else 3 if save_fixed or save_warped else 0
    adjoints = f.new_empty([maps, *out])
    device, stream = _where(f)
    scratch = f.new_empty(_loaded().ssim_forward_scratch(shape, device), dtype=torch.uint8)
    if save_fixed and not save_warped:
        f, w = w, f  # the measure is symmetric
    getattr(_loaded(), "ssim_forward" + _SUFFIX[f.dtype])(
        shape,
        address(f),
        address(w),
        0 if mean else address(value),
        address(value) if mean else 0,
        [address(a) for a in adjoints],
        address(scratch),
        device,
        stream,
    )
    return value if mean else value.to(fixed.dtype), adjoints


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
    f, w = _computing(fixed, warped)
    upstream = grad.to(f.dtype).contiguous()
    shape = _ssim_shape(f, window, weights, c1, c2, padding)
    grad_f = torch.empty_like(f) if want_fixed else None
    grad_w = torch.empty_like(w) if want_warped else None
    maps: list[Tensor] = []
    if (saved_fixed or not want_fixed) and (saved_warped or not want_warped):
        maps = list(adjoints)
    first, second, to_first, to_second = f, w, grad_f, grad_w
    if want_fixed and not want_warped:
        first, second, to_first, to_second = w, f, grad_w, grad_f
        if len(maps) == 4:
            maps = [maps[3], maps[1], maps[2]]
    device, stream = _where(f)
    fields, item = (4 if want_fixed and want_warped else 3), f.element_size()
    size = _loaded().ssim_backward_scratch(shape, fields, not maps, item, device)
    scratch = f.new_empty(size, dtype=torch.uint8)
    getattr(_loaded(), "ssim_backward" + _SUFFIX[f.dtype])(
        shape,
        address(upstream),
        mean,
        address(first),
        address(second),
        [address(m) for m in maps],
        address(to_first),
        address(to_second),
        address(scratch),
        device,
        stream,
    )
    return _result(grad_f, fixed), _result(grad_w, warped)


def _ssim_shape(
    fixed: Tensor, window: list[int], weights: list[float], c1: float, c2: float, padding: str
) -> object:
    sizes = list(fixed.shape[2:])
    batch, channels = fixed.shape[:2]
    return _loaded().SsimShape(batch, channels, sizes, window, weights, c1, c2, padding == "valid")


def _result(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient in the dtype of its tensor; empty stands for one that nobody wanted."""
    return like.new_empty(0) if gradient is None else gradient.to(like.dtype)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "lncc": lncc_forward,
    "lncc_forward": lncc_forward,
    "lncc_backward": lncc_backward,
    "ssim": ssim_forward,
    "ssim_forward": ssim_forward,
    "ssim_backward": ssim_backward,
}

if module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
