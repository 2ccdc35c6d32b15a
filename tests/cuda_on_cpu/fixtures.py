"""The cuda backend on tensors of the CPU, for the tests of its kernels."""

from __future__ import annotations

import random

import pytest

from neuralreg.kernels.backends import (
    cuda,
    cuda_box,
    cuda_conv,
    cuda_encoding,
    cuda_field,
    cuda_lattice,
    cuda_refine,
    cuda_sampling,
    registry,
)

from .build import Library


@pytest.fixture(scope="module")
def library() -> Library:
    return Library()


@pytest.fixture(autouse=True)
def kernels(library: Library, monkeypatch: pytest.MonkeyPatch) -> Library:
    """In every test of a file that imports this, the cuda backend serves tensors of the CPU."""
    monkeypatch.setattr(cuda, "module", library.module)
    monkeypatch.setattr(cuda, "_where", lambda tensor: (0, 0))
    parts = (cuda, cuda_box, cuda_conv, cuda_encoding, cuda_field, cuda_lattice, cuda_refine, cuda_sampling)
    functions = {op: function for part in parts for op, function in part.FUNCTIONS.items()}
    monkeypatch.setitem(registry._functions, "cuda", functions)
    monkeypatch.setitem(registry._SERVES_DEVICE, "cuda", "cpu")
    monkeypatch.delitem(registry._broken, "cuda", raising=False)
    library.order(random.randrange(2, 1000))
    library.shared_memory(99 * 1024)
    return library
