"""The floor of an optimiser step: what its parts have to move and to multiply, whatever does the work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from neuralreg.bench.parts import Watch
from neuralreg.bench.steps import Step


class Ledger(Watch):
    """A watch that adds up what every part hands on to the next, instead of how long it takes."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.bytes = 0.0

    def done(self, part: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Results are written and read once, and so are their gradients. A guidance changes a displacement and its
        three moments in every of its steps, and reads both images."""
        if part == "guidance":
            guidance, *images = arguments
            moved = 8 * size([result]) + size(images[:2])
            self.bytes += guidance.steps * moved
        else:
            found = list(tensors(result))
            self.bytes += 2 * size(found) + 2 * size(x for x in found if x.requires_grad)


def moved_bytes(step: Step, device: torch.device) -> float:
    """Bytes that one step moves from and to memory at least: what its parts hand on, parameters and their optimiser.

    A parameter is read forward, its gradient written, and the optimiser reads both and writes the parameter; what the
    optimiser keeps of it is read and written.
    """
    ledger = Ledger(device)
    ledger.run(step)
    parameters = size(p for group in step.optimiser.param_groups for p in group["params"])
    kept = size(tensors(list(step.optimiser.state.values())))
    return ledger.bytes + 5 * parameters + 2 * kept


def counted(function: Callable[[], tuple[Tensor, ...]]) -> tuple[tuple[Tensor, ...], float]:
    """What the function returns, and the floating-point operations of its matrix products and convolutions.

    Only products of torch are seen: count on the reference backend.
    """
    with FlopCounterMode(display=False) as counter:
        results = function()
    return results, float(counter.get_total_flops())


def size(found: Iterable[Tensor]) -> float:
    """Bytes of all tensors."""
    return float(sum(x.numel() * x.element_size() for x in found))


def tensors(value: Any) -> Iterable[Tensor]:
    """Those of a tensor, or of lists, tuples and dictionaries of any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from tensors(one)
