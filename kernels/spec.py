"""What a field is made of: encodings and layers as plain, immutable descriptions.

A spec holds no tensors. The ops take it flattened to ints, floats and strings, so that a registered op stays
stateless and ``torch.compile`` sees constants.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

ACTIVATIONS = ("relu", "sine", "tanh", "softplus", "silu")
INTERPOLATIONS = ("linear", "smoothstep")
SKIPS = ("none", "first", "previous")
OUTPUTS = ("displacement", "position", "velocity")
SCHEMES = ("euler", "rk4")
PRODUCTS = ("full", "bfloat16")
NARROW = 8  # factors of a product that is no wider, such as plain coordinates, are not rounded


@dataclass(frozen=True)
class HashGrid:
    """Multi-resolution feature grid (Mueller et al. 2022, Instant NGP): dense levels while they fit, hashed beyond.

    Level ``l`` has ``R_l = floor(base * (finest / base) ** (l / (levels - 1)))`` vertices on every axis of [-1, 1].
    It is stored densely when ``R_l ** ndim <= 2 ** log2_table_size``, otherwise hashed into that many entries.
    ``interpolation`` "smoothstep" takes t^2 (3 - 2 t) for the place t in a cell, so that the derivative is continuous.
    """

    levels: int = 16
    features: int = 2
    base: int = 16
    finest: int = 256
    log2_table_size: int = 17
    interpolation: str = "linear"

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
        _one_of("HashGrid: interpolation", self.interpolation, INTERPOLATIONS)

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

    def width(self, ndim: int) -> int:
        """Number of encoded features."""
        return self.levels * self.features


@dataclass(frozen=True)
class Fourier:
    """Fourier features (Tancik et al. 2020): ``[sin(scale x B), cos(scale x B)]`` with a fixed matrix B.

    B is random (NIR, NePhi) or axis-aligned octaves (:func:`octaves`). With ``raw`` the coordinates come first.
    """

    frequencies: int = 128
    scale: float = math.pi
    raw: bool = False

    def __post_init__(self) -> None:
        if self.frequencies < 1:
            raise ValueError(f"Fourier: frequencies must be at least 1, got {self.frequencies}")

    def width(self, ndim: int) -> int:
        """Number of encoded features."""
        return 2 * self.frequencies + (ndim if self.raw else 0)


@dataclass(frozen=True)
class Flow:
    """A stationary velocity field is integrated from 0 to ``time`` in ``steps`` equal steps (NIR: RK4, 4 of 0.05)."""

    time: float = 0.2
    steps: int = 4
    scheme: str = "rk4"

    def __post_init__(self) -> None:
        if self.steps < 1 or not math.isfinite(self.time):
            raise ValueError(f"Flow: needs steps >= 1 and a finite time, got {self.steps}, {self.time}")
        _one_of("Flow: scheme", self.scheme, SCHEMES)


@dataclass(frozen=True)
class FieldSpec:
    """Encoding (and latents), then hidden layers, then a linear output layer.

    The input of the first layer is [encoding of x, latent, latent volume at x]; ``encoding`` None takes the
    coordinates themselves. ``latent`` is the width of a vector given with every call, one for all points or one a
    point; ``latent_volume`` the number of channels of a volume over [-1, 1] that is read at x (linear, vertices at
    both ends of an axis, the border's value outside).

    Hidden layer l computes ``v_l = act(W_l v_{l-1} + b_l)``, with the sine as ``sin(omega_l z)`` (``omega``: one
    number a hidden layer; it belongs to the sine alone). ``skip`` adds to the later hidden layers the output of the
    "first" or of the "previous" one.

    With ``gate_omega`` (one number a hidden layer) the field is gated as in NePhi: a second stack of sine layers, the
    modulator, reads the whole input and its layer l multiplies layer l of the main stack, ``v_l = g_l sin(omega_l
    (W_l v_{l-1} + b_l))``, which then reads the encoding alone; ``skip`` belongs to the modulator.

    ``output`` says what the last layer's z is: the "displacement" u itself, the absolute "position" (u = z - x), or a
    "velocity" tanh(z). With ``flow`` the velocity (or displacement, as an unbounded velocity) is integrated, and the
    field's value is the displacement of the flow's end.

    ``products`` "bfloat16" rounds the factors of the layers' matrix products to bfloat16, those of layers with at most
    NARROW inputs or outputs apart; tensors are float32, and so are sums, activations and results. GPUs multiply such
    factors several times faster, CPUs with AVX512-BF16 twice.
    """

    ndim: int = 3
    encoding: HashGrid | Fourier | None = None
    hidden: tuple[int, ...] = (64, 64)
    out: int = 3
    activation: str = "relu"
    omega: tuple[float, ...] = ()
    latent: int = 0
    latent_volume: int = 0
    skip: str = "none"
    gate_omega: tuple[float, ...] = ()
    output: str = "displacement"
    flow: Flow | None = None
    products: str = "full"

    def __post_init__(self) -> None:
        if self.ndim < 1 or (self.ndim not in (2, 3) and (self.encoding is not None or self.latent_volume)):
            raise ValueError(f"FieldSpec: ndim must be 2 or 3 (any for plain coordinates), got {self.ndim}")
        _one_of("FieldSpec: activation", self.activation, ACTIVATIONS)
        _one_of("FieldSpec: skip", self.skip, SKIPS)
        _one_of("FieldSpec: output", self.output, OUTPUTS)
        _one_of("FieldSpec: products", self.products, PRODUCTS)
        if not 1 <= len(self.hidden) <= 8 or any(not 1 <= w <= 256 for w in self.hidden):
            raise ValueError(f"FieldSpec: 1 to 8 hidden layers of width 1 to 256, got {self.hidden}")
        if self.out < 1 or self.latent < 0 or self.latent_volume < 0:
            raise ValueError(
                f"FieldSpec: needs out >= 1, latent >= 0, latent_volume >= 0, got {self.out}, {self.latent}, "
                f"{self.latent_volume}"
            )
        if self.activation == "sine" and len(self.omega) != len(self.hidden):
            raise ValueError(
                f"FieldSpec: a sine field needs one omega per hidden layer ({len(self.hidden)}), got {self.omega}"
            )
        if self.activation != "sine" and self.omega:
            raise ValueError(f"FieldSpec: omega belongs to the sine activation, not to {self.activation}")
        if self.gate_omega and (self.activation != "sine" or len(self.gate_omega) != len(self.hidden)):
            raise ValueError(
                f"FieldSpec: gates need the sine activation and one gate_omega per hidden layer ({len(self.hidden)}), "
                f"got {self.activation}, {self.gate_omega}"
            )
        if self.skip != "none" and len(set(self.hidden)) > 1:
            raise ValueError(f"FieldSpec: skip needs hidden layers of one width, got {self.hidden}")
        if self.out != self.ndim and (self.output == "position" or self.flow):
            raise ValueError(f"FieldSpec: positions and flows need out == ndim, got {self.out}, {self.ndim}")
        if self.flow and self.output == "position":
            raise ValueError("FieldSpec: a flow integrates a velocity; output 'position' is none")

    @property
    def gated(self) -> bool:
        """Whether a modulator multiplies the layers."""
        return bool(self.gate_omega)

    @property
    def encoded(self) -> int:
        """Width of the encoding's output."""
        return self.ndim if self.encoding is None else self.encoding.width(self.ndim)

    @property
    def inputs(self) -> int:
        """Width of the encoding and the latents together."""
        return self.encoded + self.latent + self.latent_volume

    @property
    def volume_index(self) -> int | None:
        """Which of an op's tensors the latent volume is: behind those of the encoding and the latent."""
        return (self.encoding is not None) + (self.latent > 0) if self.latent_volume else None

    @property
    def widths(self) -> tuple[int, ...]:
        """Layer widths of the main stack from its input to the output."""
        return (self.encoded if self.gated else self.inputs, *self.hidden, self.out)

    @property
    def gate_widths(self) -> tuple[int, ...]:
        """Layer widths of the modulator from its input to its last layer; empty without gates."""
        return (self.inputs, *self.hidden) if self.gated else ()

    def parameter_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the params of ``field``: table or B, then W and b of the main stack, then of the modulator."""
        shapes: list[tuple[int, ...]] = []
        if isinstance(self.encoding, HashGrid):
            shapes.append((sum(self.encoding.entries(self.ndim)), self.encoding.features))
        elif isinstance(self.encoding, Fourier):
            shapes.append((self.ndim, self.encoding.frequencies))
        for widths in (self.widths, self.gate_widths):
            for fan_in, fan_out in itertools.pairwise(widths):
                shapes += [(fan_out, fan_in), (fan_out,)]
        return shapes


def octaves(ndim: int, count: int) -> list[list[float]]:
    """The (ndim, ndim * count) matrix B of axis-aligned frequencies 2^0 .. 2^(count - 1), for ``Fourier``."""
    return [
        [2.0**octave if axis == row else 0.0 for axis in range(ndim) for octave in range(count)]
        for row in range(ndim)
    ]


def flatten(spec: FieldSpec) -> tuple[list[int], list[float]]:
    """The spec as the numbers that a registered op takes; :func:`unflatten` reads them."""
    encoding, flow = spec.encoding, spec.flow
    numbers = [0]
    if isinstance(encoding, HashGrid):
        numbers = [2, encoding.levels, encoding.features, encoding.base, encoding.finest]
        numbers += [encoding.log2_table_size, INTERPOLATIONS.index(encoding.interpolation)]
    elif isinstance(encoding, Fourier):
        numbers = [1, encoding.frequencies, int(encoding.raw)]
    ints = [
        spec.ndim,
        spec.out,
        spec.latent,
        spec.latent_volume,
        ACTIVATIONS.index(spec.activation),
        SKIPS.index(spec.skip),
        OUTPUTS.index(spec.output),
        int(spec.gated),
        flow.steps if flow else 0,
        SCHEMES.index(flow.scheme) if flow else 0,
        PRODUCTS.index(spec.products),
        *numbers,
        *spec.hidden,
    ]
    scale = encoding.scale if isinstance(encoding, Fourier) else 0.0
    return ints, [scale, flow.time if flow else 0.0, *spec.omega, *spec.gate_omega]


def unflatten(ints: list[int], floats: list[float]) -> FieldSpec:
    """The spec that :func:`flatten` made the numbers of."""
    return _unflatten(tuple(ints), tuple(floats))


@functools.lru_cache(maxsize=256)
def _unflatten(ints: tuple[int, ...], floats: tuple[float, ...]) -> FieldSpec:
    ndim, out, latent, latent_volume, activation, skip, output, gated, *rest = ints
    steps, scheme, products, kind, *rest = rest
    scale, time, *omegas = floats
    encoding: HashGrid | Fourier | None = None
    if kind == 2:
        levels, features, base, finest, size, interpolation = rest[:6]
        encoding = HashGrid(levels, features, base, finest, size, INTERPOLATIONS[interpolation])
        rest = rest[6:]
    elif kind == 1:
        encoding, rest = Fourier(rest[0], scale, bool(rest[1])), rest[2:]
    return FieldSpec(
        ndim=ndim,
        encoding=encoding,
        hidden=tuple(rest),
        out=out,
        activation=ACTIVATIONS[activation],
        omega=tuple(omegas[: len(omegas) // 2] if gated else omegas),
        latent=latent,
        latent_volume=latent_volume,
        skip=SKIPS[skip],
        gate_omega=tuple(omegas[len(omegas) // 2 :] if gated else ()),
        output=OUTPUTS[output],
        flow=Flow(time, steps, SCHEMES[scheme]) if steps else None,
        products=PRODUCTS[products],
    )


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{what} must be one of {known}, got {value!r}")
