"""Processes beside that of the tests: Python started anew, and functions side by side as torchrun starts its ranks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 600.0  # seconds after which a process hangs
# Forked processes find these imported: that takes longer than what they do. Without one of them they are slower.
IMPORTED_ONCE = (
    "pytest",
    "typer.testing",
    "torch._dynamo",  # which the first step of an optimiser imports
    "neuralreg.cli.register",
    "neuralreg.cli.train",
    "neuralreg.methods.nephi",
    "neuralreg.methods.ofg",
    "neuralreg.cli.together",
    "neuralreg.sharded.registration",
    "neuralreg.training.augment",
    "neuralreg.training.layouts",
    "neuralreg.training.loop",
    "neuralreg.training.split",
)


def python(
    *words: object, cwd: Path = ROOT, without: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python with these words and waits for it.

    Its environment is ours without the variables that begin as in ``without``, and with ``variables``.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@dataclass(frozen=True)
class Job:
    """A function for a process of its own, which finds it by name; ``told`` + "1" and "2" get its output and errors."""

    work: Callable[..., None]
    arguments: Sequence[Any]
    told: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def ranks(world: int) -> list[dict[str, str]]:
    """The environment of every rank, as torchrun sets it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(world)]


def side_by_side(jobs: Sequence[Job]) -> list[int]:
    """Runs the jobs at once, a thread each; their exit codes, -N where signal N has ended one."""
    if sys.platform != "linux":
        pytest.skip("processes are forked")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_ONCE))
    processes = [context.Process(target=_run, args=(job,)) for job in jobs]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE)
    late = [job.told for job, process in zip(jobs, processes, strict=True) if process.exitcode is None]
    for process in processes:
        process.kill()
    assert not late, f"these hang: {late}"
    return [int(process.exitcode or 0) for process in processes]


def command(*words: str) -> None:
    """`neuralreg` with these words, as a job's work."""
    from neuralreg.cli import main

    sys.argv = ["neuralreg", *words]
    main()


def told(jobs: Sequence[Job]) -> str:
    """What the jobs have said of their errors."""
    return "\n".join(Path(f"{job.told}2").read_text() for job in jobs)


def _run(job: Job) -> None:
    import torch

    for stream in (1, 2):
        os.dup2(os.open(f"{job.told}{stream}", os.O_WRONLY | os.O_CREAT), stream)
    os.environ.update(job.environment)
    torch.set_num_threads(1)
    job.work(*job.arguments)
