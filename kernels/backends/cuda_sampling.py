"""The CUDA backend's sampling. Images in half types are read as they are; all else of them is float32.

The gradient of the image is summed by floating atomics, in the order in which they come; with torch's deterministic
algorithms by 64-bit integers, in a buffer of eight bytes a voxel and channel, and whatever arrives that is not finite
makes all of it NaN. Everything else has the same bits every time. The gradient of an affine needs a few hundredths of
a displacement as scratch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import cuda, registry
from .cpu import address
from .cpu_sampling import (
    _LABELS,
    _PADDING,
    _STORAGE,
    _computing_type,
    _points,
    _ready,
    _result,
    _stored,
)
from .cuda_encoding import run


class _Call:
    """The tensors of a call, ready for the kernels, and the shape that goes with them."""

    def __init__(
        self,
        image: Tensor,
        coordinates: Tensor,
        affine: Tensor | None,
        normalised: bool,
        mode: str,
        padding_mode: str,
        align_corners: bool,
        dtype: torch.dtype,
    ):
        """``image`` is contiguous and read as it is, ``dtype`` what is computed in."""
        self.image, self.dtype = image, dtype
        self.coordinates = coordinates.to(dtype).contiguous()
        self.affine = _ready(affine, dtype)
        self.out = [*image.shape[:2], *_points(coordinates, normalised)]
        self.shape = cuda._loaded().SampleShape(
            *image.shape[:2],
            list(image.shape[2:]),
            self.out[2:],
            normalised,
            mode == "nearest",
            _PADDING[padding_mode],
            align_corners,
            _STORAGE.get(image.dtype, 0),
        )

    def run(self, name: str, *arguments: Any) -> None:
        run(name, self.coordinates, self.shape, *arguments)

    def addresses(self) -> tuple[int, int, int]:
        return address(self.image), address(self.coordinates), address(self.affine)

    def new(self, like: Tensor | list[int], zeros: bool = False) -> Tensor:
        shape = like if isinstance(like, list) else like.shape
        return (torch.zeros if zeros else torch.empty)(shape, dtype=self.dtype, device=self.image.device)


class _Gradients:
    """Buffers for the wanted gradients of a call's image, coordinates and affine."""

    def __init__(
        self,
        call: _Call,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        wants: tuple[bool, bool, bool],
        written: bool = True,
    ):
        """``written``: the kernel writes the gradient of the coordinates, as it does not with "nearest"."""
        image, coordinates, affine = inputs
        self.inputs = image, coordinates, coordinates if affine is None else affine
        self.image = call.new(image, True) if wants[0] else None
        self.coordinates = call.new(coordinates, not written) if wants[1] else None
        self.affine = call.new(affine, True) if wants[2] and affine is not None else None
        self._sums: Tensor | None = None
        self._largest: Tensor | None = None
        self._scratch: Tensor | None = None
        if self.image is not None and torch.are_deterministic_algorithms_enabled():
            self._sums = torch.zeros(image.numel(), dtype=torch.int64, device=image.device)
            self._largest = self._sums.new_empty(1)
        if self.affine is not None:
            size = cuda._loaded().sample_scratch(call.shape)
            self._scratch = torch.empty(size, dtype=torch.uint8, device=image.device)

    def addresses(self) -> list[int]:
        extra = (self._sums, self._largest, self._scratch)
        return [address(t) for t in (self.image, self.coordinates, self.affine, *extra)]

    def results(self) -> tuple[Tensor, Tensor, Tensor]:
        """In the dtypes of the inputs; empty where not wanted."""
        found = (self.image, self.coordinates, self.affine)
        image, coordinates, affine = (_result(g, t) for g, t in zip(found, self.inputs, strict=True))
        return image, coordinates, affine


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
    options = (normalised, mode, padding_mode, align_corners, dtype)
    call = _Call(_stored(image, dtype), coordinates, affine, *options)
    out, saved = call.new(call.out), call.new(coordinates if save else [0])
    call.run("sample_forward", *call.addresses(), address(out), address(saved) if save else 0)
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
    if saved is not None:  # one channel: its gradient lies there as the coordinates do
        upstream = grad.to(saved.dtype)
        grad_points = saved * (upstream.squeeze(1).unsqueeze(-1) if normalised else upstream)
        like = coordinates if affine is None else affine
        return image.new_empty(0), grad_points.to(coordinates.dtype), like.new_empty(0)
    dtype = _computing_type(image, coordinates)
    options = (normalised, mode, padding_mode, align_corners, dtype)
    call = _Call(_stored(image, dtype), coordinates, affine, *options)
    upstream = grad.to(dtype).contiguous()
    wants = (want_image, want_coordinates, want_affine)
    to = _Gradients(call, (image, coordinates, affine), wants, mode != "nearest")
    call.run("sample_backward", address(upstream), 0, *call.addresses(), to.addresses())
    return to.results()


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
    dtype = _computing_type(image, coordinates)
    options = (normalised, mode, padding_mode, align_corners, dtype)
    call = _Call(image.to(dtype).contiguous(), coordinates, affine, *options)
    tangents = [_ready(t, dtype) for t in (tangent_image, tangent_coordinates, tangent_affine)]
    grad_grad = call.new(grad, mode == "nearest") if want_grad else None
    wants = (want_image, want_coordinates, want_affine)
    to = _Gradients(call, (image, coordinates, affine), wants, mode != "nearest")
    if mode == "nearest":  # linear in the image, and constant in the coordinates
        if grad_grad is not None and tangents[0] is not None:
            moved = (tangents[0], call.coordinates, call.affine, grad_grad)
            call.run("sample_forward", *(address(t) for t in moved), 0)
    else:
        upstream = grad.to(dtype).contiguous()
        inputs = (*tangents, upstream, call.image, call.coordinates, call.affine, grad_grad)
        call.run("sample_twice", *(address(t) for t in inputs), to.addresses())
    return (_result(grad_grad, grad), *to.results())


