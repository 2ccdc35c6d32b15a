"""The tests of the triton backend's ops, run by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib.util
import re
import subprocess

import pytest

from neuralreg.kernels.backends import registry
from tests.processes import python

# The dense gradcheck and the scan of real data take the interpreter long and tell it nothing new, as does the second
# numerator of test_eps_modes; wrong arguments never reach a backend. What the encodings' gradcheck and float32 would
# tell, the field's own tests do.
CHOSEN = "triton and not (gradcheck_in_two_dimensions or raw_hounsfield or 0.01- or wrong_arguments or "
CHOSEN += "hash_gradcheck or fourier_gradcheck or hash_float32 or smooth_gradcheck)"
# Files of one process, and the least number of tests in them that have to pass
FILES = [
    (("lncc", "lncc_gradients"), 80),
    (("triton_lncc", "triton_ssim", "triton_ops", "box"), 50),
    (("encoding",), 40),
    (("triton_encoding", "triton_field"), 60),
    (("triton_sampling",), 33),
    (("triton_lattice", "triton_refine"), 39),
]


def interpreted(*words: object) -> subprocess.CompletedProcess[str]:
    """Runs Python with the interpreter chosen, which has to happen before triton is imported."""
    without = ("PYTEST_", "NEURALREG_BACKEND")
    return python(*words, without=without, TRITON_INTERPRET="1", OMP_NUM_THREADS="1")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(registry.interpreted, reason="this process runs them itself")
@pytest.mark.parametrize(("files", "least"), FILES, ids=[files[0] for files, _ in FILES])
def test_in_the_interpreter(files: tuple[str, ...], least: int) -> None:
    paths = [f"tests/kernels/test_{file}.py" for file in files]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", CHOSEN]
    done = interpreted("-m", "pytest", *options, *paths)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout
    assert int(passed[1]) >= least, done.stdout


def test_the_package_does_not_import_triton() -> None:
    code = "import sys, neuralreg.kernels as k; k.backends(); print('triton.language' in sys.modules)"
    done = interpreted("-c", code)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
