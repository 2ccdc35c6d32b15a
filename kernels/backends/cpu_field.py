"""cpu backend of the encodings and the field."""

from __future__ import annotations

from torch import Tensor

from neuralreg.kernels.spec import Fourier, HashGrid, unflatten

from . import native, registry
from .cpu import address, function, threads, wanted


def hash_encode_forward(x: Tensor, table: Tensor, resolutions: list[int], table_size: int) -> Tensor:
    x, table = x.contiguous(), table.contiguous()
    out = x.new_empty(x.shape[0], len(resolutions) * table.shape[1])
    function("hash_encode_forward", x.dtype)(
        x.shape[1],
        resolutions,
        table.shape[1],
        table_size,
        x.shape[0],
        address(x),
        address(table),
        address(out),
        threads(),
    )
    return out


def hash_encode_backward(
    grad: Tensor,
    x: Tensor,
    table: Tensor,
    resolutions: list[int],
    table_size: int,
    want_x: bool,
    want_table: bool,
) -> tuple[Tensor, Tensor]:
    grad, x, table = grad.contiguous(), x.contiguous(), table.contiguous()
    grad_x, grad_table = wanted(x, want_x), wanted(table, want_table)
    function("hash_encode_backward", x.dtype)(
        x.shape[1],
        resolutions,
        table.shape[1],
        table_size,
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


def _shape(ints: list[int], floats: list[float]) -> object:
    spec = unflatten(ints, floats)
    if spec.latent or spec.latent_volume or spec.gated or spec.skip != "none" or spec.flow:
        raise registry.BackendError("the cpu backend has no latents, gates, skips or flows yet")
    if spec.output != "displacement" or spec.activation not in ("relu", "sine"):
        raise registry.BackendError("the cpu backend has relu, sine and displacements only yet")
    encoding = spec.encoding
    kind, grid, fourier = 0, HashGrid(), Fourier()
    if isinstance(encoding, HashGrid):
        kind, grid = 2, encoding
    elif isinstance(encoding, Fourier):
        kind, fourier = 1, encoding
    return native.load_cpu().FieldShape(
        spec.ndim,
        kind,
        list(grid.resolutions),
        grid.features,
        1 << grid.log2_table_size,
        fourier.frequencies,
        fourier.scale,
        list(spec.widths),
        int(spec.activation == "sine"),
        list(spec.omega),
    )


def field_forward(x: Tensor, params: list[Tensor], ints: list[int], floats: list[float]) -> Tensor:
    x = x.contiguous()
    params = [p.contiguous() for p in params]
    y = x.new_empty(x.shape[0], params[-1].shape[0])
    shape = _shape(ints, floats)
    function("field_forward", x.dtype)(
        shape, x.shape[0], address(x), [address(p) for p in params], address(y), threads()
    )
    return y


def field_backward(
    grad: Tensor, x: Tensor, params: list[Tensor], ints: list[int], floats: list[float], want: list[bool]
) -> list[Tensor]:
    grad, x = grad.contiguous(), x.contiguous()
    params = [p.contiguous() for p in params]
    grads = [wanted(t, w) for t, w in zip([x, *params], want, strict=True)]
    shape = _shape(ints, floats)
    function("field_backward", x.dtype)(
        shape,
        x.shape[0],
        address(x),
        [address(p) for p in params],
        address(grad),
        address(grads[0]),
        [address(g) for g in grads[1:]],
        threads(),
    )
    return [x.new_empty(0) if g is None else g for g in grads]


for _op in (
    hash_encode_forward,
    hash_encode_backward,
    fourier_encode_forward,
    fourier_encode_backward,
    field_forward,
    field_backward,
):
    registry.register(_op.__name__, "cpu", _op)
for _public in ("hash_encode", "fourier_encode", "field"):
    registry.register(_public, "cpu", globals()[_public + "_forward"])
