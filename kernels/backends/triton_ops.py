"""triton backend: which ops it has. Triton itself is imported by the first call, so that naming them costs nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from . import registry


def _later(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        return getattr(importlib.import_module("." + module, __package__), name)(*args)

    call.__name__ = name
    return call


_MODULES = {
    "lncc": "triton_lncc",
    "ssim": "triton_ssim",
    "hash_encode": "triton_encoding",
    "fourier_encode": "triton_encoding",
    "field": "triton_field",
    "field_jet": "triton_field",
}
for _public, _module in _MODULES.items():
    for _step in ("", "_forward", "_backward"):
        _op = _later(_module, _public + (_step or "_forward"))
        registry.register(_public + _step, "triton", _op, verified=False)
