"""What only a GPU can show of the cuda backend: streams, graph capture, repeatability, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import lncc, ssim
from neuralreg.kernels.backends import cuda

from .common import assert_relative
from .lncc_oracle import pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.module is None, reason="the module _cuda is not built"),
]


def images() -> tuple[Tensor, Tensor]:
    fixed, warped = (image.cuda() for image in pair(1, 1, 40, 50, 60, dtype=torch.float32))
    return fixed, warped.requires_grad_()


def step(name: str, fixed: Tensor, warped: Tensor, recompute: bool) -> tuple[Tensor, Tensor]:
    function = {"lncc": lncc, "ssim": ssim}[name]
    value = function(fixed, warped, 9, backend="cuda", recompute=recompute)
    return value.detach(), torch.autograd.grad(value, [warped])[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["lncc", "ssim"])
def test_a_graph_captures_value_and_gradient(name: str, recompute: bool) -> None:
    fixed, warped = images()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(name, fixed, warped, recompute)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(name, fixed, warped, recompute)
    with torch.no_grad():
        warped.copy_(torch.rand_like(warped))
    graph.replay()
    torch.cuda.synchronize()
    for actual, expected in zip(captured, step(name, fixed, warped, recompute), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", ["lncc", "ssim"])
def test_runs_repeat_bit_by_bit_on_any_stream(name: str) -> None:
    fixed, warped = images()
    expected = step(name, fixed, warped, False)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            for actual, wanted in zip(step(name, fixed, warped, False), expected, strict=True):
                assert torch.equal(actual, wanted)
    torch.cuda.synchronize()


def test_recomputing_keeps_nothing() -> None:
    fixed, warped = images()
    before = torch.cuda.memory_allocated()
    value = lncc(fixed, warped, 9, backend="cuda", recompute=True)
    assert torch.cuda.memory_allocated() - before < fixed.numel()
    (grad,) = torch.autograd.grad(value, [warped])
    assert_relative(grad.cpu(), step("lncc", fixed, warped, False)[1].cpu(), 1e-5)
