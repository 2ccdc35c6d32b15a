"""The machine and the installed packages, in words: for doctor and for the summary of a run."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version


def cpu_name() -> str:
    """The processor's model name as the system gives it."""
    system = platform.system()
    try:
        if system == "Linux":
            with open("/proc/cpuinfo") as info:
                return next(line.split(":", 1)[1].strip() for line in info if line.startswith("model name"))
        if system == "Darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, StopIteration, subprocess.CalledProcessError):
        return platform.machine()  # some ARM kernels name no model
    return platform.processor() or platform.machine()


def package_version(name: str) -> str:
    """Version of an installed package; "not installed" also for a checkout that was never installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
