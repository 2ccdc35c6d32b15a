"""Measuring contenders that do the same work: error first, then time in turn, then memory."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """The same work done by several contenders.

    Attributes:
        op, work: what is measured, and on what; together they name the case.
        contenders: name to a step that returns the op's results and gradients. Ours first.
        truth: results in float64, what errors are taken against.
        tolerance: largest relative error (largest difference over largest magnitude, any result); a contender
            beyond it is shown and not ranked.
        floor_bytes: bytes that any implementation has to move from and to memory.
        flops: floating-point operations of its matrix products.
    """

    op: str
    work: str
    contenders: dict[str, Step]
    truth: Callable[[], tuple[Tensor, ...]]
    tolerance: float
    floor_bytes: float
    flops: float = 0.0


@dataclass
class Measurement:
    """What one contender reached; times in seconds, bytes beyond what was allocated before the step."""

    contender: str
    error: float
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    extra_bytes: float = float("nan")

    def quantile(self, share: float) -> float:
        """Of the wall times."""
        ordered = sorted(self.wall)
        return ordered[round(share * (len(ordered) - 1))]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)


def measure(case: Case, device: torch.device, rounds: int, budget: float) -> list[Measurement]:
    """Every contender of a case: checked, then timed round by round in alternating order, then weighed.

    Rounds end early once ``budget`` seconds are spent, though never before three.
    """
    truth = case.truth()
    found = [Measurement(name, relative_error(step(), truth)) for name, step in case.contenders.items()]
    del truth
    steps = list(case.contenders.values())
    started = time.perf_counter()
    for turn in range(rounds):
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            wall, cpu = timed(steps[index], device)
            found[index].wall.append(wall)
            found[index].cpu.append(cpu)
        if turn >= 2 and time.perf_counter() - started > budget:
            break
    for measurement, step in zip(found, steps, strict=True):
        measurement.extra_bytes = extra_bytes(step, device)
    return found


def relative_error(results: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Largest difference over largest magnitude, the worst of all results."""
    worst = 0.0
    for one, true in zip(results, truth, strict=True):
        scale = float(true.abs().max()) or 1.0
        worst = max(worst, float((one.double() - true).abs().max()) / scale)
    return worst


def timed(step: Step, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of one step; on a GPU the wall time lies between two events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(device)
        start.record()
        step()
        end.record()
        torch.cuda.synchronize(device)
        return start.elapsed_time(end) / 1e3, float("nan")
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - wall, time.process_time() - cpu


def extra_bytes(step: Step, device: torch.device) -> float:
    """High-water mark of memory during a step beyond what was there before; NaN where it cannot be had."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
        step()
        return float(torch.cuda.max_memory_allocated(device) - held)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free goes back, or the step could hide in it
        with open("/proc/self/clear_refs", "w") as reset:
            reset.write("5")
        before = resident_bytes("VmRSS")
        step()
        return resident_bytes("VmHWM") - before
    except OSError:
        return float("nan")


def resident_bytes(name: str) -> float:
    """A size in bytes from /proc/self/status."""
    with open("/proc/self/status") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def bandwidth(device: torch.device, volume: int = 1 << 25) -> float:
    """Bytes a second that this machine reads and writes in a long copy, the best of several."""
    source = torch.ones(volume, device=device)
    target = torch.empty_like(source)
    best = min(timed(lambda: (target.copy_(source),), device)[0] for _ in range(8))
    return 2 * 4 * volume / best


def product_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second that this machine reaches in a large float32 product, the best of several."""
    a, b = (torch.ones(size, size, device=device) for _ in range(2))
    best = min(timed(lambda: (a @ b,), device)[0] for _ in range(8))
    return 2 * size**3 / best


def gradient_step(
    function: Callable[..., Tensor], arguments: tuple[Tensor, ...], wanted: tuple[int, ...]
) -> Step:
    """A step that returns a scalar function's value and its gradients for the ``wanted`` arguments."""

    def step() -> tuple[Tensor, ...]:
        leaves = [
            argument.detach().requires_grad_(index in wanted) for index, argument in enumerate(arguments)
        ]
        value = function(*leaves)
        gradients = torch.autograd.grad(value, [leaves[index] for index in wanted])
        return (value.detach(), *gradients)

    return step


def smooth_pair(size: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Two images (1, 1, *size) in [0, 1] that resemble each other as a registered pair does."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, *[max(2, n // 6) for n in size], generator=random)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    fixed, other = torch.nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)[:, None]
    noise = torch.rand(1, 1, *size, generator=random)
    return fixed.to(device), (0.6 * fixed + 0.3 * other + 0.1 * noise).to(device)


def sizes(quick: bool) -> Iterator[tuple[int, ...]]:
    """Volumes that are measured."""
    yield from [(64, 64, 64)] if quick else [(96, 96, 96), (160, 192, 224), (256, 256, 256)]
