"""Our Adam is torch's, without the compiler that torch's brings."""

from __future__ import annotations

import subprocess
import sys

import torch

from neuralreg.adam import Adam


def leaves(dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=dtype).requires_grad_() for shape in ((7, 3), (5,), ())]


def test_equals_torch_to_the_last_bit() -> None:
    for dtype in (torch.float32, torch.float64):
        ours, theirs = leaves(dtype), leaves(dtype)
        mine = Adam([{"params": ours[:2], "lr": 0.1}, {"params": ours[2:], "lr": 0.01}])
        groups = [{"params": theirs[:2], "lr": 0.1}, {"params": theirs[2:], "lr": 0.01}]
        reference = torch.optim.Adam(groups, fused=True)
        for k in range(5):
            for optimiser, parameters in ((mine, ours), (reference, theirs)):
                optimiser.zero_grad()
                used = parameters if k != 2 else parameters[1:]  # a parameter without a gradient stays
                sum(((p - k) ** 2).sum() for p in used).backward()
                optimiser.param_groups[0]["lr"] = 0.1 / (k + 1)
                optimiser.step()
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_nothing_to_move_is_no_error() -> None:
    Adam([{"params": leaves(torch.float32), "lr": 0.1}]).step()


def test_a_fit_leaves_the_compiler_alone() -> None:
    code = """
import sys, torch, neuralreg
fixed = torch.rand(16, 16, 16)
neuralreg.register(fixed, fixed, iterations=2)
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False", done.stderr
