"""The Triton kernels of encodings and fields compile for GPUs; no GPU is needed for that, only triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from neuralreg.kernels.backends import registry
from neuralreg.kernels.spec import FieldSpec, Fourier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(registry.interpreted, reason="with TRITON_INTERPRET=1 nothing can be compiled"),
]
SPEC = FieldSpec(
    encoding=Fourier(8), hidden=(16, 16), activation="sine", omega=(2.0, 1.0), skip="first", latent=5
)
TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.bfloat16: "bf16"}
CASES = [(torch.float32, True), (torch.float64, False), (torch.bfloat16, True)]
# Pointers to the points' type, and to that of the sums
GIVEN = ("x", "work", "params", "y", "jacobian", "grad", "grad_jacobian", "table", "matrix", "out")
SUMS = ("wide", "partial", "grad_inputs", "grad_x", "grad_table")


def compiled(kernel: Any, constants: dict[str, Any], dtype: torch.dtype) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in GIVEN:
            signature[argument] = "*" + TYPES[dtype]
        elif argument in SUMS:
            signature[argument] = "*fp64" if dtype == torch.float64 else "*fp32"
        else:
            signature[argument] = {"scale": "*fp64", "plane": "i64", "slots": "i64"}.get(argument, "i32")
    if constants.get("FIXED"):
        signature["grad_table"] = "*i64"
    known = {name: constants[name] for name in kernel.arg_names if name in constants}
    options = {"num_warps": 4, "num_stages": 1}
    return triton.compile(
        ASTSource(kernel, signature, known), target=GPUTarget("cuda", 90, 32), options=options
    )


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize(("dtype", "jet"), CASES, ids=str)
def test_layers(dtype: torch.dtype, jet: bool) -> None:
    from neuralreg.kernels.backends import triton_field_kernels as kernels
    from neuralreg.kernels.backends.triton_field_layout import Layout

    constants = Layout(SPEC, dtype, jet, share=2048, most=16).constants
    if not jet:
        assert compiled(kernels.field_forward_kernel, constants, dtype).asm["cubin"]
    constants = constants | {"WANT": True, "WANT_INPUTS": True}
    backward = compiled(kernels.field_backward_kernel, constants, dtype)
    assert backward.asm["cubin"]
    # products in full precision: tensor cores for float64 and bfloat16, none (tf32) for float32
    assert "tf32" not in backward.asm["ptx"]
    assert ("mma" in backward.asm["ptx"]) == (dtype != torch.float32)


@pytest.mark.parametrize(("dtype", "jet"), CASES, ids=str)
def test_encodings(dtype: torch.dtype, jet: bool) -> None:
    from neuralreg.kernels.backends import triton_encoding_kernels as kernels
    from neuralreg.kernels.backends.triton_encoding import Rows, fourier_constants, levels_of

    x, rows = torch.empty(1, 3, dtype=dtype), Rows(torch.empty(4 if jet else 1, 1, 6))
    grid = levels_of([4, 9, 40], 2, 1 << 10, True, 3).constants(x, rows)
    fourier = fourier_constants(x, torch.empty(3, 40), rows, 2.0)
    wanted = {"WANT_X": True, "WANT_TABLE": True}
    assert compiled(kernels.grid_forward, grid, dtype).asm["cubin"]
    assert compiled(kernels.grid_backward, grid | wanted | {"FIXED": jet}, dtype).asm["cubin"]
    for name in ("fourier_forward", "fourier_backward_x", "fourier_backward_matrix"):
        assert compiled(getattr(kernels, name), fourier, dtype).asm["cubin"]
