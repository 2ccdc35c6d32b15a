"""One fit watched from its start: how good the field is after so many iterations, and what they cost.

``watched`` runs the fit in a process of its own, so that its memory is its own. The looks at the field cost neither
time nor memory: the clock stands still, and memory's high-water mark starts anew behind each.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import pickle
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from neuralreg.bench.harness import resident_bytes
from neuralreg.bench.pairs import RealPair, prepare
from neuralreg.bench.process import run
from neuralreg.bench.scores import score
from neuralreg.errors import NeuralregError
from neuralreg.options import resolve
from neuralreg.registration import METHODS
from neuralreg.transforms import Transform


@dataclass(frozen=True)
class Job:
    """A fit to watch: preset and options of a method, and every how many iterations to look."""

    pair: RealPair
    method: str
    preset: str
    options: dict[str, Any]
    every: int
    seed: int = 0
    threads: int = 1


@dataclass
class Curve:
    """What the looks found, one row each: iteration, the scores, and what the fit has cost so far.

    seconds, cpu_seconds; peak_mb, memory of the process, and fit_mb, what of it the fit has added.
    """

    rows: list[dict[str, float]] = field(default_factory=list)
    error: str = ""


def watched(job: Job) -> Curve:
    """The job in a process of its own; where it fails, the curve has no rows and the last words as its error."""
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder) / "job.pickle", Path(folder) / "curve.json"
        request.write_bytes(pickle.dumps(job))
        command = [sys.executable, "-m", "neuralreg.bench.curves", str(request), str(answer)]
        cost = run(command, {"OMP_NUM_THREADS": str(job.threads)})
        if cost.code != 0:
            words = cost.output.strip().splitlines() or [f"exit code {cost.code}"]
            return Curve([], words[-1])
        return Curve(json.loads(answer.read_text()))


def measure(job: Job) -> list[dict[str, float]]:
    """The rows of a job, in this process."""
    method = importlib.import_module(METHODS[job.method])
    options = resolve(method.PRESETS, job.preset, job.options, job.method)
    pair, fixed, moving = prepare(job.pair.fixed, job.pair.moving, job.pair.initial, job.pair.window)
    clock = _Clock()
    rows: list[dict[str, float]] = []

    def watch(iteration: int, field: nn.Module) -> None:
        if iteration % job.every and iteration != options.iterations:
            return
        clock.stop()
        displacement = method.dense_displacement(field, pair.grid)
        transform = Transform(displacement, fixed.geometry, moving.geometry, job.pair.initial)
        rows.append({"iteration": iteration, **score(job.pair, transform), **clock.read()})
        clock.start()

    clock.start()
    method.fit(pair, options, seed=job.seed, watch=watch)
    return rows


class _Clock:
    """Seconds and memory of what happens between start and stop."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.peak = 0.0
        self.held = _resident("VmRSS")

    def start(self) -> None:
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.peak = float("nan")
        self.started = time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.wall += time.perf_counter() - self.started[0]
        self.cpu += time.process_time() - self.started[1]
        if self.peak == self.peak:
            self.peak = max(self.peak, _resident("VmHWM"))

    def read(self) -> dict[str, float]:
        return {
            "seconds": self.wall,
            "cpu_seconds": self.cpu,
            "peak_mb": self.peak,
            "fit_mb": self.peak - self.held,
        }


def _resident(name: str) -> float:
    """Megabytes; NaN where /proc does not tell."""
    try:
        return resident_bytes(name) / (1 << 20)
    except OSError:
        return float("nan")


if __name__ == "__main__":
    asked, told = sys.argv[1:]
    # Written by the process that started this one. What is read here is named by the module it was imported as.
    from neuralreg.bench import curves

    wanted = pickle.loads(Path(asked).read_bytes())
    torch.set_num_threads(wanted.threads)
    try:
        Path(told).write_text(json.dumps(curves.measure(wanted)))
    except NeuralregError as error:
        sys.exit(str(error))
