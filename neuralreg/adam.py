"""Adam on torch's fused kernel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Adam:
    """``torch.optim.Adam(groups, fused=True)`` (Kingma and Ba, 2015) for a fit, the same to the last bit.

    torch's own class imports torch's compiler at its first call, two seconds of a registration that may take ten.

    Args:
        groups: dicts of ``params`` (leaf tensors) and ``lr``, which may be changed between steps.
        betas, eps: of Adam.
    """

    def __init__(
        self, groups: list[dict[str, Any]], betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.param_groups = [{**group, "params": list(group["params"])} for group in groups]
        self.betas, self.eps = betas, eps
        self.state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step along the gradients that the parameters hold; those without one stay as they are."""
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            for p in moved:
                if p not in self.state:
                    count = torch.zeros((), dtype=torch.float32, device=p.device)
                    self.state[p] = (torch.zeros_like(p), torch.zeros_like(p), count)
            if not moved:
                continue
            means, squares, counts = (list(part) for part in zip(*map(self.state.get, moved), strict=True))
            torch._foreach_add_(counts, 1)
            torch._fused_adam_(
                moved,
                [p.grad for p in moved],
                means,
                squares,
                [],
                counts,
                lr=group["lr"],
                beta1=self.betas[0],
                beta2=self.betas[1],
                weight_decay=0.0,
                eps=self.eps,
                amsgrad=False,
                maximize=False,
            )

    def zero_grad(self) -> None:
        """Drops the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None
