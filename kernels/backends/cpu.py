"""The C++ backend: contiguous tensors become addresses, and the module of the best instruction set does the work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import native, registry

LARGE = 4 << 20  # bytes from which an output is worth the request
_SUFFIX = {torch.float32: "_f32", torch.float64: "_f64"}


def function(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """The native function ``name`` for ``dtype``."""
    if dtype not in _SUFFIX:
        raise registry.BackendError(f"the cpu backend computes in float32 and float64, not {dtype}")
    return getattr(native.load_cpu(), name + _SUFFIX[dtype])


def address(tensor: Tensor | None) -> int:
    """Address of the first element; 0 stands for a tensor that is not there."""
    return 0 if tensor is None else tensor.data_ptr()


def wanted(like: Tensor, want: bool) -> Tensor | None:
    """A gradient buffer shaped like ``like``, zeroed, or None where the gradient is not wanted."""
    return output(like.shape, like.dtype, zeros=True) if want else None


def output(shape: Sequence[int], dtype: torch.dtype, zeros: bool = False) -> Tensor:
    """A new tensor, on large pages where the system has them: writing to fresh small ones costs a fault each."""
    tensor = torch.empty(*shape, dtype=dtype)
    if tensor.nbytes >= LARGE:
        native.load_cpu().expect_writes(address(tensor), tensor.nbytes)
    return tensor.zero_() if zeros else tensor


def threads() -> int:
    return torch.get_num_threads()
