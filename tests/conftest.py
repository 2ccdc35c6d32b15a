"""What all tests share: seeds, the folder of real data, and the gpu marker."""

from __future__ import annotations

import inspect
import os
import random
from pathlib import Path

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped where there is none")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers already fill the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


def pytest_make_parametrize_id(val: object) -> str | None:
    # A function's repr names its address, which differs between xdist's workers: they must collect the same names.
    return val.__name__ if inspect.isroutine(val) else None


@pytest.fixture(autouse=True)
def _seeds() -> None:
    torch.manual_seed(0)
    random.seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of the real data: NEURALREG_DATA, else shared/data beside the checkout; without it, a skip."""
    named = os.environ.get("NEURALREG_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} does not exist (NEURALREG_DATA names another folder)")
    return folder
