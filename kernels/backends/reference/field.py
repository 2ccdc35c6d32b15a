"""Neural fields, encoding and layers, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg.kernels.backends.reference.encoding import fourier_encode, hash_encode, volume_encode
from neuralreg.kernels.spec import NARROW, FieldSpec, Flow, Fourier, HashGrid

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    # torch's usual threshold of 20 cuts the function where float64 still sees it
    "softplus": lambda z: F.softplus(z, threshold=50),
    "silu": F.silu,
}


def field(x: Tensor, tensors: Sequence[Tensor], spec: FieldSpec) -> Tensor:
    """The field of :class:`FieldSpec` at x (N, ndim): (N, out).

    ``tensors``: the encoding's table or matrix, the latent (N, latent) or (1, latent) and the latent volume
    (channels, *size), each where the spec has one, then weight (out, in) and bias (out) layer by layer, of the main
    stack and of the modulator.
    """
    if spec.flow is None:
        return _value(x, tensors, spec)
    return integrate(lambda p: _value(p, tensors, spec), x, spec.flow) - x


def field_jet(x: Tensor, tensors: Sequence[Tensor], spec: FieldSpec) -> tuple[Tensor, Tensor]:
    """``field`` and its Jacobian (N, out, ndim), one forward-mode derivative an axis; itself differentiable."""
    columns = []
    for axis in torch.eye(spec.ndim, dtype=x.dtype, device=x.device):
        # points do not depend on each other: one direction for all of them gives a column of every Jacobian
        y, column = torch.func.jvp(  # type: ignore[misc]  # two results without has_aux
            lambda p: field(p, tensors, spec), (x,), (axis.expand_as(x),)
        )
        columns.append(column)
    return y, torch.stack(columns, 2)


def integrate(velocity: Callable[[Tensor], Tensor], x: Tensor, flow: Flow) -> Tensor:
    """Where the stationary velocity carries x in ``flow.time``: explicit Euler, or the classical Runge-Kutta."""
    h = flow.time / flow.steps
    for _ in range(flow.steps):
        k1 = velocity(x)
        if flow.scheme == "euler":
            x = x + h * k1
            continue
        k2 = velocity(x + h / 2 * k1)
        k3 = velocity(x + h / 2 * k2)
        k4 = velocity(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def _value(x: Tensor, tensors: Sequence[Tensor], spec: FieldSpec) -> Tensor:
    rest = list(tensors)
    if isinstance(spec.encoding, HashGrid):
        encoded = hash_encode(x, rest.pop(0), spec.encoding)
    elif isinstance(spec.encoding, Fourier):
        encoded = fourier_encode(x, rest.pop(0), spec.encoding.scale)
        encoded = torch.cat([x, encoded], 1) if spec.encoding.raw else encoded
    else:
        encoded = x
    parts = [encoded]
    if spec.latent:
        parts.append(rest.pop(0).expand(len(x), -1))
    if spec.latent_volume:
        parts.append(volume_encode(x, rest.pop(0)))
    inputs = torch.cat(parts, 1)
    count = 2 * len(spec.hidden) + 2
    main, modulator = rest[:count], rest[count:]
    if spec.gated:
        gates = _hidden(inputs, modulator, spec.gate_omega, "sine", spec.skip, spec.products)
        v = _hidden(encoded, main[:-2], spec.omega, "sine", "none", spec.products, gates)[-1]
    else:
        v = _hidden(inputs, main[:-2], spec.omega, spec.activation, spec.skip, spec.products)[-1]
    z = _linear(v, main[-2], main[-1], spec.products)
    if spec.output == "position":
        return z - x
    return z.tanh() if spec.output == "velocity" else z


def _hidden(
    v: Tensor,
    layers: Sequence[Tensor],
    omega: Sequence[float],
    activation: str,
    skip: str,
    products: str,
    gates: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """The outputs of a stack of hidden layers."""
    outputs: list[Tensor] = []
    for index, (weight, bias) in enumerate(zip(layers[0::2], layers[1::2], strict=True)):
        z = _linear(v, weight, bias, products)
        v = torch.sin(omega[index] * z) if activation == "sine" else _ACTIVATIONS[activation](z)
        if gates is not None:
            v = gates[index] * v
        if outputs and skip != "none":
            v = v + outputs[0 if skip == "first" else -1]
        outputs.append(v)
    return outputs


def _linear(v: Tensor, weight: Tensor, bias: Tensor, products: str) -> Tensor:
    """A layer; products in bfloat16 are emulated, what they are derived from included, gradients apart."""
    if products == "bfloat16" and min(weight.shape) > NARROW:
        v, weight = _rounded(v), _rounded(weight)
    return F.linear(v, weight, bias)


def _rounded(factor: Tensor) -> Tensor:
    """The nearest bfloat16 numbers in the factor's type, with the identity's derivative."""
    return factor + (factor.bfloat16().to(factor.dtype) - factor).detach()
