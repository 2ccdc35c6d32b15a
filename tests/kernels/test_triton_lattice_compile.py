"""The Triton sampling, lattice and refinement kernels up to the launch, for a GPU that is not there: every call of the
host code is bound and its kernel compiled for sm_90, as the first call on a GPU would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuralreg.kernels.backends import registry

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(registry.interpreted, reason="with TRITON_INTERPRET=1 nothing can be compiled"),
]


class NoDriver:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 998  # not a device of this machine: kernels are kept by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


@pytest.fixture
def compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The kernels by name, as far as the test has called them."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.runtime.jit import JITFunction

    found: dict[str, Any] = {}
    launch = JITFunction.run

    def only_compile(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        assert all(size > 0 for size in grid)
        found[self.__name__] = launch(self, *args, grid=grid, warmup=True, **options)
        return found[self.__name__]

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(JITFunction, "run", only_compile)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDriver())
    return found


def built(compiled: dict[str, Any], *names: str) -> None:
    assert set(compiled) == {*names}
    assert all(kernel.asm["cubin"] for kernel in compiled.values())


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float32, [5, 6, 7]), (torch.float64, [5, 1]), (torch.bfloat16, [1, 1])],
    ids=str,
)
def test_sampling(compiled: dict[str, Any], dtype: torch.dtype, sizes: list[int]) -> None:
    from neuralreg.kernels.backends import triton_sampling

    wide = torch.promote_types(dtype, torch.float32)
    image, u = torch.zeros(2, 2, *sizes, dtype=dtype), torch.zeros(2, len(sizes), *sizes, dtype=wide)
    affine = torch.zeros(2, len(sizes), len(sizes) + 1, dtype=wide)
    value, slopes = triton_sampling.warp_with_gradient_forward(image, u, affine, "reflection")
    torch.use_deterministic_algorithms(dtype == torch.float64)
    try:
        options = (image, u, affine, "reflection", True, True, True)
        triton_sampling.warp_with_gradient_backward(value, slopes, *options)
    finally:
        torch.use_deterministic_algorithms(False)
    built(compiled, "sample_forward_kernel", "sample_backward_kernel")
    grid = torch.zeros(2, *sizes, len(sizes), dtype=wide)
    triton_sampling.sample_forward(image, grid, None, True, "bilinear", "zeros", False, False)
    wants = (True, True, False)
    triton_sampling.sample_backward(value, image, grid, None, None, True, "bilinear", "zeros", False, *wants)
    ptx = compiled["sample_backward_kernel"].asm["ptx"]
    assert "atom" in ptx or "red." in ptx
    triton_sampling.sample_forward(image, grid, None, True, "nearest", "border", True, False)
    triton_sampling.sample_backward(value, image, grid, None, None, True, "nearest", "border", True, *wants)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_second_derivatives(compiled: dict[str, Any], dtype: torch.dtype) -> None:
    from neuralreg.kernels.backends import triton_sampling_twice

    image, u, affine = (
        torch.zeros(shape, dtype=dtype) for shape in ((1, 1, 4, 5, 6), (1, 3, 4, 5, 6), (1, 3, 4))
    )
    options, wants = (False, "bilinear", "reflection", True), (True, True, True, True)
    triton_sampling_twice.sample_double_backward(image, u, affine, image, image, u, affine, *options, *wants)
    built(compiled, "sample_twice_kernel")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32], ids=str)
def test_labels(compiled: dict[str, Any], dtype: torch.dtype) -> None:
    from neuralreg.kernels.backends import triton_sampling_labels

    labels, u = torch.zeros(1, 1, 5, 6, 7, dtype=dtype), torch.zeros(1, 3, 5, 6, 7)
    triton_sampling_labels.labels_forward(labels, u, None, "label", "zeros")
    triton_sampling_labels.labels_forward(labels, u, None, "nearest", "border")
    built(compiled, "labels_kernel")


@pytest.mark.parametrize(
    ("dtype", "sizes"),
    [(torch.float32, [5, 6, 7]), (torch.float64, [5, 1]), (torch.bfloat16, [1, 1])],
    ids=str,
)
def test_lattice(compiled: dict[str, Any], dtype: torch.dtype, sizes: list[int]) -> None:
    from neuralreg.kernels.backends import triton_lattice as lattice

    ndim, spacing = len(sizes), [1.0, 0.3, 2.0][: len(sizes)]
    u = torch.zeros(1, ndim, *sizes, dtype=dtype)
    matrices = torch.zeros(1, ndim, ndim, dtype=dtype)
    value, _ = lattice.jacobian_loss_forward(u, spacing, "central", "relu", 0.3)
    lattice.jacobian_loss_backward(value, u, spacing, "central", "relu", 0.3)
    lattice.jacobian_penalty_forward(matrices, "unit", 0.0)
    lattice.jacobian_penalty_backward(value, matrices, "unit", 0.0)
    for name in ("diffusion_loss", "bending_loss"):
        value = getattr(lattice, name + "_forward")(u, spacing)
        getattr(lattice, name + "_backward")(value, u, spacing)
    built(
        compiled,
        *("jacobian_forward_kernel", "jacobian_backward_kernel", "matrices_forward_kernel"),
        *("matrices_backward_kernel", "diffusion_forward_kernel", "diffusion_backward_kernel"),
        *("bending_forward_kernel", "bending_backward_kernel"),
    )
    det = lattice.jacobian_determinant_forward(u, spacing, "forward")
    lattice.jacobian_determinant_backward(det, u, spacing, "forward")


@pytest.mark.parametrize(("dtype", "sizes"), [(torch.float32, [5, 6, 7]), (torch.float64, [5, 1])], ids=str)
def test_refine(compiled: dict[str, Any], dtype: torch.dtype, sizes: list[int]) -> None:
    from neuralreg.kernels.backends import triton_adam, triton_refine

    u, image = torch.zeros(1, len(sizes), *sizes, dtype=dtype), torch.zeros(1, 1, *sizes, dtype=dtype)
    step, work = torch.zeros(1, dtype=torch.int64), torch.zeros(2, *image.shape, dtype=dtype)
    rule = ([3] * len(sizes), 0.7, 0.0, [0.0, 0.999], 1e-8, True)
    triton_refine.refine_step(u, image, image, u, u, u, step, work, *rule)
    table, steps = torch.zeros(9, 2, dtype=dtype), torch.zeros(9, dtype=torch.int32)
    triton_adam.table_adam(table, table, table, table, steps, 0.1, 0.9, 0.99, 1e-15)
    built(
        compiled,
        *("sample_forward_kernel", "windows_pass", "gradients_pass", "step_kernel", "table_adam_kernel"),
    )
