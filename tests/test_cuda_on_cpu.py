"""The stand-in for CUDA notices kernels that are wrong, and nvcc takes the ones that are right."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from .cuda_on_cpu.build import HERE, KERNELS, ROOT, made

SANITIZE = ["-fsanitize=address", "-g1"]
ORDERS = ["0", "1", "2", "3"]


def run(program: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def broken() -> Path:
    return made("broken", [HERE / "broken.cu"], SANITIZE, SANITIZE)


@pytest.mark.parametrize("case", ["right", "barrier"])
def test_a_right_kernel_gives_the_same_in_any_order(broken: Path, case: str) -> None:
    outputs = [run(broken, case, order) for order in ORDERS]
    assert [done.returncode for done in outputs] == [0] * len(ORDERS), outputs[0].stderr
    assert len({done.stdout for done in outputs}) == 1


def test_warp_operations_and_atomics_compute_what_cuda_says(broken: Path) -> None:
    lanes = range(64)
    expected = [32, 32]
    for i in lanes:
        values = [64 - j for j in lanes if j // 32 == i // 32]
        up = i - 1 if i % 32 else i
        expected.append(sum(values) + 2 + 100 * up + 10000 * (i // 8 * 8))
    assert [int(float(v)) for v in run(broken, "right").stdout.split()] == expected


def test_a_missing_barrier_shows_in_another_order(broken: Path) -> None:
    outputs = {run(broken, "missing_barrier", order).stdout for order in ORDERS}
    assert len(outputs) > 1


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("partial_barrier", "a barrier is reached by only part of the block: "),
        ("two_barriers", "threads wait at two barriers: "),
        ("partial_shuffle", "a warp operation is reached by only part of its lanes: "),
        ("too_much_shared", "more dynamic shared memory than the device has"),
    ],
)
@pytest.mark.parametrize("order", ["0", "5"])
def test_threads_that_do_not_meet_are_an_error(broken: Path, case: str, message: str, order: str) -> None:
    done = run(broken, case, order)
    assert done.returncode == 3
    assert f"noticed: {message}" in done.stderr


@pytest.mark.parametrize("case", ["beyond_memory", "beyond_dynamic_shared", "beyond_static_shared"])
def test_an_access_out_of_bounds_ends_the_program(broken: Path, case: str) -> None:
    done = run(broken, case)
    assert done.returncode not in (0, 3)
    assert "AddressSanitizer" in done.stderr


def test_shared_memory_starts_as_nan(broken: Path) -> None:
    assert "nan" in run(broken, "unwritten_shared").stdout


@pytest.mark.thorough  # every kernel compiled once more, with the sanitizer
@pytest.mark.parametrize("program", ["exact_buffers", "exact_field", "exact_lattice", "exact_sampling"])
def test_kernels_stay_within_their_buffers(program: str) -> None:
    sources = [*KERNELS, HERE / f"{program}.cpp"]
    done = run(made(program, sources, SANITIZE, SANITIZE))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all within bounds\n"


@pytest.fixture(scope="module")
def cuda_tools() -> Any:
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc/build_cuda.py")
    assert spec is not None
    assert spec.loader is not None
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    return tools


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_nvcc_compiles_without_spills(cuda_tools: Any, kernel: Path) -> None:
    rows = cuda_tools.registers(cuda_tools.compiler(), kernel, "80")
    assert rows
    assert [row for row in rows if row[2] > 0] == []


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc here")
def test_architectures(cuda_tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nvcc = cuda_tools.compiler()
    monkeypatch.setenv("NEURALREG_CUDA_ARCHS", "8.0,sm_90")
    assert cuda_tools.code_flags(nvcc) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]
    monkeypatch.setenv("NEURALREG_CUDA_ARCHS", "12")
    with pytest.raises(cuda_tools.CudaError, match="does not compile for sm_12"):
        cuda_tools.code_flags(nvcc)
