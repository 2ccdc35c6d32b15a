"""neuralreg: custom kernels for neural-field medical image registration.

``neuralreg.register`` registers two images, ``neuralreg.align`` finds an affine alone,
``neuralreg.load_transform`` reads a saved transform, ``neuralreg.kernels`` holds the differentiable ops. Everything is
imported at first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "align": "neuralreg.start.choose",
    "register": "neuralreg.registration",
    "Registration": "neuralreg.registration",
    "load_transform": "neuralreg.transforms",
    "Transform": "neuralreg.transforms",
    "Affine": "neuralreg.transforms",
    "SpatialMap": "neuralreg.transforms",
    "compose": "neuralreg.transforms",
    "Image": "neuralreg.images",
    "InputError": "neuralreg.errors",
    "NeuralregError": "neuralreg.errors",
}
__all__ = [
    "Affine", "Image", "InputError", "NeuralregError", "Registration", "SpatialMap", "Transform", "align", "compose",
    "load_transform", "register",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'neuralreg' has no attribute {name!r}")
