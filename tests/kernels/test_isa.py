"""Every instruction set that this CPU has gives the reference's numbers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuralreg.kernels.backends import native, registry

SERVES, REASON = registry.available("cpu")
ISAS = native.cpu_isas() if SERVES else []


def run(isa: str, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NEURALREG_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=root, capture_output=True, text=True, timeout=300
    )


@pytest.mark.skipif(not SERVES, reason=REASON)
def test_base_is_always_there() -> None:
    assert "base" in ISAS
    assert native.cpu_isa() in ISAS


@pytest.mark.parametrize("isa", ISAS)
def test_parity(isa: str) -> None:
    done = run(isa, "-m", "tests.kernels.parity")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == f"isa {isa}"
    assert done.stdout.splitlines()[-1].endswith("wrong 0")
