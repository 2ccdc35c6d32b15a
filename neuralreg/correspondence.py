"""A coarse network and a small convolution behind it, read between the points of a lattice: NCF's field."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.fields import FORMAT, Field, load_field, start_sines
from neuralreg.kernels.spec import FieldSpec, Fourier, octaves
from neuralreg.samplers import axis_coordinates, lattice_coordinates


class Smoother(nn.Module):
    """Two convolutions ndim -> ``channels`` -> ndim with kernels of 3 an axis and a ReLU between; zeros outside.

    ``residual`` adds the input to the result. Either way the first result is the input itself: the second convolution
    starts at zero, or, without the residual path, undoes the first one, which carries x as relu(x) and relu(-x).

    Raises:
        ValueError: ndim is not 2 or 3, or too few channels for that start (one; 2 ndim without the residual path).
    """

    def __init__(self, ndim: int, channels: int = 32, *, residual: bool = True) -> None:
        super().__init__()
        if ndim not in (2, 3):
            raise ValueError(f"Smoother: ndim must be 2 or 3, got {ndim}")
        least = 1 if residual else 2 * ndim
        if channels < least:
            how = "" if residual else " without the residual path"
            raise ValueError(f"Smoother: needs at least {least} channels{how}, got {channels}")
        self.channels, self.residual = channels, residual
        kernel = (3,) * ndim
        bound = 1 / math.sqrt(ndim * 3**ndim)
        self.spread = nn.Parameter(torch.empty(channels, ndim, *kernel).uniform_(-bound, bound))
        self.spread_bias = nn.Parameter(torch.zeros(channels))
        self.gather = nn.Parameter(torch.zeros(ndim, channels, *kernel))
        self.gather_bias = nn.Parameter(torch.zeros(ndim))
        if not residual:
            centre = 3**ndim // 2
            both = torch.cat([torch.eye(ndim), -torch.eye(ndim)])
            with torch.no_grad():
                self.spread[: 2 * ndim] = 0
                self.spread.flatten(2)[: 2 * ndim, :, centre] = both
                self.gather.flatten(2)[:, : 2 * ndim, centre] = both.T

    def forward(self, field: Tensor) -> Tensor:
        """(B, ndim, *spatial) to the same shape."""
        smoothed = kernels.conv_relu_conv(field, self.spread, self.spread_bias, self.gather, self.gather_bias)
        return field + smoothed if self.residual else smoothed


class CorrespondenceField(nn.Module):
    """NCF's field: ``coarse`` asked at a lattice of ``shape`` points over [-1, 1], ``smoother`` on what it says.

    ``forward(x)`` reads the lattice at x (N, ndim), linearly between its points and with the border's value outside,
    and returns the displacement (N, ndim) in coordinates. Every call with gradients computes the whole lattice; without
    them it is kept until a parameter changes.

    Memory: a few numbers a lattice point and axis; hidden layers and channels are computed again when gradients need
    them.
    """

    def __init__(self, coarse: Field, smoother: Smoother, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) != coarse.spec.ndim or min(shape) < 1:
            raise ValueError(
                f"CorrespondenceField: needs {coarse.spec.ndim} lattice sizes of at least 1, got {shape}"
            )
        self.coarse, self.smoother, self.shape = coarse, smoother, tuple(shape)
        self._kept: tuple[list[Any], Tensor] | None = None

    def lattice(self) -> Tensor:
        """(1, ndim, *shape): the displacement at the lattice points, in coordinates."""
        like = self.coarse.weights[0]
        axes = [
            axis_coordinates(torch.arange(n, device=like.device, dtype=torch.float64), n).to(like.dtype)
            for n in self.shape
        ]
        coarse = self.coarse(lattice_coordinates(axes))
        return self.smoother(coarse.T.reshape(1, len(self.shape), *self.shape))

    def forward(self, x: Tensor) -> Tensor:
        ndim = len(self.shape)
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters())
        values = self.lattice() if trains else self._lattice_kept()
        places = x.flip(1).view(1, -1, *[1] * (ndim - 1), ndim)
        read = kernels.grid_sample(values, places, padding_mode="border", align_corners=True)
        return read.view(ndim, -1).T

    @torch.no_grad()
    def _lattice_kept(self) -> Tensor:
        state = [(p.data_ptr(), p._version, p.dtype) for p in (*self.parameters(), *self.buffers())]
        if self._kept is None or self._kept[0] != state:
            self._kept = state, self.lattice()
        return self._kept[1]

    def describe(self) -> dict[str, Any]:
        """Both parts and the lattice in plain types, for :func:`~neuralreg.fields.load_field`."""
        return {
            "format": FORMAT,
            "kind": "correspondence",
            "coarse": self.coarse.describe(),
            "channels": self.smoother.channels,
            "residual": self.smoother.residual,
            "smoother": self.smoother.state_dict(),
            "shape": list(self.shape),
        }

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> CorrespondenceField:
        """The field that ``describe`` described."""
        shape = tuple(description["shape"])
        smoother = Smoother(len(shape), description["channels"], residual=description["residual"])
        smoother.load_state_dict(description["smoother"])
        coarse = load_field(description["coarse"])
        assert isinstance(coarse, Field)
        return cls(coarse, smoother.to(coarse.weights[0].dtype), shape)


def coarse_network(
    ndim: int,
    hidden: tuple[int, ...] = (128, 128, 128, 128),
    *,
    activation: str = "sine",
    omega: float = 30.0,
    octave_count: int = 0,
    output: str = "displacement",
) -> Field:
    """NCF's coarse module: ``hidden`` layers and a linear one on the coordinates, or on octaves of them.

    With ``octave_count`` the input is [x, sin(pi 2^l x), cos(pi 2^l x)], l below it, per axis. Sine layers compute
    sin(omega z) and start as in Sitzmann et al. 2020. The output layer starts at zero: a "displacement" is none then,
    a "position" the middle of the grid.
    """
    encoding = Fourier(ndim * octave_count, math.pi, raw=True) if octave_count else None
    sine = activation == "sine"
    omegas = (float(omega),) * len(hidden) if sine else ()
    field = Field(FieldSpec(ndim, encoding, hidden, ndim, activation, omegas, output=output))
    if field.matrix is not None:
        field.matrix.copy_(torch.tensor(octaves(ndim, octave_count)))
    if sine:
        start_sines(list(field.weights[: 2 * len(hidden) : 2]), omegas)
    return field
