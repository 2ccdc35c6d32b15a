"""Neural fields, encoding and layers, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg.kernels.backends.reference.encoding import fourier_encode, hash_encode
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid


def field(x: Tensor, params: Sequence[Tensor], spec: FieldSpec) -> Tensor:
    """A small network on encoded coordinates: x (N, ndim) gives (N, out).

    ``params`` is the encoding's table or matrix B, if it has one, then weight (out, in) and bias (out) layer
    by layer. Hidden layers compute relu(W v + b), or sin(omega (W v + b)) (Sitzmann et al. 2020); the last
    layer is linear.
    """
    rest = list(params)
    if isinstance(spec.encoding, HashGrid):
        v = hash_encode(x, rest.pop(0), spec.encoding)
    elif isinstance(spec.encoding, Fourier):
        v = fourier_encode(x, rest.pop(0), spec.encoding.scale)
    else:
        v = x
    weights, biases = rest[0::2], rest[1::2]
    for layer, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        z = F.linear(v, weight, bias)
        v = z.relu() if spec.activation == "relu" else torch.sin(spec.omega[layer] * z)
    return F.linear(v, weights[-1], biases[-1])
