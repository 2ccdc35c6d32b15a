"""triton backend of the field and its jet: encode, layers, scatter, chunk of points by chunk of points.

Not verified on a GPU. A call is a few launches a chunk: the encodings fill the inputs of the first layer, one kernel
runs all layers of a block of points (backward: computes them anew, then their gradients), the encodings scatter the
inputs' gradient. Weights' gradients are summed by every program on its own and then over the programs, so their bits
depend on the number of programs (one a multiprocessor) and on nothing else. Those of grids and latent volumes are
scattered by atomics, or reproducibly: see triton_encoding.py.

Precision: float32 and float64 products in full precision (``input_precision="ieee"``: no tf32), bfloat16 products of
bfloat16 into float32 sums, activations in float32, rows rounded to bfloat16 between layers, results in bfloat16.
Coordinates are bfloat16 as well then: 8 bits. A spec whose products are bfloat16 computes so from float32 tensors and
keeps coordinates whole up to the encoding; without an encoding it is refused, for the first layer would round them.
float16 is refused: its gradients would vanish unseen.

Memory beyond inputs and outputs: at most WORKSPACE bytes of inputs and their gradients for a chunk of points; a copy
of the weights; for each program the rows of a block of points (a slot a hidden layer, two where it is gated, and one
more; a slot has SHARE elements, or 16 points if those need more), in the backward twice that and the weights' gradient.
Nothing grows with the points. A sine field of five layers of 256 with its Jacobian on 132 multiprocessors, float32:
104 MB forward, 244 MB backward, beside WORKSPACE.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid, unflatten

from . import registry, stepping
from .triton_encoding import (
    Rows,
    Scatter,
    fourier_gradients,
    fourier_values,
    grid_gradients,
    grid_values,
    levels_of_grid,
    levels_of_volume,
    wide,
)
from .triton_field_kernels import field_backward_kernel, field_forward_kernel
from .triton_field_layout import layout_of
from .triton_plan import on_device, parts

WORKSPACE = 128 * 2**20
SHARE = 8192  # elements of a slot: with more, registers spill
BLOCK = 64  # points of a block at most


def _programs(device: torch.device, backward: bool) -> int:
    """Two for a multiprocessor, where its registers hold two; one of the backward's takes them all."""
    if device.type != "cuda":
        return 2
    return (1 if backward else 2) * torch.cuda.get_device_properties(device).multi_processor_count


