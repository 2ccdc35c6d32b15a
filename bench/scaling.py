"""What an iteration takes in a process of its own, this module run by `taken`: peak memory beyond imports, seconds."""

from __future__ import annotations

import functools
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuralreg.bench.process import run
from neuralreg.errors import InputError

MB = 1 << 20
STEPS = 3  # the first one warms up
PATIENCE = (
    20.0  # CPU seconds: a step that takes longer is the last one, and the warm-up where it is the first
)
# Ours by method, preset and stage; "register" is the whole of neuralreg.register with very few iterations
WORKS: dict[str, tuple[str, str, str]] = {
    "nir fast": ("nir", "fast", "fit"),
    "nir fast, register": ("nir", "fast", "register"),
    "ncf fast": ("ncf", "fast", "fit"),
    "ncf fast, register": ("ncf", "fast", "register"),
    "nephi paper, train": ("nephi", "paper", "train"),
    "nephi paper, refine": ("nephi", "paper", "refine"),
    "nephi fast, register": ("nephi", "fast", "register"),
    "ofg fast, train": ("ofg", "fast", "train"),
    "ofg fast, register": ("ofg", "fast", "register"),
}
VOXEL = ("dense-field, refine", "voxel-unet, train")  # of bench/voxel_unet.py


def taken(work: str, size: int, points: int | None, limit_mb: float | None, threads: int) -> dict[str, Any]:
    """Columns of a row: times of a step, peak_mb and extra_mb, or ``failed``, where the limit ended it, too."""
    words = json.dumps([work, size, points, limit_mb, threads])
    cost = run(
        [sys.executable, "-m", "neuralreg.bench.scaling", words],
        {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
    )
    last = (cost.output.strip().splitlines() or ["no output"])[-1]
    if cost.code:
        out = (
            any(sign in cost.output.lower() for sign in ("allocate", "memory", "bad_alloc"))
            or cost.code == -9
        )
        if out:  # what is looked for, not a fault
            return {"failed": f"more than the memory allowed: {last[:160]}", "beyond_limit": True}
        return {"failed": last[:200]}
    times, cpu = (sorted(json.loads(last)[name]) for name in ("seconds", "cpu_seconds"))
    return {
        "median_ms": 1e3 * statistics.median(times),
        "p20_ms": 1e3 * times[0],
        "p80_ms": 1e3 * times[-1],
        "cpu_ms": 1e3 * statistics.median(cpu),
        "rounds": len(times),
        "peak_mb": cost.peak_mb * MB / 1e6,
        "extra_mb": (cost.peak_mb - bare().peak_mb) * MB / 1e6,
    }


@functools.cache
def bare() -> Any:
    """A process that imports the same and measures nothing."""
    cost = run([sys.executable, "-c", "import neuralreg.bench.steps, neuralreg.bench.voxel_unet"])
    if cost.code:
        raise InputError(f"a bare process failed: {cost.output.strip()[-200:]}")
    return cost


def voxel_step(name: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """A step of a voxel field or network in plain torch."""
    import torch

    from neuralreg.bench.harness import smooth_pair
    from neuralreg.bench.voxel_unet import VoxelUNet, network_step, two_way_loss

    fixed, moving = smooth_pair(shape, torch.device("cpu"))
    if name.startswith("voxel-unet"):
        network = VoxelUNet()
        parameters: Any = list(network.parameters())
        loss = functools.partial(network_step, network, fixed, moving)
    else:
        parameters = [torch.zeros(1, 3, *shape, requires_grad=True) for _ in range(2)]
        loss = functools.partial(two_way_loss, parameters[0], parameters[1], fixed, moving)
    optimiser = torch.optim.Adam(parameters, lr=1e-4)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        loss().backward()
        optimiser.step()

    return step


def make(work: str, size: int, points: int | None) -> Callable[[], Any]:
    """The step of a work on a cube."""
    import torch

    from neuralreg.bench.steps import Work

    shape = (size,) * 3
    if work in VOXEL:
        return voxel_step(work, shape)
    method, preset, stage = WORKS[work]
    if stage == "register":
        return registration(method, preset, shape)
    return Work(method, preset, stage).make(shape, torch.device("cpu"), points=points)


def registration(method: str, preset: str, shape: tuple[int, ...]) -> Callable[[], Any]:
    """A whole registration: two iterations of a fit, or the prediction of a network that nobody has trained."""
    import torch

    import neuralreg
    from neuralreg.bench.harness import smooth_pair
    from neuralreg.methods import ofg
    from neuralreg.training.trainee import save_trainee

    images = [image[0, 0] for image in smooth_pair(shape, torch.device("cpu"))]
    if method != "ofg":
        return lambda: neuralreg.register(*images, method=method, preset=preset, iterations=2)

    def predicted() -> None:
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "untrained.pt"
            save_trainee(ofg.make_trainee(ofg.PRESETS[preset], shape, len(shape), 0), weights)
            neuralreg.register(*images, method=method, weights=weights)

    return predicted


def main(words: str) -> None:
    work, size, points, limit_mb, threads = json.loads(words)
    if limit_mb:
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_mb * 1e6),) * 2)
    import torch

    torch.set_num_threads(threads)
    step = make(work, size, points)
    seconds: list[float] = []
    cpu: list[float] = []
    while len(seconds) < STEPS and (not cpu or cpu[-1] <= PATIENCE):
        start, before = time.perf_counter(), time.process_time()
        step()
        seconds.append(time.perf_counter() - start)
        cpu.append(time.process_time() - before)
    print(json.dumps({"seconds": seconds[1:] or seconds, "cpu_seconds": cpu[1:] or cpu}))


if __name__ == "__main__":
    main(sys.argv[1])
