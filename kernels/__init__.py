"""Differentiable ops of neural-field registration, on every backend that the machine offers.

Needs torch alone. Each op is a registered ``torch.library`` op with a hand-written backward; ``use_backend`` and the
``backend`` argument choose who computes, ``backends()`` tells what serves here and why the rest does not.
"""

from .backends import (  # noqa: F401 (register the backends' kernels)
    cpu_box,
    cpu_conv,
    cpu_field,
    cpu_image,
    cpu_lattice,
    cpu_refine,
    cpu_sampling,
    cpu_ssim,
    cuda,
    cuda_box,
    cuda_conv,
    cuda_encoding,
    cuda_field,
    cuda_lattice,
    cuda_refine,
    cuda_sampling,
    triton_ops,
)
from .backends.registry import BackendError, backends, use_backend
from .box import box_mean
from .consistency import gradient_inverse_consistency
from .conv import conv_relu_conv
from .encoding import fourier_encode, hash_encode
from .field import field, field_jet
from .flow import Convergence, compose, integrate, invert
from .jacobian import jacobian_determinant, jacobian_loss, jacobian_penalty, log_jacobian
from .lncc import lncc
from .optim import TableAdam, table_adam
from .refine import RefineState, refine, refine_state, refine_step
from .sampling import grid_sample, warp, warp_with_gradient
from .smoothness import bending_loss, diffusion_loss
from .spec import FieldSpec, Flow, Fourier, HashGrid, octaves
from .ssim import ssim

__all__ = [
    "BackendError",
    "Convergence",
    "FieldSpec",
    "Flow",
    "Fourier",
    "HashGrid",
    "RefineState",
    "TableAdam",
    "backends",
    "bending_loss",
    "box_mean",
    "compose",
    "conv_relu_conv",
    "diffusion_loss",
    "field",
    "field_jet",
    "fourier_encode",
    "gradient_inverse_consistency",
    "grid_sample",
    "hash_encode",
    "integrate",
    "invert",
    "jacobian_determinant",
    "jacobian_loss",
    "jacobian_penalty",
    "lncc",
    "log_jacobian",
    "octaves",
    "refine",
    "refine_state",
    "refine_step",
    "ssim",
    "table_adam",
    "use_backend",
    "warp",
    "warp_with_gradient",
]
