"""Flows over a backend's kernels, with the reference's own field as the kernels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from neuralreg.kernels.backends import stepping
from neuralreg.kernels.backends.reference import field as reference
from neuralreg.kernels.spec import FieldSpec, Flow

from .common import assert_near, assert_relative, leaf

FLOWS = [Flow(0.7, 3, "rk4"), Flow(-0.5, 2, "euler"), Flow(0.4, 1, "rk4")]


class Kernels:
    """The value and the jet of a velocity field, and their backwards, as a backend would bring them."""

    def __init__(self, tensors: list[Tensor], spec: FieldSpec) -> None:
        self.tensors, self.spec = tensors, dataclasses.replace(spec, flow=None)

    def value(self, p: Tensor) -> Tensor:
        return reference.field(p, self.tensors, self.spec).detach()

    def jet(self, p: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return reference.field_jet(p, self.tensors, self.spec)

    def backward(self, grad: Tensor, p: Tensor) -> list[Tensor]:
        inputs = [leaf(t) for t in (p, *self.tensors)]
        value = reference.field(inputs[0], inputs[1:], self.spec)
        return list(torch.autograd.grad(value, inputs, grad))

    def jet_backward(self, grad: Tensor, grad_jacobian: Tensor, p: Tensor) -> list[Tensor]:
        inputs = [leaf(t) for t in (p, *self.tensors)]
        results = reference.field_jet(inputs[0], inputs[1:], self.spec)
        found = torch.autograd.grad(results, inputs, [grad, grad_jacobian], allow_unused=True)
        return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def network(ndim: int, flow: Flow, output: str = "velocity") -> tuple[Tensor, list[Tensor], FieldSpec]:
    spec = FieldSpec(ndim=ndim, hidden=(7, 6), out=ndim, activation="tanh", output=output, flow=flow)
    tensors = [0.7 * torch.randn(shape, dtype=torch.float64) for shape in spec.parameter_shapes()]
    return 2 * torch.rand(9, ndim, dtype=torch.float64) - 1, tensors, spec


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_values_and_gradients(ndim: int, flow: Flow) -> None:
    x, tensors, spec = network(ndim, flow)
    inputs = [leaf(t) for t in (x, *tensors)]
    expected = reference.field(inputs[0], inputs[1:], spec)
    grad = torch.randn_like(expected)
    kernels = Kernels(tensors, spec)
    assert_relative(stepping.forward(kernels.value, x, flow), expected.detach(), 1e-13)
    actual = stepping.backward(kernels.value, kernels.backward, grad, x, flow)
    for one, other in zip(actual, torch.autograd.grad(expected, inputs, grad), strict=True):
        assert_relative(one, other, 1e-12)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
@pytest.mark.parametrize("ndim", [2, 3])
def test_jets_and_their_gradients(ndim: int, flow: Flow) -> None:
    x, tensors, spec = network(ndim, flow, "displacement")
    inputs = [leaf(t) for t in (x, *tensors)]
    expected = reference.field_jet(inputs[0], inputs[1:], spec)
    grads = [torch.randn_like(part) for part in expected]
    kernels = Kernels(tensors, spec)
    for one, other in zip(stepping.jet_forward(kernels.jet, x, flow), expected, strict=True):
        assert_relative(one, other.detach(), 1e-12)
    actual = stepping.jet_backward(kernels.jet, kernels.jet_backward, *grads, x, flow)
    for one, other in zip(actual, torch.autograd.grad(expected, inputs, grads), strict=True):
        assert_relative(one, other, 1e-11)


@pytest.mark.parametrize("flow", FLOWS, ids=str)
def test_no_points(flow: Flow) -> None:
    x, tensors, spec = network(3, flow)
    kernels = Kernels(tensors, spec)
    assert stepping.forward(kernels.value, x[:0], flow).shape == (0, 3)
    value, jacobian = stepping.jet_forward(kernels.jet, x[:0], flow)
    assert value.shape == (0, 3)
    assert jacobian.shape == (0, 3, 3)
    grads = stepping.jet_backward(kernels.jet, kernels.jet_backward, value, jacobian, x[:0], flow)
    for grad, tensor in zip(grads, [x[:0], *tensors], strict=True):
        assert_near(grad, torch.zeros_like(tensor), 0.0)
