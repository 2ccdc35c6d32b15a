"""What the ranks of one registration tell each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from neuralreg.boxes import Box, whole, with_rows
from neuralreg.distributed import Ranks, ranks
from neuralreg.errors import NeuralregError


class _Total(torch.autograd.Function):
    """The sum over the ranks, and this rank's part of its gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return grad


class Together(Ranks):
    """This process among those that register one pair."""

    def own_box(self, grid: tuple[int, ...], axis: int) -> Box:
        """This rank's share of a grid's rows along an axis."""
        rows = self.mine(grid[axis])
        return with_rows(whole(grid), axis, (rows.start, rows.stop))

    def total(self, value: Tensor) -> Tensor:
        """The sum over all ranks, the same number on every rank.

        Its backward pass gives a rank the gradient by its own summand. So where a loss is made of totals and of
        nothing else that differs between ranks, the gradients of all ranks add up to that of the loss.
        """
        return value if self.world == 1 else _Total.apply(value)

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replaces the gradients by their sum over the ranks. One message carries all; it takes one copy of them."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        message = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(message)
        for gradient, part in zip(gradients, message.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def counts(self, numbers: Tensor) -> Tensor:
        """Sums of integers (n,) over the ranks."""
        if self.world == 1:
            return numbers
        total = numbers.to(self.device)
        dist.all_reduce(total)
        return total.cpu()

    def everyones(self, thing: Any) -> list[Any]:
        """What every rank says, in their order."""
        if self.world == 1:
            return [thing]
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, thing)
        return said

    def sent(self, values: Tensor | None, sender: int, shape: tuple[int, ...]) -> Tensor | None:
        """On rank 0 the float32 ``values`` of ``sender``, which have that shape; None elsewhere."""
        if sender == 0:
            return values
        if self.rank == sender:
            assert values is not None
            dist.send(values.to(self.device).contiguous(), 0)
        if self.rank != 0:
            return None
        received = torch.empty(shape, device=self.device)
        dist.recv(received, sender)
        return received.cpu()

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What is done here succeeds on every rank or fails on every rank, with the first failing rank's line."""
        line = None
        try:
            yield
        except NeuralregError as error:
            line = str(error)
        failed = [said for said in self.everyones(line) if said is not None]
        if failed:
            raise NeuralregError(failed[0])


@contextmanager
def joined(device: torch.device) -> Iterator[Together]:
    """Joins the processes that torchrun started, as :func:`neuralreg.distributed.ranks` does."""
    with ranks(device) as group:
        yield Together(group.device, group.rank, group.world, group.store)
