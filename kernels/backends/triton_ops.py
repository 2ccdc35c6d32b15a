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

# Ops that a module has beside the public functions that they serve; a public name stands for its forward op.
_SAMPLING = {
    "triton_sampling": (
        *("sample_forward", "sample_backward"),
        *("warp_with_gradient_forward", "warp_with_gradient_backward"),
    ),
    "triton_sampling_labels": ("labels_forward",),
    "triton_sampling_twice": ("sample_double_backward",),
}
for _module, _names in _SAMPLING.items():
    for _name in _names:
        registry.register(_name, "triton", _later(_module, _name), verified=False)
for _public in ("grid_sample", "warp"):
    registry.register(_public, "triton", _later("triton_sampling", "sample_forward"), verified=False)
registry.register(
    "warp_with_gradient", "triton", _later("triton_sampling", "warp_with_gradient_forward"), verified=False
)

for _public in (
    *("jacobian_determinant", "jacobian_loss", "jacobian_penalty"),
    *("diffusion_loss", "bending_loss"),
):
    for _step in ("", "_forward", "_backward"):
        _op = _later("triton_lattice", _public + (_step or "_forward"))
        registry.register(_public + _step, "triton", _op, verified=False)

for _name in ("box_mean", "box_mean_forward"):
    registry.register(_name, "triton", _later("triton_box_mean", "box_mean_forward"), verified=False)
registry.register("refine", "triton", _later("triton_refine", "refine_step"), verified=False)
registry.register("table_adam", "triton", _later("triton_adam", "table_adam"), verified=False)
