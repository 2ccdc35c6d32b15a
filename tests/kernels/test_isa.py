"""Every instruction set that this CPU has gives the reference's numbers."""

from __future__ import annotations

import pytest

from neuralreg.kernels.backends import native, registry
from tests.processes import python

SERVES, REASON = registry.available("cpu")
ISAS = native.cpu_isas() if SERVES else []


@pytest.mark.skipif(not SERVES, reason=REASON)
def test_base_is_always_there() -> None:
    assert "base" in ISAS
    assert native.cpu_isa() in ISAS


@pytest.mark.parametrize("isa", ISAS)
def test_parity(isa: str) -> None:
    done = python("-m", "tests.kernels.parity", NEURALREG_CPU_ISA=isa, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == f"isa {isa}"
    assert done.stdout.splitlines()[-1].endswith("wrong 0")
