"""cpu backend of the encodings and the field."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from neuralreg.kernels.spec import ACTIVATIONS, OUTPUTS, SKIPS, Fourier, HashGrid, unflatten

from . import native, registry
from .cpu import address, function, output, threads, wanted


def hash_encode_forward(
    x: Tensor, table: Tensor, resolutions: list[int], table_size: int, smooth: bool
) -> Tensor:
    x, table = x.contiguous(), table.contiguous()
    out = x.new_empty(x.shape[0], len(resolutions) * table.shape[1])
    grid = native.load_cpu().GridShape(x.shape[1], resolutions, table.shape[1], table_size, smooth)
    function("hash_encode_forward", x.dtype)(
        grid, x.shape[0], address(x), address(table), address(out), threads()
    )
    return out


def hash_encode_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    resolutions: list[int],
    table_size: int,
    smooth: bool,
    want_x: bool,
    want_table: bool,
) -> tuple[Tensor, Tensor]:
    grad, x, table = grad.contiguous(), x.contiguous(), table.contiguous()
    grad_x, grad_table = wanted(x, want_x), wanted(table, want_table)
    grid = native.load_cpu().GridShape(x.shape[1], resolutions, table.shape[1], table_size, smooth)
    function("hash_encode_backward", x.dtype)(
        grid,
        x.shape[0],
        address(x),
        address(table),
        address(grad),
        address(grad_x),
        address(grad_table),
        threads(),
    )
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_table is None else grad_table,
    )


def fourier_encode_forward(x: Tensor, matrix: Tensor, scale: float) -> Tensor:
    x, matrix = x.contiguous(), matrix.contiguous()
    ndim, frequencies = matrix.shape
    out = x.new_empty(x.shape[0], 2 * frequencies)
    function("fourier_encode_forward", x.dtype)(
        ndim, frequencies, scale, x.shape[0], address(x), address(matrix), address(out), threads()
    )
    return out


def fourier_encode_backward(
    grad: Tensor, x: Tensor, matrix: Tensor, scale: float, want_x: bool, want_matrix: bool
) -> tuple[Tensor, Tensor]:
    grad, x, matrix = grad.contiguous(), x.contiguous(), matrix.contiguous()
    ndim, frequencies = matrix.shape
    grad_x, grad_matrix = wanted(x, want_x), wanted(matrix, want_matrix)
    function("fourier_encode_backward", x.dtype)(
        ndim,
        frequencies,
        scale,
        x.shape[0],
        address(x),
        address(matrix),
        address(grad),
        address(grad_x),
        address(grad_matrix),
        threads(),
    )
    return (
        x.new_empty(0) if grad_x is None else grad_x,
        x.new_empty(0) if grad_matrix is None else grad_matrix,
    )


class _Call:
    """One call of the native field: its shape, and its tensors contiguous, volumes with their channels last."""

    def __init__(self, x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float]) -> None:
        spec = unflatten(ints, floats)
        encoding, flow = spec.encoding, spec.flow
        shape = native.load_cpu().FieldShape()
        shape.ndim, shape.out = spec.ndim, spec.out
        shape.encoded = spec.encoded
        if isinstance(encoding, HashGrid):
            shape.encoding = 2
            shape.grid = native.load_cpu().GridShape(
                spec.ndim,
                list(encoding.resolutions),
                encoding.features,
                1 << encoding.log2_table_size,
                encoding.interpolation == "smoothstep",
            )
        elif isinstance(encoding, Fourier):
            shape.encoding = 1
            shape.frequencies, shape.fourier_scale = encoding.frequencies, encoding.scale
            shape.raw = encoding.raw
        shape.widths, shape.gate_widths = list(spec.widths), list(spec.gate_widths)
        shape.omegas, shape.gate_omegas = list(spec.omega), list(spec.gate_omega)
        shape.activation = ACTIVATIONS.index(spec.activation)
        shape.skip, shape.output = SKIPS.index(spec.skip), OUTPUTS.index(spec.output)
        shape.bfloat16 = spec.products == "bfloat16"
        if flow:
            shape.steps, shape.time, shape.rk4 = flow.steps, flow.time, flow.scheme == "rk4"
        self.x = x.contiguous()
        self.tensors = list(tensors)
        if spec.latent:
            shape.latent = spec.latent
            shape.latent_per_point = tensors[int(encoding is not None)].shape[0] > 1
        self.volume = at = spec.volume_index
        if at is not None:
            shape.volume_channels, shape.volume_size = spec.latent_volume, list(tensors[at].shape[1:])
            self.tensors[at] = tensors[at].movedim(0, -1)
            self.copied = not self.tensors[at].is_contiguous()
        self.tensors = [t.contiguous() for t in self.tensors]
        self.shape, self.spec = shape, spec

    def kept(self, jet: bool) -> Tensor:
        """Room for the encoded points, for ``forward`` to fill and ``backward`` to read."""
        return self.x.new_zeros(function("field_kept", self.x.dtype)(self.shape, len(self.x), jet))

    def forward(self, jet: bool, kept: Tensor | None) -> tuple[Tensor, Tensor | None]:
        x, spec = self.x, self.spec
        y = x.new_empty(len(x), spec.out)
        jacobian = x.new_empty(len(x), spec.out, spec.ndim) if jet else None
        function("field_forward", x.dtype)(
            self.shape,
            len(x),
            address(x),
            [address(t) for t in self.tensors],
            address(kept),
            address(y),
            address(jacobian),
            threads(),
        )
        return y, jacobian

    def backward(
        self, grad: Tensor, grad_jacobian: Tensor | None, want: list[bool], kept: Tensor | None
    ) -> list[Tensor]:
        x = self.x
        grad = grad.contiguous()
        grad_jacobian = None if grad_jacobian is None else grad_jacobian.contiguous()
        grads = [wanted(t, w) for t, w in zip([x, *self.tensors], want, strict=True)]
        function("field_backward", x.dtype)(
            self.shape,
            len(x),
            address(x),
            [address(t) for t in self.tensors],
            address(kept),
            address(grad),
            address(grad_jacobian),
            [address(g) for g in grads],
            threads(),
        )
        results = [x.new_empty(0) if g is None else g for g in grads]
        if self.volume is not None and want[1 + self.volume]:
            gradient = results[1 + self.volume].movedim(-1, 0)  # lies like a volume that needed no copy
            results[1 + self.volume] = gradient.contiguous() if self.copied else gradient
        return results


def field_kept(x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], jet: bool) -> Tensor:
    return _Call(x, tensors, ints, floats).kept(jet)


def field_forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], kept: Tensor | None = None
) -> Tensor:
    return _Call(x, tensors, ints, floats).forward(False, kept)[0]


def field_backward(
    grad: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    kept: Tensor | None = None,
) -> list[Tensor]:
    return _Call(x, tensors, ints, floats).backward(grad, None, want, kept)


def field_jet_forward(
    x: Tensor, tensors: list[Tensor], ints: list[int], floats: list[float], kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    y, jacobian = _Call(x, tensors, ints, floats).forward(True, kept)
    assert jacobian is not None
    return y, jacobian


def field_jet_backward(
    grad: Tensor,
    grad_jacobian: Tensor,
    x: Tensor,
    tensors: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    kept: Tensor | None = None,
) -> list[Tensor]:
    return _Call(x, tensors, ints, floats).backward(grad, grad_jacobian, want, kept)


def gradient_inverse_consistency(
    x: Tensor,
    there: list[Tensor],
    back: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
) -> tuple[Tensor, Tensor]:
    call = _Call(x, there, ints, floats)
    first = int(call.spec.encoding is not None)
    codes = slice(first, first + len(there) - len(back))  # of both fields, and so are their gradients
    others = [t.contiguous() for t in back]
    tensors = [call.x, *call.tensors, *others]
    gradients = output([sum(t.numel() for t, w in zip(tensors, want, strict=True) if w)], x.dtype, zeros=True)
    places, at = [], address(gradients)
    for t, w in zip(tensors, want, strict=True):
        places.append(at if w else 0)
        at += t.nbytes if w else 0
    to_x, *to_there = places[: 1 + len(there)]
    to_back = places[1 + len(there) :]

    def with_codes(those: list[Any], of: list[Any]) -> list[Any]:
        return [*those[:first], *of[codes], *those[first:]]

    value = function("gradient_inverse_consistency", x.dtype)(
        call.shape,
        len(x),
        address(call.x),
        [address(t) for t in call.tensors],
        [address(t) for t in with_codes(others, call.tensors)],
        [to_x, *to_there] if any(want) else [],
        [to_x, *with_codes(to_back, to_there)] if any(want) else [],
        threads(),
    )
    return x.new_tensor(value), gradients


def table_adam(
    table: Tensor,
    grad: Tensor,
    mean: Tensor,
    square: Tensor,
    steps: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    tensors = (table, grad, mean, square, steps)
    function("table_adam", table.dtype)(
        *table.shape, lr, beta1, beta2, eps, *(address(t) for t in tensors), threads()
    )


for _op in (
    hash_encode_forward,
    hash_encode_backward,
    fourier_encode_forward,
    fourier_encode_backward,
    field_kept,
    field_forward,
    field_backward,
    field_jet_forward,
    field_jet_backward,
    gradient_inverse_consistency,
    table_adam,
):
    registry.register(_op.__name__, "cpu", _op)
for _public in ("hash_encode", "fourier_encode", "field", "field_jet"):
    registry.register(_public, "cpu", globals()[_public + "_forward"])
