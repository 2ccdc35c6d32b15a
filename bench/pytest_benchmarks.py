"""The kernels as benchmarks of pytest-benchmark: ``pytest bench/pytest_benchmarks.py -k lncc``."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch

from neuralreg.bench import kernels
from neuralreg.bench.harness import Case, Setup, relative_error

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

SETUP = Setup(torch.device("cuda" if torch.cuda.is_available() else "cpu"), quick=True)
FAMILIES = sorted(module.name for module in pkgutil.iter_modules(kernels.__path__))


def _cases(family: str) -> list[Case]:
    return list(importlib.import_module(f"{kernels.__name__}.{family}").cases(SETUP))


def pytest_generate_tests(metafunc: Any) -> None:
    """A test a family, case and contender; families that -k leaves out make no tensors."""
    words = metafunc.config.getoption("keyword")
    chosen = [family for family in FAMILIES if family in words] or FAMILIES
    found = [
        pytest.param(case, name, id=f"{family}: {case.op}, {case.work}: {name}")
        for family in chosen
        for case in _cases(family)
        for name in case.contenders
    ]
    metafunc.parametrize(("case", "contender"), found)


def test_kernel(benchmark: Any, case: Case, contender: str) -> None:
    step = case.contenders[contender]
    if relative_error(step(), case.truth()) > case.tolerance:
        pytest.fail(f"{contender} is out of tolerance and not ranked")
    benchmark.group = f"{case.op}, {case.work}"

    def run() -> None:
        step()
        if SETUP.device.type == "cuda":
            torch.cuda.synchronize()

    benchmark(run)
