"""What a field is made of: encodings and layers as plain, immutable descriptions.

A spec holds no tensors. The ops take it flattened to ints, floats and strings, so that a registered op stays
stateless and ``torch.compile`` sees constants.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ACTIVATIONS = ("relu", "sine")


@dataclass(frozen=True)
class HashGrid:
    """Multi-resolution feature grid (Mueller et al. 2022, Instant NGP): dense levels while they fit, hashed beyond.

    Level ``l`` has ``R_l = floor(base * (finest / base) ** (l / (levels - 1)))`` vertices on every axis of [-1, 1].
    It is stored densely when ``R_l ** ndim <= 2 ** log2_table_size``, otherwise hashed into that many entries.
    """

    levels: int = 16
    features: int = 2
    base: int = 16
    finest: int = 256
    log2_table_size: int = 17

    def __post_init__(self) -> None:
        if self.levels < 1 or self.features < 1:
            raise ValueError(
                f"HashGrid: levels and features must be at least 1, got {self.levels}, {self.features}"
            )
        if not 2 <= self.base <= self.finest:
            raise ValueError(
                f"HashGrid: needs 2 <= base <= finest, got base {self.base}, finest {self.finest}"
            )
        if not 1 <= self.log2_table_size <= 30:
            raise ValueError(f"HashGrid: log2_table_size must lie in 1..30, got {self.log2_table_size}")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Vertices per axis of every level."""
        if self.levels == 1:
            return (self.base,)
        growth = math.log(self.finest / self.base) / (self.levels - 1)
        return tuple(math.floor(self.base * math.exp(growth * level) + 1e-6) for level in range(self.levels))

    def entries(self, ndim: int) -> tuple[int, ...]:
        """Table entries of every level in ``ndim`` dimensions."""
        return tuple(min(r**ndim, 1 << self.log2_table_size) for r in self.resolutions)

    @property
    def width(self) -> int:
        """Number of encoded features."""
        return self.levels * self.features


@dataclass(frozen=True)
class Fourier:
    """Random Fourier features (Tancik et al. 2020): ``[sin(scale x B), cos(scale x B)]`` with a fixed matrix B."""

    frequencies: int = 128
    scale: float = math.pi

    def __post_init__(self) -> None:
        if self.frequencies < 1:
            raise ValueError(f"Fourier: frequencies must be at least 1, got {self.frequencies}")

    @property
    def width(self) -> int:
        """Number of encoded features."""
        return 2 * self.frequencies


@dataclass(frozen=True)
class FieldSpec:
    """Encoding, then hidden layers with one activation, then a linear output layer.

    ``encoding`` None feeds the coordinates themselves. ``omega`` gives the sine frequency of every hidden layer
    (one number serves all); ReLU ignores no option: it takes no omega.
    """

    ndim: int = 3
    encoding: HashGrid | Fourier | None = None
    hidden: tuple[int, ...] = (64, 64)
    out: int = 3
    activation: str = "relu"
    omega: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.ndim not in (2, 3):
            raise ValueError(f"FieldSpec: ndim must be 2 or 3, got {self.ndim}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"FieldSpec: activation must be one of {ACTIVATIONS}, got {self.activation!r}")
        if not 1 <= len(self.hidden) <= 8 or any(not 1 <= w <= 256 for w in self.hidden):
            raise ValueError(f"FieldSpec: 1 to 8 hidden layers of width 1 to 256, got {self.hidden}")
        if self.out < 1:
            raise ValueError(f"FieldSpec: out must be at least 1, got {self.out}")
        if self.activation == "sine" and len(self.omega) != len(self.hidden):
            raise ValueError(
                f"FieldSpec: a sine field needs one omega per hidden layer ({len(self.hidden)}), got {self.omega}"
            )
        if self.activation == "relu" and self.omega:
            raise ValueError("FieldSpec: omega belongs to the sine activation; leave it empty for ReLU")

    @property
    def encoded(self) -> int:
        """Width of the encoding's output."""
        return self.ndim if self.encoding is None else self.encoding.width

    @property
    def widths(self) -> tuple[int, ...]:
        """Layer widths from the encoded input to the output."""
        return (self.encoded, *self.hidden, self.out)

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the params of ``field``: table or B first, then W and b layer by layer."""
        shapes: list[tuple[int, ...]] = []
        if isinstance(self.encoding, HashGrid):
            shapes.append((sum(self.encoding.entries(self.ndim)), self.encoding.features))
        elif isinstance(self.encoding, Fourier):
            shapes.append((self.ndim, self.encoding.frequencies))
        for fan_in, fan_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            shapes += [(fan_out, fan_in), (fan_out,)]
        return shapes