def warp_with_gradient_forward(
    image: Tensor, displacement: Tensor, affine: Tensor | None, padding_mode: str
) -> tuple[Tensor, Tensor]:
    dtype = _computing_type(image, displacement)
    options = (False, "bilinear", padding_mode, True, dtype)
    call = _Call(_stored(image, dtype), displacement, affine, *options)
    out, gradient = call.new(call.out), call.new([*image.shape[:2], *displacement.shape[1:]])
    call.run("sample_forward", *call.addresses(), address(out), address(gradient))
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
    options = (False, "bilinear", padding_mode, True, dtype)
    call = _Call(_stored(image, dtype), displacement, affine, *options)
    arriving = [t.to(dtype).contiguous() for t in (grad, grad_gradient)]
    wants = (want_image, want_displacement, want_affine)
    to = _Gradients(call, (image, displacement, affine), wants)
    call.run("sample_backward", *(address(t) for t in arriving), *call.addresses(), to.addresses())
    return to.results()


def labels_forward(
    labels: Tensor, displacement: Tensor, affine: Tensor | None, mode: str, padding_mode: str
) -> Tensor:
    plain = labels.view(torch.uint8) if labels.dtype == torch.bool else labels
    plain = (plain.float() if plain.dtype in _STORAGE else plain).contiguous()
    dtype = _computing_type(displacement)
    call = _Call(plain, displacement, affine, False, mode, padding_mode, True, dtype)
    out = torch.empty(call.out, dtype=plain.dtype, device=plain.device)
    call.run("sample_labels_" + _LABELS[plain.dtype], *call.addresses(), address(out))
    return out.view(torch.bool) if labels.dtype == torch.bool else out.to(labels.dtype)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "grid_sample": sample_forward,
    "warp": sample_forward,
    "warp_with_gradient": warp_with_gradient_forward,
    "sample_forward": sample_forward,
    "sample_backward": sample_backward,
    "sample_double_backward": sample_double_backward,
    "warp_with_gradient_forward": warp_with_gradient_forward,
    "warp_with_gradient_backward": warp_with_gradient_backward,
    "labels_forward": labels_forward,
}

if cuda.module is not None:
    for _op, _function in FUNCTIONS.items():
        registry.register(_op, "cuda", _function, verified=False)
