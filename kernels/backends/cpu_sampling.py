"""cpu backend of the sampling ops. Images in half types are read as they are; all else of them is float32."""

from __future__ import annotations

import torch
from torch import Tensor

from . import native, registry
from .cpu import address, function, output, threads

_PADDING = {"zeros": 0, "border": 1, "reflection": 2}
_STORAGE = {torch.bfloat16: 1, torch.float16: 2}
_LABELS = {
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float32: "f32",
    torch.float64: "f64",
}


def _computing_type(*tensors: Tensor) -> torch.dtype:
    """Their common type, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _ready(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Contiguous, in the type that is computed in."""
    return None if tensor is None else tensor.to(dtype).contiguous()


def _stored(image: Tensor, dtype: torch.dtype) -> Tensor:
    """Contiguous, in a type that the kernels read: float32 work takes half types as they are."""
    half = dtype == torch.float32 and image.dtype in _STORAGE
    return image.contiguous() if half else image.to(dtype).contiguous()


def _shape(
    image: Tensor, coordinates: Tensor, normalised: bool, mode: str, padding_mode: str, align_corners: bool
) -> object:
    return native.load_cpu().SampleShape(
        image.shape[0],
        image.shape[1],
        list(image.shape[2:]),
        list(coordinates.shape[1:-1] if normalised else coordinates.shape[2:]),
        normalised,
        mode == "nearest",
        _PADDING[padding_mode],
        align_corners,
        _STORAGE.get(image.dtype, 0),
    )


def _buffer(like: Tensor, dtype: torch.dtype, want: bool, zeros: bool) -> Tensor | None:
    return output(like.shape, dtype, zeros) if want else None


def _result(gradient: Tensor | None, like: Tensor) -> Tensor:
    """The gradient in the dtype of its tensor; empty stands for one that nobody wanted."""
    return like.new_empty(0) if gradient is None else gradient.to(like.dtype)


def _points(coordinates: Tensor, normalised: bool) -> torch.Size:
    return coordinates.shape[1:-1] if normalised else coordinates.shape[2:]


def sample_forward(
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    save: bool,
) -> tuple[Tensor, Tensor]:
    dtype = _computing_type(image, coordinates)
    x, points, matrix = _stored(image, dtype), _ready(coordinates, dtype), _ready(affine, dtype)
    out = output([*image.shape[:2], *_points(coordinates, normalised)], dtype)
    saved = output(coordinates.shape if save else (0,), dtype)
    function("sample_forward", dtype)(
        _shape(x, coordinates, normalised, mode, padding_mode, align_corners),
        *(address(t) for t in (x, points, matrix, out)),
        address(saved) if save else 0,
        threads(),
    )
    return out.to(image.dtype), saved


