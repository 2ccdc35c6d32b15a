"""The CUDA backend's field: a tile of points goes through the whole network in one kernel.

float32 and float64 are computed as such, by plain multiply-adds. bfloat16 tensors take tensor cores: the
factors of matrix products wider than 8 are rounded to bfloat16, sums and everything else are float32, results
are converted back; coordinates have 8 bits then. A spec whose products are bfloat16 has the same of float32 tensors,
coordinates whole. float16 is computed in float32 and converted back.

Device memory beyond inputs and outputs: the scratch of csrc/cuda/field.h, at most 256 MiB unless one block
alone needs more; in the backward of grids and latent volumes the gradients of their features for at most
``CHUNK_BYTES``, and with torch's deterministic algorithms eight bytes an element of the table or volume; for a
flow what stepping.py keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from neuralreg.kernels.spec import ACTIVATIONS, OUTPUTS, SKIPS, FieldSpec, Fourier, HashGrid, unflatten

from . import cuda, registry, stepping
from .cpu import address
from .cuda_encoding import aligned, run, scatter

CHUNK_BYTES = 64 << 20
LEAST_CHUNK = 1024  # points


def field_forward(x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float]) -> Tensor:
    spec = unflatten(ints, floats)
    net = _Network(spec, x, tensors)
    if spec.flow is None:
        return net.value(net.x).to(x.dtype)
    return stepping.forward(net.value, net.x, spec.flow).to(x.dtype)


def field_jet_forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float]
) -> tuple[Tensor, Tensor]:
    spec = unflatten(ints, floats)
    net = _Network(spec, x, tensors)
    y, jacobian = net.jet(net.x) if spec.flow is None else stepping.jet_forward(net.jet, net.x, spec.flow)
    return y.to(x.dtype), jacobian.to(x.dtype)


def field_backward(
    grad: Tensor, x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], want: list[bool]
) -> list[Tensor]:
    spec = unflatten(ints, floats)
    net = _Network(spec, x, tensors, want)
    (grad,) = cuda._computing(grad.to(net.x.dtype))
    if spec.flow is None:
        grads = net.backward(grad, None, net.x)
    else:
        grads = stepping.backward(net.value, net.value_pullback, grad, net.x, spec.flow)
    return net.results(grads, x.dtype)


def field_jet_backward(
    grad: Tensor,
    grad_jacobian: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
) -> list[Tensor]:
    spec = unflatten(ints, floats)
    net = _Network(spec, x, tensors, want)
    grad, grad_jacobian = cuda._computing(grad.to(net.x.dtype), grad_jacobian.to(net.x.dtype))
    if spec.flow is None:
        grads = net.backward(grad, grad_jacobian, net.x)
    else:
        grads = stepping.jet_backward(net.jet, net.backward, grad, grad_jacobian, net.x, spec.flow)
    return net.results(grads, x.dtype)


class _Network:
    """The field's network without its flow, and its tensors where the kernels can read them."""

    def __init__(self, spec: FieldSpec, x: Tensor, tensors: list[Tensor], want: list[bool] | None = None):
        self.module = cuda._loaded()
        self.spec = spec
        self.x, *self.tensors = aligned(x, *tensors)
        self.want = list(want or [False] * (1 + len(tensors)))
        self.wanted = list(self.want)
        if spec.flow is not None:
            self.want[0] = True  # the stages depend on each other through their positions
        after = int(spec.encoding is not None)
        self.latent_rows = self.tensors[after].shape[0] if spec.latent else 1
        self.volume = after + int(spec.latent > 0) if spec.latent_volume else None
        self.shape = self._shape()
        self.shape.bfloat16 = x.dtype == torch.bfloat16 or spec.products == "bfloat16"

    def _shape(self) -> Any:
        spec, encoding = self.spec, self.spec.encoding
        shape = self.module.FieldShape()
        kind = 0
        shape.ndim, shape.out, shape.hidden = spec.ndim, spec.out, list(spec.hidden)
        if isinstance(encoding, HashGrid):
            kind = 2
            shape.grid = self.module.feature_grid(
                spec.ndim,
                list(encoding.resolutions),
                encoding.features,
                1 << encoding.log2_table_size,
                encoding.interpolation == "smoothstep",
            )
        elif isinstance(encoding, Fourier):
            kind = 1
            shape.frequencies, shape.scale, shape.raw = encoding.frequencies, encoding.scale, encoding.raw
        shape.latent, shape.volume_channels = spec.latent, spec.latent_volume
        if self.volume is not None:
            shape.volume_size = list(self.tensors[self.volume].shape[1:])
        shape.activation = ACTIVATIONS.index(spec.activation)
        shape.omega, shape.gate_omega = list(spec.omega), list(spec.gate_omega)
        shape.choose(kind, SKIPS.index(spec.skip), OUTPUTS.index(spec.output))
        return shape

    def value(self, x: Tensor) -> Tensor:
        return self._forward(x, None)

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        jacobian = x.new_empty(x.shape[0], self.spec.out, self.spec.ndim)
        return self._forward(x, jacobian), jacobian

    def _forward(self, x: Tensor, jacobian: Tensor | None) -> Tensor:
        x = x.contiguous()
        y = x.new_empty(x.shape[0], self.spec.out)
        size = self._scratch("field_forward_scratch", x, jacobian is not None, len(x))
        tensors = [address(t) for t in self.tensors]
        arguments = (tensors, self.latent_rows, address(y), address(jacobian), address(size))
        if len(x):
            run("field_forward", x, self.shape, len(x), address(x), *arguments)
        return y

    def _scratch(self, function: str, x: Tensor, jet: bool, count: int) -> Tensor:
        size = getattr(self.module, function)(self.shape, jet, count, x.element_size(), cuda._where(x)[0])
        return x.new_empty(size, dtype=torch.uint8)

    def value_pullback(self, grad: Tensor, x: Tensor) -> list[Tensor]:
        return self.backward(grad, None, x)

    def backward(self, grad: Tensor, grad_jacobian: Tensor | None, x: Tensor) -> list[Tensor]:
        """The gradients to x and to every tensor that is wanted; empty for the others."""
        n, x, grad = len(x), x.contiguous(), grad.contiguous()
        jet = grad_jacobian is not None
        grad_jacobian = grad_jacobian.contiguous() if grad_jacobian is not None else None
        like = [x, *self.tensors]
        if n == 0:
            return [
                torch.zeros_like(t) if w else t.new_empty(0) for t, w in zip(like, self.want, strict=True)
            ]
        grads = [torch.empty_like(t) if w else t.new_empty(0) for t, w in zip(like, self.want, strict=True)]
        rows = 1 + self.spec.ndim if jet else 1
        gathered = self._gathered()
        for index, _, _ in gathered:
            if self.want[1 + index]:
                grads[1 + index].zero_()
        features = sum(width for _, width, _ in gathered)
        chunk = n
        if features:
            chunk = min(n, max(LEAST_CHUNK, CHUNK_BYTES // (features * rows * x.element_size())))
        buffers = {index: x.new_empty(width, rows, chunk) for index, width, _ in gathered}
        scratch = self._scratch("field_backward_scratch", x, jet, min(chunk, n))
        for begin in range(0, n, chunk):
            run(
                "field_backward",
                x,
                self.shape,
                begin,
                chunk,
                n,
                address(x),
                [address(t) for t in self.tensors],
                self.latent_rows,
                address(grad),
                address(grad_jacobian),
                address(grads[0]),
                address(buffers.get(0) if isinstance(self.spec.encoding, HashGrid) else None),
                address(buffers.get(self.volume) if self.volume is not None else None),
                [address(g) for g in grads[1:]],
                address(scratch),
            )
            part = x[begin : begin + chunk]
            for index, _, grid in gathered:
                buffer, strides = buffers[index], (rows, chunk, rows * chunk, 1)
                if self.want[1 + index]:
                    scatter(grid, part, buffer, strides, grads[1 + index])
                if self.want[0]:
                    to = grads[0][begin : begin + chunk]
                    run(
                        "grid_gradient_x",
                        x,
                        grid,
                        len(part),
                        address(part),
                        address(self.tensors[index]),
                        address(buffer),
                        *strides,
                        address(to),
                        True,
                    )
        return grads

    def _gathered(self) -> list[tuple[int, int, Any]]:
        """Tensors that are read at x and need their features' gradients: place, number of features, layout."""
        found: list[tuple[int, int, Any]] = []
        if isinstance(self.spec.encoding, HashGrid):
            found.append((0, self.spec.encoded, self.shape.grid))
        if self.volume is not None:
            layout = self.module.volume_grid(
                list(self.tensors[self.volume].shape[1:]), self.spec.latent_volume
            )
            found.append((self.volume, self.spec.latent_volume, layout))
        return [entry for entry in found if self.want[0] or self.want[1 + entry[0]]]

    def results(self, grads: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """What the op returns: the wanted gradients in the tensors' type."""
        return [g.to(dtype) if w else g.new_empty(0) for g, w in zip(grads, self.wanted, strict=True)]


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "field": field_forward,
    "field_forward": field_forward,
    "field_backward": field_backward,
    "field_jet": field_jet_forward,
    "field_jet_forward": field_jet_forward,
    "field_jet_backward": field_jet_backward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
