"""Neural fields as modules over the fused ops: ``forward(x)`` maps (N, ndim) coordinates to (N, out) values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid

FORMAT = 1


class Field(nn.Module):
    """A field of any :class:`~neuralreg.kernels.FieldSpec`: parameters and their first values.

    ``table`` or ``matrix`` (a fixed buffer) holds the encoding, ``weights`` the layers. The last layer starts at zero
    when ``start_at_zero``, so that the first displacement is none.
    """

    def __init__(self, spec: FieldSpec, *, start_at_zero: bool = True, table_range: float = 1e-2) -> None:
        super().__init__()
        self.spec = spec
        shapes = spec.parameter_shapes()
        self.table: nn.Parameter | None = None
        self.matrix: Tensor | None
        if isinstance(spec.encoding, HashGrid):
            self.table = nn.Parameter(torch.empty(shapes.pop(0)).uniform_(-table_range, table_range))
        if isinstance(spec.encoding, Fourier):
            self.register_buffer("matrix", torch.zeros(shapes.pop(0)))
        else:
            self.matrix = None
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
        for weight, bias in zip(self.weights[::2], self.weights[1::2], strict=True):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.uniform_(bias, -bound, bound)
        if start_at_zero:
            nn.init.zeros_(self.weights[-2])
            nn.init.zeros_(self.weights[-1])

    @property
    def encoding(self) -> list[Tensor]:
        """The encoding's tensor, as ``field`` takes it."""
        return [t for t in (self.table, self.matrix) if t is not None]

    def forward(self, x: Tensor) -> Tensor:
        return kernels.field(x, [*self.encoding, *self.weights], self.spec)

    def describe(self) -> dict[str, Any]:
        """Spec and tensors in plain types, for :func:`load_field`."""
        encoding = self.spec.encoding
        return {
            "format": FORMAT,
            "encoding": None if encoding is None else type(encoding).__name__,
            "encoding_options": {} if encoding is None else asdict(encoding),
            "ndim": self.spec.ndim,
            "hidden": list(self.spec.hidden),
            "out": self.spec.out,
            "activation": self.spec.activation,
            "omega": list(self.spec.omega),
            "state": self.state_dict(),
        }


def load_field(description: dict[str, Any]) -> Field:
    """The field that :meth:`Field.describe` described.

    Raises:
        ValueError: written by another format version.
    """
    if description.get("format") != FORMAT:
        raise ValueError(
            f"field format {description.get('format')!r} is not {FORMAT}, which this version reads"
        )
    kind = description["encoding"]
    encoding = (
        None
        if kind is None
        else {"HashGrid": HashGrid, "Fourier": Fourier}[kind](**description["encoding_options"])
    )
    result = Field(
        FieldSpec(
            description["ndim"],
            encoding,
            tuple(description["hidden"]),
            description["out"],
            description["activation"],
            tuple(description["omega"]),
        )
    )
    result.load_state_dict(description["state"])
    return result


class HashMLP(Field):
    """Multi-resolution grid and a small ReLU network (NIR's hash model; Instant NGP's encoding)."""

    def __init__(
        self,
        *,
        ndim: int = 3,
        out: int | None = None,
        levels: int = 16,
        features: int = 2,
        base: int = 16,
        finest: int = 256,
        log2_table_size: int = 17,
        hidden: tuple[int, ...] = (64, 64),
        table_range: float = 1e-2,
    ) -> None:
        grid = HashGrid(levels, features, base, finest, log2_table_size)
        super().__init__(FieldSpec(ndim, grid, hidden, ndim if out is None else out), table_range=table_range)


class Siren(Field):
    """Sine network, on Fourier features where ``frequencies`` is not 0 (NIR's gaussian_sine model).

    Weights start as in Sitzmann et al. 2020: U(-1/n, 1/n) in the first layer, U(-sqrt(6/n)/w, sqrt(6/n)/w) beyond,
    where ``w`` is ``initial_omega``: NIR's released code computes with omega 10 but divides the bound by 30.
    B is drawn from N(0, sigma^2) and stays fixed.
    """

    def __init__(
        self,
        *,
        ndim: int = 3,
        out: int | None = None,
        frequencies: int = 128,
        sigma: float = 1.0,
        scale: float = math.pi,
        hidden: tuple[int, ...] = (256, 256, 256),
        omega: float = 10.0,
        initial_omega: float = 30.0,
        start_at_zero: bool = True,
    ) -> None:
        encoding = Fourier(frequencies, scale) if frequencies else None
        spec = FieldSpec(
            ndim, encoding, hidden, ndim if out is None else out, "sine", (float(omega),) * len(hidden)
        )
        super().__init__(spec, start_at_zero=start_at_zero)
        if self.matrix is not None:
            nn.init.normal_(self.matrix, std=sigma)
        last = len(self.weights) // 2 - 1
        for index, weight in enumerate(self.weights[::2]):
            fan_in = weight.shape[1]
            bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / initial_omega
            if index < last or not start_at_zero:
                nn.init.uniform_(weight, -bound, bound)