def sample_backward(
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    saved: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    like = coordinates if affine is None else affine
    dtype = _computing_type(image, coordinates)
    if saved is not None:  # one channel: its gradient lies there as the coordinates do
        upstream = grad.to(dtype)
        upstream = upstream.squeeze(1).unsqueeze(-1) if normalised else upstream
        grad_points = torch.mul(saved, upstream, out=output(saved.shape, dtype))
        return image.new_empty(0), _result(grad_points, coordinates), like.new_empty(0)
    x, upstream = _stored(image, dtype), grad.to(dtype).contiguous()
    points, matrix = _ready(coordinates, dtype), _ready(affine, dtype)
    gaps = mode == "nearest" or grad.numel() == 0  # then the gradient of the coordinates is not written
    grad_x = _buffer(image, dtype, want_image, True)
    grad_points_ = _buffer(coordinates, dtype, want_coordinates, gaps)
    grad_matrix = None if affine is None else _buffer(affine, dtype, want_affine, True)
    function("sample_backward", dtype)(
        _shape(x, coordinates, normalised, mode, padding_mode, align_corners),
        address(upstream),
        0,
        *(address(t) for t in (x, points, matrix, grad_x, grad_points_, grad_matrix)),
        threads(),
    )
    return _result(grad_x, image), _result(grad_points_, coordinates), _result(grad_matrix, like)


def sample_double_backward(
    tangent_image: Tensor | None,
    tangent_coordinates: Tensor | None,
    tangent_affine: Tensor | None,
    grad: Tensor,
    image: Tensor,
    coordinates: Tensor,
    affine: Tensor | None,
    normalised: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
    want_grad: bool,
    want_image: bool,
    want_coordinates: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    like = coordinates if affine is None else affine
    dtype = _computing_type(image, coordinates)
    x, points, matrix = (_ready(t, dtype) for t in (image, coordinates, affine))
    assert x is not None
    gaps = mode == "nearest" or grad.numel() == 0
    grad_grad = _buffer(grad, dtype, want_grad, gaps)
    grad_x = _buffer(image, dtype, want_image, True)
    grad_points = _buffer(coordinates, dtype, want_coordinates, gaps)
    grad_matrix = None if affine is None else _buffer(affine, dtype, want_affine, True)
    shape = _shape(x, coordinates, normalised, mode, padding_mode, align_corners)
    tangents = [_ready(t, dtype) for t in (tangent_image, tangent_coordinates, tangent_affine)]
    if mode == "nearest":  # linear in the image, and constant in the coordinates
        if grad_grad is not None and tangents[0] is not None:
            moved = (address(t) for t in (tangents[0], points, matrix, grad_grad))
            function("sample_forward", dtype)(shape, *moved, 0, threads())
    else:
        upstream = grad.to(dtype).contiguous()
        inputs = (*tangents, upstream, x, points, matrix)
        results = (grad_grad, grad_x, grad_points, grad_matrix)
        function("sample_twice", dtype)(shape, *(address(t) for t in (*inputs, *results)), threads())
    return (
        _result(grad_grad, grad),
        _result(grad_x, image),
        _result(grad_points, coordinates),
        _result(grad_matrix, like),
    )


def warp_with_gradient_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, padding_mode: str
) -> tuple[Tensor, Tensor]:
    dtype = _computing_type(image, displacement)
    x, u, matrix = _stored(image, dtype), _ready(displacement, dtype), _ready(affine, dtype)
    out = output([*image.shape[:2], *displacement.shape[2:]], dtype)
    gradient = output([*image.shape[:2], *displacement.shape[1:]], dtype)
    function("sample_forward", dtype)(
        _shape(x, displacement, False, "bilinear", padding_mode, True),
        *(address(t) for t in (x, u, matrix, out, gradient)),
        threads(),
    )
    return out.to(image.dtype), gradient.to(image.dtype)


def warp_with_gradient_backward(
    grad: Tensor,
    grad_gradient: Tensor,
    image: Tensor,
    displacement: Tensor,
    affine: Tensor | None,
    padding_mode: str,
    want_image: bool,
    want_displacement: bool,
    want_affine: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _computing_type(image, displacement)
    x, u, matrix = _stored(image, dtype), _ready(displacement, dtype), _ready(affine, dtype)
    arriving = [t.to(dtype).contiguous() for t in (grad, grad_gradient)]
    grad_x = _buffer(image, dtype, want_image, True)
    grad_u = _buffer(displacement, dtype, want_displacement, grad.numel() == 0)
    grad_matrix = None if affine is None else _buffer(affine, dtype, want_affine, True)
    function("sample_backward", dtype)(
        _shape(x, displacement, False, "bilinear", padding_mode, True),
        *(address(t) for t in (*arriving, x, u, matrix, grad_x, grad_u, grad_matrix)),
        threads(),
    )
    like = displacement if affine is None else affine
    return _result(grad_x, image), _result(grad_u, displacement), _result(grad_matrix, like)


def labels_forward(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    dtype = _computing_type(displacement)
    plain = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    plain = (plain.float() if plain.dtype in _STORAGE else plain).contiguous()
    u, matrix = _ready(displacement, dtype), _ready(affine, dtype)
    out = output([*labels.shape[:2], *displacement.shape[2:]], plain.dtype)
    function(f"sample_labels_{_LABELS[plain.dtype]}", dtype)(
        _shape(plain, displacement, False, mode, padding_mode, True),
        *(address(t) for t in (plain, u, matrix, out)),
        threads(),
    )
    return out.view(torch.bool) if labels.dtype == torch.bool else out.to(labels.dtype)


for _op in (
    sample_forward,
    sample_backward,
    sample_double_backward,
    warp_with_gradient_forward,
    warp_with_gradient_backward,
    labels_forward,
):
    registry.register(_op.__name__, "cpu", _op)
for _public in ("grid_sample", "warp"):
    registry.register(_public, "cpu", sample_forward)
registry.register("warp_with_gradient", "cpu", warp_with_gradient_forward)