class Call:
    """One call of a field without flow: its tensors, contiguous, and its launches."""

    def __init__(self, x: Tensor, tensors: list[Tensor], spec: FieldSpec, jet: bool) -> None:
        if x.dtype not in (torch.float32, torch.float64, torch.bfloat16):
            raise registry.BackendError(
                f"the triton field takes float32, float64 and bfloat16, not {x.dtype}"
            )
        self.dtype = torch.bfloat16 if spec.products == "bfloat16" else x.dtype
        if spec.encoding is None and self.dtype != x.dtype:
            raise registry.BackendError(
                "the triton field rounds what its layers read: without an encoding coordinates would have 8 bits left; "
                "the cuda backend keeps them"
            )
        self.spec, self.x = spec, x.contiguous()
        rest = [t.contiguous() for t in tensors]
        self.given = [t.shape for t in tensors]
        self.encoding = rest.pop(0) if spec.encoding else None
        self.latent = rest.pop(0) if spec.latent else None
        self.volume = rest.pop(0) if spec.latent_volume else None
        self.layers = rest
        self.layout = layout_of(spec, self.dtype, jet, SHARE, BLOCK)
        self.params = torch.cat([t.reshape(-1) for t in rest]).to(self.dtype)

    def forward(self) -> tuple[Tensor, Tensor]:
        n, layout, x = len(self.x), self.layout, self.x
        shape = [n, self.spec.out]
        y = torch.empty(shape, dtype=x.dtype, device=x.device)
        jacobian = torch.empty([*shape, layout.planes - 1], dtype=x.dtype, device=x.device)
        if n == 0:
            return y, jacobian
        chunk = layout.chunk(n, WORKSPACE, backward=False)
        inputs, work, programs = self._room(chunk, backward=False)
        for start in range(0, n, chunk):
            part = slice(start, min(n, start + chunk))
            self._encode(inputs, part)
            count = part.stop - start
            field_forward_kernel[(min(programs, parts(count, layout.block)),)](
                *(x[part], work, work, self.params, y[part], jacobian[part] if layout.jet else y),
                *(count, inputs.stride(0), layout.stride, inputs.numel()),
                **layout.constants,
                num_warps=layout.warps,
                num_stages=1,
            )
        return y, jacobian

    def backward(self, grad: Tensor, grad_jacobian: Tensor | None, want: list[bool]) -> list[Tensor]:
        n, layout, x, spec = len(self.x), self.layout, self.x, self.spec
        gradients = Gradients(self, want)
        if n == 0 or not any(want):
            return gradients.rounded()
        grad = grad.contiguous()
        slope = grad if grad_jacobian is None else grad_jacobian.contiguous()
        chunk = layout.chunk(n, WORKSPACE, backward=True)
        inputs, work, programs = self._room(chunk, backward=True)
        sums = wide(x.dtype)
        to_inputs = torch.empty(inputs.shape, dtype=sums, device=x.device)
        rows = torch.empty(programs * layout.slots * layout.slot, dtype=sums, device=x.device)
        total = layout.offsets[-1]
        of_layers = any(want[len(want) - len(self.layers) :])
        partial = torch.empty(programs if of_layers else 1, total, dtype=sums, device=x.device)
        for start in range(0, n, chunk):
            part = slice(start, min(n, start + chunk))
            self._encode(inputs, part)
            count = part.stop - start
            field_backward_kernel[(min(programs, parts(count, layout.block)),)](
                *(work, rows, self.params, grad[part], slope[part], partial, to_inputs),
                *(count, inputs.stride(0), layout.stride, inputs.numel(), total, int(start > 0)),
                **layout.constants,
                WANT=of_layers,
                WANT_INPUTS=gradients.of_inputs,
                num_warps=layout.warps,
                num_stages=1,
            )
            gradients.encode(to_inputs, part)
        if gradients.x is not None and spec.output == "position":
            gradients.x -= grad
        if of_layers:
            gradients.layers(partial.sum(0))
        return gradients.rounded()

    def _room(self, chunk: int, backward: bool) -> tuple[Tensor, Tensor, int]:
        """Inputs of a chunk, the buffer that begins with them, and the number of programs, which own the rest."""
        layout = self.layout
        programs = min(_programs(self.x.device, backward), chunk // layout.block)
        size = layout.planes * chunk * layout.stride
        work = self.x.new_empty(size + programs * layout.slots * layout.slot, dtype=self.dtype)
        return work[:size].view(layout.planes, chunk, layout.stride), work, programs

    def _encode(self, inputs: Tensor, part: slice) -> None:
        """The inputs (planes, chunk, stride) of the first layer at the points of a chunk."""
        spec, x = self.spec, self.x[part]
        inputs = inputs[:, : len(x)]
        column = 0
        if isinstance(spec.encoding, HashGrid):
            assert self.encoding is not None
            grid_values(x, self.encoding, Rows(inputs), levels_of_grid(spec.encoding, spec.ndim))
        else:
            if spec.encoding is None or spec.encoding.raw:
                column = spec.ndim
                inputs[0, :, :column] = x
                inputs[1:, :, :column] = 0
                for axis in range(self.layout.planes - 1):
                    inputs[1 + axis, :, axis] = 1
            if isinstance(spec.encoding, Fourier):
                assert self.encoding is not None
                fourier_values(x, self.encoding, spec.encoding.scale, Rows(inputs, column))
        column = spec.encoded
        if self.latent is not None:
            inputs[0, :, column : column + spec.latent] = (
                self.latent[part] if self._of_points else self.latent
            )
            inputs[1:, :, column : column + spec.latent] = 0
            column += spec.latent
        if self.volume is not None:
            grid_values(x, self.volume, Rows(inputs, column), levels_of_volume(self.volume))

    @property
    def _of_points(self) -> bool:
        """Whether every point has a latent of its own."""
        return self.latent is not None and len(self.latent) > 1

    def encode_backward(self, rows: Tensor, part: slice, to: Gradients) -> None:
        """Adds up what the inputs' gradient (planes, points of the chunk, stride) says of points and encodings."""
        spec, x = self.spec, self.x[part]
        to_x = None if to.x is None else to.x[part]
        column = 0
        if isinstance(spec.encoding, HashGrid):
            assert self.encoding is not None
            if to_x is not None or to.table is not None:
                levels = levels_of_grid(spec.encoding, spec.ndim)
                grid_gradients(x, self.encoding, Rows(rows), levels, to_x, to.table)
        else:
            if spec.encoding is None or spec.encoding.raw:
                column = spec.ndim
                if to_x is not None:
                    to_x += rows[0, :, :column]
            if isinstance(spec.encoding, Fourier):
                assert self.encoding is not None
                fourier_gradients(x, self.encoding, spec.encoding.scale, Rows(rows, column), to_x, to.matrix)
        column = spec.encoded
        if self.latent is not None:
            own = rows[0, :, column : column + spec.latent]
            if to.latent is not None and self._of_points:
                to.latent[part] = own
            elif to.latent is not None:
                to.latent += own.sum(0)
            column += spec.latent
        if self.volume is not None and (to_x is not None or to.volume is not None):
            levels = levels_of_volume(self.volume)
            grid_gradients(x, self.volume, Rows(rows, column), levels, to_x, to.volume)


class Gradients:
    """The gradients of a call, in the type of the sums, as far as they are wanted."""

    def __init__(self, call: Call, want: list[bool]) -> None:
        self.call, self.want = call, want
        rest = list(want)

        def zeros(like: Tensor | None, wanted: bool) -> Tensor | None:
            if like is None or not wanted:
                return None
            return torch.zeros(like.shape, dtype=wide(like.dtype), device=like.device)

        self.x = zeros(call.x, rest.pop(0))
        self.table, self.matrix, self.volume, self.latent = None, None, None, None
        if call.encoding is not None:
            wanted = rest.pop(0)
            if isinstance(call.spec.encoding, HashGrid):
                self.table = Scatter(call.encoding) if wanted else None
            else:
                self.matrix = zeros(call.encoding, wanted)
        if call.latent is not None:
            self.latent = zeros(call.latent, rest.pop(0))
        if call.volume is not None:
            self.volume = Scatter(call.volume) if rest.pop(0) else None
        self.of_inputs = any(want[: len(want) - len(rest)])
        self.of_layers = [zeros(p, w) for p, w in zip(call.layers, rest, strict=True)]

    def encode(self, to_inputs: Tensor, part: slice) -> None:
        if self.of_inputs:
            self.call.encode_backward(to_inputs[:, : part.stop - part.start], part, self)

    def layers(self, flat: Tensor) -> None:
        """From one row of all layers' gradients."""
        pieces = flat.split([p.numel() for p in self.call.layers])
        for target, source in zip(self.of_layers, pieces, strict=True):
            if target is not None:
                target.copy_(source.view_as(target))

    def rounded(self) -> list[Tensor]:
        """In the order of the registered op and in its type; empty where nobody wants one."""
        found: list[Tensor | None] = [self.x]
        if self.call.encoding is not None:
            found.append(self.matrix if self.table is None else self.table.total)
        if self.call.latent is not None:
            found.append(self.latent)
        if self.call.volume is not None:
            found.append(None if self.volume is None else self.volume.total)
        x = self.call.x
        return [x.new_empty(0) if g is None else g.to(x.dtype) for g in (*found, *self.of_layers)]


def field_forward(x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float]) -> Tensor:
    spec = unflatten(ints, floats)
    with on_device(x):
        if spec.flow:
            return stepping.forward(_Velocity(tensors, spec).value, x, spec.flow)
        return Call(x, tensors, spec, jet=False).forward()[0]


