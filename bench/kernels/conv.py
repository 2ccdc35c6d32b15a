"""conv_relu_conv, forward and backward, against torch's convolutions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, Step


def cases(setup: Setup) -> Iterator[Case]:
    """NCF's smoothing module on the lattice that stride 3 leaves of 160x192x224; all gradients."""
    size = setup.lattice(3)
    for hidden in (16,) if setup.quick else (32, 16):
        random = torch.Generator().manual_seed(0)
        shapes = [(1, 3, *size), (hidden, 3, 3, 3, 3), (hidden,), (3, hidden, 3, 3, 3), (3,)]
        # Multiples of 1/32, and of 1/2048 between those of 1/1024: no hidden value is near the ReLU's kink, where the
        # last bit decides over a gradient.
        tensors = [(6 * torch.randn(shape, generator=random)).round() / 32 for shape in shapes]
        tensors[2] += 1 / 2048
        tensors = [t.to(setup.device, setup.dtype) for t in tensors]
        upstream = torch.randn(1, 3, *size, generator=random).to(setup.device, setup.dtype)

        def truth(tensors: list[Tensor] = tensors, upstream: Tensor = upstream) -> tuple[Tensor, ...]:
            return step("plain", [t.double() for t in tensors], upstream.double())()

        contenders = {
            name: step(name, tensors, upstream) for name in ("neuralreg", "torch", "torch channels last")
        }
        points = upstream.numel() // 3
        # forward, then two products a weight for the gradients; the input and its gradient read and written
        flops = 3 * 2 * 2 * 81 * hidden * points
        name = f"{'x'.join(map(str, size))}, 3 -> {hidden} -> 3, all gradients"
        yield Case("conv_relu_conv", name, contenders, truth, 1e-4, 4.0 * 12 * points, flops)


def step(name: str, tensors: list[Tensor], upstream: Tensor) -> Step:
    """Value and gradients of all tensors."""
    leaves = [t.detach().clone() for t in tensors]
    if name == "torch channels last":
        leaves = [t.to(memory_format=torch.channels_last_3d) if t.ndim == 5 else t for t in leaves]
    leaves = [t.requires_grad_() for t in leaves]

    def run() -> tuple[Tensor, ...]:
        if name == "neuralreg":
            y = kernels.conv_relu_conv(*leaves)
        else:
            x, w1, b1, w2, b2 = leaves
            y = functional.conv3d(functional.conv3d(x, w1, b1, padding=1).relu(), w2, b2, padding=1)
        return y.detach(), *torch.autograd.grad(y, leaves, upstream)

    return run
