"""Processes that work together, started by torchrun: who they are and the few things that they tell each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from neuralreg.errors import InputError


class Ranks:
    """This process among its peers. One process alone is rank 0 of 1, and nothing is communicated."""

    def __init__(
        self, device: torch.device, rank: int = 0, world: int = 1, store: dist.Store | None = None
    ) -> None:
        self.device, self.rank, self.world = device, rank, world
        self.store = store  # what the ranks may leave words in, also when one of them is about to end

    @property
    def first(self) -> bool:
        """Whether this rank writes the files."""
        return self.rank == 0

    def mine(self, count: int) -> range:
        """This rank's share of ``count`` things: neighbours, sizes differing by one at most."""
        return range(self.rank * count // self.world, (self.rank + 1) * count // self.world)

    def sums(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def wait(self) -> None:
        """Until all ranks are here."""
        self.sums([0.0])

    def average(self, parameters: Sequence[nn.Parameter], losses: Tensor, weight: float) -> Tensor:
        """Replaces the gradients by their weighted sum over the ranks, and returns that of the losses.

        ``weight`` is this rank's share of the batch. One message carries all; it takes one copy of the gradients.
        """
        if self.world == 1:
            return losses
        gradients = [p.grad for p in parameters if p.grad is not None]
        message = torch.cat([losses, *(g.flatten() for g in gradients)]) * weight
        dist.all_reduce(message)
        sizes = [len(losses), *(g.numel() for g in gradients)]
        summed, *parts = message.split(sizes)
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))
        return summed

    @torch.no_grad()
    def same_start(self, module: nn.Module) -> None:
        """Gives every rank the parameters and buffers of rank 0."""
        if self.world > 1:
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.data, 0)

    @torch.no_grad()
    def average_buffers(self, module: nn.Module, weight: float) -> None:
        """Averages running statistics, which every rank gathers from its own share of the batch."""
        if self.world == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.mul_(weight)
                dist.all_reduce(buffer.data)


@contextmanager
def ranks(device: torch.device, patience: timedelta | None = None) -> Iterator[Ranks]:
    """Joins the processes that torchrun started (NCCL on GPUs, gloo on CPUs); alone without torchrun.

    On GPUs each process takes the one of its local rank. A group that exists already is used and left open.
    ``patience`` is how long one process waits for another before it takes it for lost; torch's own time by default.
    """
    started, store = False, None
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            here = int(os.environ.get("LOCAL_WORLD_SIZE", device.index + 1))
            if here > torch.cuda.device_count():
                raise InputError(
                    f"{here} processes on this machine, and {torch.cuda.device_count()} GPUs: start at most one a GPU"
                )
            torch.cuda.set_device(device)
        store, rank, world = next(dist.rendezvous("env://"))
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
        started = True
    try:
        if dist.is_initialized():
            yield Ranks(device, dist.get_rank(), dist.get_world_size(), store)
        else:
            yield Ranks(device)
    finally:
        if started and dist.is_initialized():
            dist.destroy_process_group()
