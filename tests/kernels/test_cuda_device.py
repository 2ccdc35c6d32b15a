"""What only a GPU can show of the cuda backend: streams, graph capture, repeatability, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import FieldSpec, HashGrid, field_jet, lncc, ssim
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


def jet_of_a_grid() -> tuple[list[Tensor], FieldSpec]:
    spec = FieldSpec(encoding=HashGrid(), activation="softplus")
    shapes = spec.parameter_shapes()
    params = [torch.randn(shape, device="cuda") / shape[-1] ** 0.5 for shape in shapes]
    x = 2 * torch.rand(5000, 3, device="cuda") - 1
    return [tensor.requires_grad_() for tensor in (x, *params)], spec


def jet_step(inputs: list[Tensor], spec: FieldSpec, backend: str) -> list[Tensor]:
    results = field_jet(inputs[0], inputs[1:], spec, backend=backend)
    grads = torch.autograd.grad(sum(r.square().mean() for r in results), inputs)
    return [*[r.detach() for r in results], *grads]


def test_jets_of_a_field() -> None:
    inputs, spec = jet_of_a_grid()
    double = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = jet_step(double, spec, "reference")
    for actual, wanted in zip(jet_step(inputs, spec, "cuda"), expected, strict=True):
        assert_relative(
            actual.cpu(), wanted.cpu(), 3e-4
        )  # the place in a cell of the finest level: 256 roundings


def test_bfloat16_fields_use_their_tensor_cores_right() -> None:
    spec = FieldSpec(hidden=(64, 64))
    params = [
        torch.randint(-2, 3, s, device="cuda") / 2 * (torch.rand(s, device="cuda") < 6 / s[-1])
        for s in spec.parameter_shapes()
    ]
    x = torch.randint(-4, 5, (1000, 3), device="cuda") / 4
    expected = field_jet(x.double(), [p.double() for p in params], spec, backend="reference")
    actual = field_jet(x.bfloat16(), [p.bfloat16() for p in params], spec, backend="cuda")
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(
            one, other.bfloat16()
        )  # every factor has few bits: nothing is rounded but the result


def test_deterministic_gradients_of_a_field_repeat() -> None:
    inputs, spec = jet_of_a_grid()
    torch.use_deterministic_algorithms(True)
    try:
        first = jet_step(inputs, spec, "cuda")
        for _ in range(3):
            for one, other in zip(jet_step(inputs, spec, "cuda"), first, strict=True):
                assert torch.equal(one, other)
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_graph_captures_a_field_s_jet() -> None:
    inputs, spec = jet_of_a_grid()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        jet_step(inputs, spec, "cuda")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = jet_step(inputs, spec, "cuda")
    with torch.no_grad():
        inputs[0].copy_(2 * torch.rand_like(inputs[0]) - 1)
    graph.replay()
    torch.cuda.synchronize()
    for actual, expected in zip(captured, jet_step(inputs, spec, "cuda"), strict=True):
        assert_relative(actual.cpu(), expected.cpu(), 1e-5)  # atomics add in any order
