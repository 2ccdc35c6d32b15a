"""field, forward and backward to its parameters, against the same network in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, gradient_step
from neuralreg.fields import Field, HashMLP, Siren


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """The networks of NIR's two presets."""
    count = 20_000 if quick else 250_000
    torch.manual_seed(0)
    grid = HashMLP(levels=6, features=4, base=6, finest=36, table_range=1.0)
    sine = Siren(hidden=(256,) * 4)
    yield case("grid 6x4, 64-64", grid, count, device)
    yield case("fourier 128, sine 4x256", sine, count // 10, device)


def case(name: str, net: Field, points: int, device: torch.device) -> Case:
    torch.nn.init.normal_(net.weights[-2], std=0.1)
    x = (torch.rand(points, 3) * 2 - 1).to(device)
    tensors = tuple(t.detach().to(device) for t in (*net.encoding, *net.weights))
    wanted = tuple(range(0 if net.matrix is None else 1, len(tensors)))  # the Fourier matrix is fixed

    def ours(*parameters: Tensor, backend: str | None = None) -> Tensor:
        values = kernels.field(x.to(parameters[0].dtype), list(parameters), net.spec, backend=backend)
        return values.square().mean()

    def reference(*parameters: Tensor) -> Tensor:
        return ours(*parameters, backend="reference")

    def truth() -> tuple[Tensor, ...]:
        return gradient_step(reference, tuple(t.double() for t in tensors), wanted)()

    contenders = {
        "neuralreg": gradient_step(ours, tensors, wanted),
        "torch": gradient_step(reference, tensors, wanted),
    }
    floor = 4.0 * (points * (3 + 3) * 2 + 2 * sum(t.numel() for t in tensors))
    return Case("field", f"{name}, {points} points", contenders, truth, 1e-3, floor)
