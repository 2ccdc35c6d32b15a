"""Runs a command and says what it cost: wall and CPU seconds, memory's high-water mark. Standard library only.

Linux counts the memory of the process that starts a command into the command's high-water mark. So a small process
has to stand between: this file, run as a script, is that process; ``run`` is how it is called.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cost:
    """Of a whole process, start to end, with its threads and the processes that it waited for."""

    code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str  # stdout and stderr together


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Runs a command to its end; ``environment`` is added to this process's own.

    When this process is interrupted meanwhile, so is the command, with whatever it has started.
    """
    with tempfile.TemporaryDirectory() as folder:
        report, output = Path(folder) / "cost.json", Path(folder) / "output"
        with output.open("wb") as stream:
            measuring = subprocess.Popen(
                [sys.executable, "-I", "-S", __file__, str(report), *command],
                stdout=stream,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
            try:
                code = measuring.wait()
            except BaseException:
                os.killpg(measuring.pid, signal.SIGKILL)
                measuring.wait()
                raise
        if code:
            raise subprocess.CalledProcessError(code, measuring.args)
        return Cost(**json.loads(report.read_text()), output=output.read_text(errors="replace"))


def end_with_clean_up() -> None:
    """Lets a termination end this process as an interrupt does, so that no command of ``run`` goes on alone."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def _measure(report: str, command: list[str]) -> None:
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
            os._exit(127)
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    result = {
        "code": os.waitstatus_to_exitcode(status),
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / unit,
    }
    Path(report).write_text(json.dumps(result))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2:])
