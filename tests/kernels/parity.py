"""Compares the native module of one instruction set, NEURALREG_CPU_ISA, with the reference."""

from __future__ import annotations

import sys

import torch

from neuralreg import kernels
from neuralreg.kernels.backends import native

from .calls import CASES, calls, few_bits, results


def main() -> int:
    """Print the instruction set in use and every call that differs; 1 if any does."""
    torch.set_num_threads(1)
    print("isa", native.cpu_isa())
    wrong = 0
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        for case in CASES:
            torch.manual_seed(5)  # an op's numbers do not depend on which others are drawn before
            call = calls(dtype)[case]
            for part, (one, other) in enumerate(
                zip(results(call, "cpu"), results(call, "reference"), strict=True)
            ):
                error = float((one.double() - other.double()).abs().max())
                if not error <= bound * max(1.0, float(other.abs().max())):
                    print(f"{case} {dtype} result {part}: error {error:.3g}")
                    wrong += 1
    for public in (kernels.field, kernels.field_jet):
        for widths in ((18, 20), (70, 33)):
            if not all(map(torch.equal, *few_bits(public, widths, 97))):
                print(f"{public.__name__} {widths} in bfloat16: not exact where the factors are")
                wrong += 1
    print("compared", 2 * len(CASES), "wrong", wrong)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
