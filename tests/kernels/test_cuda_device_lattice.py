"""What only a GPU can show of the dense fields' kernels: results, streams, graph capture, repeatability."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import refine_state, refine_step, table_adam
from neuralreg.kernels.backends import cuda

from .calls import calls, results
from .common import On, assert_near, assert_relative
from .test_cuda_lattice import FUNCTIONS, NAMES
from .test_jacobian import displacement, with_gradient
from .test_refine import images, loop

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.module is None, reason="the module _cuda is not built"),
]
GPU = On("cuda", "cuda")
SIZES = [[40, 50, 61], [301, 170]]


@pytest.mark.parametrize("case", FUNCTIONS)
def test_values_and_gradients(case: str) -> None:
    function, options = FUNCTIONS[case]
    for sizes in SIZES[: 1 if "spacing" in options else 2]:
        u = displacement(sizes, dtype=torch.float32)
        expected = with_gradient(On("reference", "cpu"), function, u.double(), **options)
        actual = with_gradient(GPU, function, u, **options)
        for one, other in zip(actual, expected, strict=True):
            assert_relative(one, other, 2e-6)
        for one, other in zip(with_gradient(GPU, function, u, **options), actual, strict=True):
            assert torch.equal(one, other)


def test_every_call_of_the_family() -> None:
    for case, (public, arguments, options) in calls(torch.float64).items():
        if case.startswith(NAMES):
            expected = results((public, arguments, options), "reference")
            moved = [a.detach().cuda().requires_grad_(a.requires_grad) for a in arguments[:1]]
            call = (public, [*moved, *arguments[1:]], options)
            for one, other in zip(results(call, "cuda"), expected, strict=True):
                assert_near(one.cpu(), other, 1e-11)


@pytest.mark.parametrize("sizes", [[20, 22, 37], [40, 45]], ids=str)
def test_refinement_equals_a_loop_with_torchs_adam(sizes: list[int]) -> None:
    inputs = images(sizes)
    state = refine_state(*(x.cuda() for x in inputs), window=5, regularisation=0.7, backend="cuda")
    energies = [refine_step(state).cpu() for _ in range(4)]
    expected, history = loop(*inputs, 4, 5, 0.7)
    assert_near(state.displacement.cpu(), expected, 1e-10)
    for one, other in zip(energies, history, strict=True):
        assert_near(one, other, 1e-12)


def test_a_graph_captures_a_refinement_step_and_counts() -> None:
    inputs = [x.cuda() for x in images([30, 31, 33], dtype=torch.float32)]
    states = [refine_state(*inputs, backend="cuda") for _ in range(2)]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for state in states:
            refine_step(state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        energy = refine_step(states[0])
    for _ in range(3):
        graph.replay()
        expected = refine_step(states[1])
    torch.cuda.synchronize()
    assert states[0].step.tolist() == [4]
    for one, other in zip(tensors(states[0]), tensors(states[1]), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(energy, expected)


def tensors(state: Any) -> list[Tensor]:
    return [state.displacement, state.mean, state.square, state.largest, state.step]


def test_table_adam() -> None:
    table = torch.randn(100_003, 2)
    grad = torch.randn(100_003, 2) * (torch.rand(100_003, 1) < 0.5)
    found = []
    for device, backend in (("cpu", "reference"), ("cuda", "cuda")):
        given = [
            t.clone().to(device) for t in (table, grad, torch.zeros_like(table), torch.zeros_like(table))
        ]
        steps = torch.zeros(len(table), dtype=torch.int32, device=device)
        for _ in range(3):
            given[1].copy_(grad)
            table_adam(*given, steps, lr=0.01, backend=backend)
        found.append([t.cpu() for t in (*given, steps)])
    for one, other in zip(found[1], found[0], strict=True):
        assert_near(one, other, 1e-6)
