"""The triton kernels compile for GPUs; no GPU is needed for that, only triton."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from neuralreg.kernels.backends import registry

pytestmark = [
    pytest.mark.thorough,
    pytest.mark.skipif(registry.interpreted, reason="with TRITON_INTERPRET=1 nothing can be compiled"),
]
LNCC = {"INVERSE_N": 1 / 729, "EPS": 1e-5, "NUMERATOR": 0.0, "FLAT": 1e-6, "ZERO_RULE": True}
LNCC |= {"MODE": "each", "SQUARED": False, "TOTALS": True, "VALUES": True, "MAPS": 5}
SSIM = {"TAPS": 11, "VALUES": True, "MAPS": 4, "TOTALS": True, "C1": 1e-4, "C2": 9e-4}
# Pointers that are not images: to float64, to bytes
SUMS, BYTES = ("source", "target", "sums", "counts", "count", "weights"), ("mask", "centres")
CASES = {
    "lncc windows": ("triton_lncc_kernels", "windows_pass", LNCC | {"MASKED": True}),
    "lncc gradients": ("triton_lncc_kernels", "gradients_pass", {"MASKED": True, "BOTH": True}),
    "box sums": ("triton_box_mean", "sums_pass", {}),
    "ssim windows": ("triton_ssim_kernels", "ssim_windows_pass", SSIM),
    "ssim gradients": ("triton_ssim_kernels", "ssim_gradients_pass", {"TAPS": 11, "BOTH": True}),
}
POINTERS = (*SUMS, *BYTES, *("fixed", "warped", "image", "partner", "values", "maps", "upstream", "grad"))
POINTERS += ("to_image", "to_partner")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_compiles(case: str, first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first pass, along z, and the last one, along x, where sizes of 1 are constants."""
    triton = pytest.importorskip("triton", reason="triton is not installed")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    module, name, options = CASES[case]
    kernel = getattr(__import__(f"neuralreg.kernels.backends.{module}", fromlist=[name]), name)
    constants: dict[str, Any] = options | {"FIRST": first, "LAST": not first}
    constants |= (
        {"BO": 1, "W2": 16, "BI": 64} if first else {"BO": 64, "W2": 16, "BI": 1, "inner": 1, "columns": 1}
    )
    if name.endswith("gradients_pass"):
        constants["MEAN"] = not first
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument not in POINTERS:
            signature[argument] = "i32"
        elif argument in BYTES:
            signature[argument] = "*u8"
        else:
            image = argument not in SUMS or (first and argument == "source")
            signature[argument] = "*fp32" if image else "*fp64"
    source = ASTSource(kernel, signature, {k: constants[k] for k in kernel.arg_names if k in constants})
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
    assert compiled.asm["cubin"]
    assert "fp64" in compiled.asm["ttir"] or "f64" in compiled.asm["ttir"]
