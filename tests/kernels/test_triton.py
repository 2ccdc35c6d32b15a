"""The tests of the triton backend's ops, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from neuralreg.kernels.backends import registry

ROOT = Path(__file__).resolve().parents[2]
# The dense gradcheck and the scan of real data take the interpreter long and tell it nothing new; wrong arguments
# never reach a backend.
CHOSEN = "triton and not gradcheck_in_two_dimensions and not raw_hounsfield and not wrong_arguments"
FILES = ("test_lncc.py", "test_lncc_gradients.py", "test_triton_lncc.py", "test_triton_ssim.py")


def interpreted(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the interpreter chosen, which has to happen before triton is imported."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "NEURALREG_BACKEND"))}
    environment |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(registry.interpreted, reason="this process runs them itself")
@pytest.mark.parametrize("file", FILES)
def test_in_the_interpreter(file: str) -> None:
    path = f"tests/kernels/{file}"
    done = interpreted(
        "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN, path
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= 15, done.stdout


def test_the_package_does_not_import_triton() -> None:
    code = "import sys, neuralreg.kernels as k; k.backends(); print('triton.language' in sys.modules)"
    done = interpreted("-c", code)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
