"""Differentiable ops of neural-field registration, on every backend that the machine offers.

Needs torch alone. Each op is a registered ``torch.library`` op with a hand-written backward; ``use_backend`` and the
``backend`` argument choose who computes, ``backends()`` tells what serves here and why the rest does not.
"""

from .backends import (  # noqa: F401 (register the backends' kernels)
    cpu_field,
    cpu_image,
    cpu_ssim,
    cuda,
    cuda_encoding,
    cuda_field,
    triton_ops,
)
from .backends.registry import BackendError, backends, use_backend
from .encoding import fourier_encode, hash_encode
from .field import field, field_jet
from .flow import compose, invert
from .jacobian import diffusion_loss, jacobian_determinant, jacobian_loss
from .lncc import lncc
from .sampling import grid_sample, warp
from .spec import FieldSpec, Flow, Fourier, HashGrid, octaves
from .ssim import ssim

__all__ = [
    "BackendError",
    "FieldSpec",
    "Flow",
    "Fourier",
    "HashGrid",
    "backends",
    "compose",
    "diffusion_loss",
    "field",
    "field_jet",
    "fourier_encode",
    "grid_sample",
    "hash_encode",
    "invert",
    "jacobian_determinant",
    "jacobian_loss",
    "lncc",
    "octaves",
    "ssim",
    "use_backend",
    "warp",
]
