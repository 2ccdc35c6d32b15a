"""Measuring contenders that do the same work: error first, then time in turn, then memory."""

from __future__ import annotations

import ctypes
import functools
import gc
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], tuple[Tensor, ...]]
CUDA_CACHE = 1 << 28  # bytes that are written before a step on a GPU: more than any second-level cache holds


@dataclass(frozen=True)
class Setup:
    """What all cases of the kernels are made on: where, in which type, and on which volumes."""

    device: torch.device
    quick: bool = False
    dtype: torch.dtype = torch.float32
    sizes: tuple[tuple[int, ...], ...] = ()

    def volumes(self) -> list[tuple[int, ...]]:
        """Volumes that are measured: those asked for, or small, usual and large."""
        usual = [(48, 48, 48)] if self.quick else [(96, 96, 96), (160, 192, 224), (256, 256, 256)]
        return list(self.sizes or usual)

    @property
    def main(self) -> tuple[int, ...]:
        """Where one volume has to do: the usual one."""
        volumes = self.volumes()
        return volumes[min(1, len(volumes) - 1)]

    def lattice(self, stride: int) -> tuple[int, ...]:
        """Points of a lattice over the main volume: 54x64x75 of 160x192x224 with stride 3."""
        return tuple(-(-n // stride) for n in self.main)


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
    clock: str = ""  # how it was timed: see on_clock
    failed: str = ""  # its last words, where it raised an error; it is not timed then

    def quantile(self, share: float) -> float:
        """Of the wall times."""
        ordered = sorted(self.wall)
        return ordered[round(share * (len(ordered) - 1))]

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    def row(self, tolerance: float, floor: float | None = None) -> dict[str, Any]:
        """The columns of a table of measurements."""
        if self.failed:
            return {"failed": self.failed}
        return {
            "error": self.error,
            "in_tolerance": "" if math.isnan(self.error) else self.error <= tolerance,
            "median_ms": self.median * 1e3,
            "p20_ms": self.quantile(0.2) * 1e3,
            "p80_ms": self.quantile(0.8) * 1e3,
            "cpu_ms": statistics.median(self.cpu) * 1e3,
            "extra_mb": self.extra_bytes / 1e6,
            "floor_ms": "" if floor is None else floor * 1e3,
            "rounds": len(self.wall),
            "clock": self.clock,
        }


def measure(case: Case, device: torch.device, rounds: int, budget: float) -> list[Measurement]:
    """Every contender of a case: checked, then timed round by round in alternating order, then weighed.

    Rounds end early once ``budget`` seconds are spent, though never before three.
    """
    try:
        truth = case.truth()
    except RuntimeError as error:  # no memory, or a forced backend that has no float64
        words = f"no truth to hold it against: {str(error).strip().splitlines()[-1][:160]}"
        return [Measurement(name, float("nan"), failed=words) for name in case.contenders]
    found = [checked(name, step, truth) for name, step in case.contenders.items()]
    del truth
    sound = [one for one in found if not one.failed]
    in_turn(sound, [case.contenders[one.contender] for one in sound], device, rounds, budget)
    return found


def checked(name: str, step: Step, truth: tuple[Tensor, ...]) -> Measurement:
    """The first call of a contender: its error, or its last words where it cannot do the work here."""
    try:
        return Measurement(name, relative_error(step(), truth))
    except (RuntimeError, NotImplementedError) as error:  # no kernel, no memory, no compiler
        words = str(error).strip().splitlines() or [type(error).__name__]
        return Measurement(name, float("nan"), failed=words[-1][:200])


def in_turn(
    found: list[Measurement], steps: list[Step], device: torch.device, rounds: int, budget: float
) -> None:
    """Times steps that have run before, round by round in alternating order, then weighs them."""
    clocked = []
    for measurement, step in zip(found, steps, strict=True):
        clocked.append(on_clock(step, device))
        measurement.clock = clocked[-1][1]
    started = time.perf_counter()
    for turn in range(rounds):
        order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
        for index in order:
            wall, cpu = timed(clocked[index][0], device)
            found[index].wall.append(wall)
            found[index].cpu.append(cpu)
        if turn >= 2 and time.perf_counter() - started > budget:
            break
    del clocked  # graphs hold the memory that they replay in
    for measurement, step in zip(found, steps, strict=True):
        measurement.extra_bytes = extra_bytes(step, device)


def on_clock(step: Step, device: torch.device) -> tuple[Step, str]:
    """What is timed, and in a word how.

    On a GPU the step is captured once as a graph whose replays are timed, without the time that Python takes to launch
    ("graph"). A step that cannot be captured, because it asks the device for a number or draws on the CPU, is timed as
    it is ("events"). On a CPU that is the only way ("wall").
    """
    if device.type != "cuda":
        return step, "wall"
    try:
        return capture(step, device), "graph"
    except RuntimeError:
        torch.cuda.synchronize(device)
        return step, "events"


def capture(step: Step, device: torch.device) -> Step:
    """The replay of a step that was recorded as a CUDA graph. No measurement from a GPU stands for it yet.

    Raises:
        RuntimeError: the step does what no graph can hold.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return results

    return replay


def relative_error(results: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """Largest difference over largest magnitude, the worst of all results."""
    worst = 0.0
    for one, true in zip(results, truth, strict=True):
        scale = float(true.abs().max()) or 1.0
        worst = max(worst, float((one.double() - true).abs().max()) / scale)
    return worst


def timed(step: Step, device: torch.device) -> tuple[float, float]:
    """Wall and CPU seconds of one step; on a GPU the wall time lies between two events, behind a cold cache."""
    if device.type == "cuda":
        flush_cache(device)
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


@functools.cache
def _flushed(device: torch.device) -> Tensor:
    return torch.empty(CUDA_CACHE, dtype=torch.int8, device=device)


def flush_cache(device: torch.device) -> None:
    """Fills a GPU's second-level cache with something else, as the rest of an iteration would."""
    _flushed(device).zero_()


def free_bytes() -> float:
    """What the system says is available; NaN where it does not say."""
    try:
        with open("/proc/meminfo") as lines:
            line = next(line for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return float("nan")
    return float(line.split()[1]) * 1024


@contextmanager
def within_free_memory(device: torch.device) -> Iterator[None]:
    """On a CPU, what does not fit into nine tenths of the free memory is an error, not the end of the process."""
    free = free_bytes()
    if device.type != "cpu" or math.isnan(free):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = int(resident_bytes("VmData") + 0.9 * free)
    soft = wanted if before[0] == resource.RLIM_INFINITY else min(wanted, before[0])
    resource.setrlimit(resource.RLIMIT_DATA, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


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
    return 2 * 4 * volume / _best(lambda: (target.copy_(source),), device)


def product_rate(device: torch.device, size: int = 2048) -> float:
    """Floating-point operations a second that this machine reaches in a large float32 product, the best of several."""
    a, b = (torch.ones(size, size, device=device) for _ in range(2))
    return 2 * size**3 / _best(lambda: (a @ b,), device)


def _best(step: Step, device: torch.device) -> float:
    """Seconds of the fastest of eight. On a CPU those that its threads were busy, where the clock says more:
    a floor that other work on the machine lifts is none."""
    times = [timed(step, device) for _ in range(8)]
    busy = [cpu / torch.get_num_threads() for _, cpu in times if device.type == "cpu"]
    return min(*(wall for wall, _ in times), *busy)


@functools.cache
def floors(device: torch.device) -> tuple[float, float]:
    """Bytes and floating-point operations a second that this machine reaches."""
    return bandwidth(device), product_rate(device)


def floor_seconds(floor_bytes: float, flops: float, device: torch.device) -> float:
    """What so many bytes moved, or so many operations of products, take on this machine: whichever is longer."""
    speed, rate = floors(device)
    return max(floor_bytes / speed, flops / rate)


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


def smooth_pair(
    size: tuple[int, ...], device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Two images (1, 1, *size) in [0, 1] that resemble each other as a registered pair does."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(2, 1, *[max(2, n // 6) for n in size], generator=random)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    fixed, other = torch.nn.functional.interpolate(coarse, size=size, mode=mode, align_corners=True)[:, None]
    # In place and in slabs: of large volumes no third one is held, which memory-scaling would count as the step's.
    other.mul_(0.3).add_(fixed, alpha=0.6)
    for slab in other[0, 0]:
        slab.add_(torch.rand(slab.shape, generator=random), alpha=0.1)
    return fixed.to(device, dtype), other.to(device, dtype)
