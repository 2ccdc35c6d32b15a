"""The Triton encodings and fields up to the launch, for a GPU that is not there: every call of the host code is bound
and its kernel compiled for sm_90, as the first call on a GPU would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuralreg.kernels.backends import registry
from neuralreg.kernels.spec import FieldSpec, Flow, HashGrid, flatten

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(registry.interpreted, reason="with TRITON_INTERPRET=1 nothing can be compiled"),
]
GRID = HashGrid(levels=2, features=2, base=3, finest=20, log2_table_size=7, interpolation="smoothstep")


class NoDriver:
    """What Triton asks of a driver before it launches."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 999  # not a device of this machine: kernels are kept by device

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


@pytest.mark.parametrize(
    ("dtype", "count"), [(torch.float32, 1), (torch.float64, 40), (torch.bfloat16, 40)], ids=str
)
def test_field(compiled: dict[str, Any], dtype: torch.dtype, count: int) -> None:
    """Jets; of a single point as well, where sizes of 1 become constants."""
    from neuralreg.kernels.backends import triton_field

    sine: dict[str, Any] = {"hidden": (16, 16), "activation": "sine", "omega": (1.0, 2.0)}
    spec = {
        torch.float32: FieldSpec(
            ndim=2, out=2, hidden=(5,), latent_volume=1, output="velocity", flow=Flow(0.2, 1)
        ),
        torch.float64: FieldSpec(ndim=2, encoding=GRID, out=2, hidden=(5,), activation="softplus"),
        torch.bfloat16: FieldSpec(encoding=GRID, gate_omega=(1.0, 1.0), latent=2, **sine),
    }[dtype]
    ints, floats = flatten(spec)
    x = torch.zeros(count, spec.ndim, dtype=dtype)
    tensors = [torch.zeros(shape, dtype=dtype) for shape in spec.parameter_shapes()]
    if spec.latent:
        tensors.insert(1, torch.zeros(1, 2, dtype=dtype))
    if spec.latent_volume:
        tensors.insert(0, torch.zeros(1, 3, 1, dtype=dtype))
    y, jacobian = triton_field.field_jet_forward(x, tensors, ints, floats)
    want = [True] * (1 + len(tensors))
    triton_field.field_jet_backward(y, jacobian, x, tensors, ints, floats, want)
    assert set(compiled) == {
        *("grid_forward", "grid_backward", "field_forward_kernel", "field_backward_kernel")
    }
    for kernel in compiled.values():
        assert kernel.asm["cubin"]
    # products in full precision: tensor cores for float64 and bfloat16, none (tf32) for float32
    ptx = compiled["field_backward_kernel"].asm["ptx"]
    assert "tf32" not in ptx
    assert ("mma" in ptx) == (dtype != torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_encodings(compiled: dict[str, Any], dtype: torch.dtype) -> None:
    from neuralreg.kernels.backends import triton_encoding as encoding

    x, grad = torch.zeros(5, 3, dtype=dtype), torch.zeros(5, 4, dtype=dtype)
    table = torch.zeros(sum(GRID.entries(3)), 2, dtype=dtype)
    encoding.hash_encode_forward(x, table, list(GRID.resolutions), 128, True)
    torch.use_deterministic_algorithms(dtype == torch.float64)
    try:
        encoding.hash_encode_backward(grad, x, table, list(GRID.resolutions), 128, True, True, True)
    finally:
        torch.use_deterministic_algorithms(False)
    matrix = torch.zeros(3, 2, dtype=dtype)
    encoding.fourier_encode_forward(x, matrix, 2.0)
    encoding.fourier_encode_backward(grad, x, matrix, 2.0, True, True)
    assert len(compiled) == 5
    assert all(kernel.asm["cubin"] for kernel in compiled.values())
    assert ("atom" in compiled["grid_backward"].asm["ptx"]) or (
        "red." in compiled["grid_backward"].asm["ptx"]
    )
