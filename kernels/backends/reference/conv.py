"""Two convolutions with a ReLU between them, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def conv_relu_conv(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """w2 * relu(w1 * x + b1) + b2 for x (B, C, *spatial), kernels of 3 an axis, zeros outside, in x's dtype.

    Computed in the widest dtype of the tensors, at least float32.
    """
    dtype = torch.float32
    for tensor in (x, w1, b1, w2, b2):
        dtype = torch.promote_types(dtype, tensor.dtype)
    wide = [tensor.to(dtype) for tensor in (x, w1, b1, w2, b2)]
    if x.numel() == 0:  # torch refuses some of these; a sum of nothing keeps the graph
        nothing = sum((t.sum() for t in wide[:4]), wide[0].new_zeros(())) * 0
        bias = wide[4].view(1, -1, *[1] * (x.ndim - 2))
        return (bias.expand(len(x), -1, *x.shape[2:]) + nothing).to(x.dtype)
    convolve = functional.conv2d if x.ndim == 4 else functional.conv3d
    hidden = convolve(wide[0], wide[1], wide[2], padding=1).relu()
    return convolve(hidden, wide[3], wide[4], padding=1).to(x.dtype)
