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
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Cost:
    """Of a whole process, start to end, with its threads and the processes that it waited for."""

    code: int
    wall_seconds: float
    cpu_seconds: float
    peak_mb: float
    output: str  # stdout and stderr together
    # Memory of the process and its children summed over time, as FLARE22 scored it; NaN without /proc
    area_mb_s: float = float("nan")


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


class Area(threading.Thread):
    """Samples the resident memory of a process and its descendants, ten times a second, while it runs."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.value, self.ended = pid, 0.0, threading.Event()

    def run(self) -> None:
        if not Path("/proc/self/statm").exists():
            self.value = float("nan")
            return
        before, held = time.perf_counter(), _resident_mb(self.pid)
        over = False
        while not over:
            over = self.ended.wait(SAMPLE_SECONDS)
            now = time.perf_counter()
            self.value += held * (now - before)
            before, held = now, _resident_mb(self.pid)


def _resident_mb(pid: int) -> float:
    """Of a process and its descendants; 0 of one that has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children")
        others = children.read_text().split() if children.exists() else []
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20) + sum(_resident_mb(int(other)) for other in others)


def _measure(report: str, command: list[str]) -> None:
    start = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error}", file=sys.stderr, flush=True)
            os._exit(127)
    area = Area(child)
    area.start()
    _, status, usage = os.wait4(child, 0)
    wall = time.perf_counter() - start
    area.ended.set()
    area.join()
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10
    result = {
        "code": os.waitstatus_to_exitcode(status),
        "wall_seconds": wall,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / unit,
        "area_mb_s": area.value,
    }
    Path(report).write_text(json.dumps(result))


if __name__ == "__main__":
    _measure(sys.argv[1], sys.argv[2:])
