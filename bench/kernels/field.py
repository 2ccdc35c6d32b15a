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
    nets: dict[str, Field] = {
        "grid 6x4, 64-64": HashMLP(levels=6, features=4, base=6, finest=36, table_range=1.0),
        "fourier 128, sine 4x256": Siren(hidden=(256,) * 4),
    }
    for name, net in nets.items():
        points = count if "grid" in name else count // 10
        torch.nn.init.normal_(net.weights[-2], std=0.1)
        x = (torch.rand(points, 3) * 2 - 1).to(device)
        tensors = tuple(t.detach().to(device) for t in (*net.encoding, *net.weights))
        frozen = 1 if net.matrix is not None else 0
        wanted = tuple(range(frozen, len(tensors)))

        def ours(
            *parameters: Tensor, x: Tensor = x, spec: object = net.spec, backend: str | None = None
        ) -> Tensor:
            return (
                kernels.field(x.to(parameters[0].dtype), list(parameters), spec, backend=backend)
                .square()
                .mean()
            )  # type: ignore[arg-type]

        def reference(*parameters: Tensor, ours=ours) -> Tensor:  # type: ignore[no-untyped-def]
            return ours(*parameters, backend="reference")

        def truth(tensors=tensors, reference=reference, wanted=wanted) -> tuple[Tensor, ...]:  # type: ignore[no-untyped-def]
            return gradient_step(reference, tuple(t.double() for t in tensors), wanted)()

        contenders = {
            "neuralreg": gradient_step(ours, tensors, wanted),
            "torch": gradient_step(reference, tensors, wanted),
        }
        floor = 4.0 * (points * (3 + 3) * 2 + 2 * sum(t.numel() for t in tensors))
        yield Case("field", f"{name}, {points} points", contenders, truth, 1e-3, floor)