def field_backward(
    grad: Tensor, x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], want: list[bool]
) -> list[Tensor]:
    spec = unflatten(ints, floats)
    with on_device(x):
        if spec.flow:
            velocity = _Velocity(tensors, spec, want)
            found = stepping.backward(velocity.value, velocity.pullback, grad, x, spec.flow)
            return velocity.only_wanted(found)
        return Call(x, tensors, spec, jet=False).backward(grad, None, want)


def field_jet_forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float]
) -> tuple[Tensor, Tensor]:
    spec = unflatten(ints, floats)
    with on_device(x):
        if spec.flow:
            return stepping.jet_forward(_Velocity(tensors, spec).jet, x, spec.flow)
        return Call(x, tensors, spec, jet=True).forward()


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
    with on_device(x):
        if spec.flow:
            velocity = _Velocity(tensors, spec, want)
            call = (velocity.jet, velocity.jet_pullback, grad, grad_jacobian, x, spec.flow)
            return velocity.only_wanted(stepping.jet_backward(*call))
        return Call(x, tensors, spec, jet=True).backward(grad, grad_jacobian, want)


class _Velocity:
    """The field under a flow as what ``stepping`` integrates. The gradient to the points is always needed there."""

    def __init__(self, tensors: list[Tensor], spec: FieldSpec, want: list[bool] | None = None) -> None:
        self.tensors, self.spec = tensors, replace(spec, flow=None)
        self.want = want or []

    def _call(self, p: Tensor, jet: bool) -> Call:
        return Call(p, self.tensors, self.spec, jet)

    def value(self, p: Tensor) -> Tensor:
        return self._call(p, False).forward()[0]

    def jet(self, p: Tensor) -> tuple[Tensor, Tensor]:
        return self._call(p, True).forward()

    def pullback(self, grad: Tensor, p: Tensor) -> list[Tensor]:
        return self._call(p, False).backward(grad, None, [True, *self.want[1:]])

    def jet_pullback(self, grad: Tensor, grad_jacobian: Tensor, p: Tensor) -> list[Tensor]:
        return self._call(p, True).backward(grad, grad_jacobian, [True, *self.want[1:]])

    def only_wanted(self, found: list[Tensor]) -> list[Tensor]:
        return [g if w else g.new_empty(0) for g, w in zip(found, self.want, strict=True)]
