"""Neural fields as modules over the fused ops.

``forward(x)`` maps (N, ndim) coordinates to (N, out) values, ``jet(x)`` gives the Jacobian as well. Fields with
latents take them with every call.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.kernels.spec import FieldSpec, Flow, Fourier, HashGrid, octaves

FORMAT = 3

# What a description's kind stands for: a class with ``from_description``, imported when such a field is loaded.
KINDS = {
    "field": "neuralreg.fields:Field",
    "composed": "neuralreg.fields:Composed",
    "stretched": "neuralreg.fields:Stretched",
    "correspondence": "neuralreg.correspondence:CorrespondenceField",
    "two-way": "neuralreg.two_way:TwoWayField",
    "dense": "neuralreg.dense_field:DenseField",
}


class Field(nn.Module):
    """A field of any :class:`~neuralreg.kernels.FieldSpec`: parameters and their first values.

    ``table`` or ``matrix`` (a fixed buffer) holds the encoding, ``weights`` the layers. The last layer starts at zero
    when ``start_at_zero``, so that the first displacement is none. ``recompute`` is as in
    :func:`neuralreg.kernels.field`.
    """

    recompute: bool | None = None

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
            for last in self.output_layer:
                nn.init.zeros_(last)

    @property
    def encoding(self) -> list[Tensor]:
        """The encoding's tensor, as ``field`` takes it."""
        return [t for t in (self.table, self.matrix) if t is not None]

    @property
    def output_layer(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the linear output layer."""
        at = 2 * len(self.spec.hidden)
        return self.weights[at], self.weights[at + 1]

    def forward(self, x: Tensor, *, latent: Tensor | None = None, volume: Tensor | None = None) -> Tensor:
        params = [*self.encoding, *self.weights]
        return kernels.field(x, params, self.spec, latent=latent, volume=volume, recompute=self.recompute)

    def jet(
        self, x: Tensor, *, latent: Tensor | None = None, volume: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """y (N, out) and J (N, out, ndim), ``J[n, i, k] = dy_i / dx_k``; see :func:`neuralreg.kernels.field_jet`."""
        params = [*self.encoding, *self.weights]
        return kernels.field_jet(x, params, self.spec, latent=latent, volume=volume, recompute=self.recompute)

    def describe(self) -> dict[str, Any]:
        """Spec and tensors in plain types, for :func:`load_field`."""
        encoding = self.spec.encoding
        return {
            "format": FORMAT,
            "kind": "field",
            "encoding": None if encoding is None else type(encoding).__name__,
            "spec": asdict(self.spec),
            "state": self.state_dict(),
        }

    @staticmethod
    def from_description(description: dict[str, Any]) -> Field:
        """The field that ``describe`` described; of a subclass, the plain field that computes the same."""
        options = dict(description["spec"])
        if options["encoding"] is not None:
            kinds = {"HashGrid": HashGrid, "Fourier": Fourier}
            options["encoding"] = kinds[description["encoding"]](**options["encoding"])
        if options["flow"] is not None:
            options["flow"] = Flow(**options["flow"])
        result = Field(FieldSpec(**options))
        result.load_state_dict(description["state"])
        return result


def load_field(description: dict[str, Any]) -> nn.Module:
    """The field that ``describe`` described.

    Raises:
        ValueError: written by another format version, or of a kind that is not known here.
    """
    if description.get("format") != FORMAT:
        raise ValueError(
            f"field format {description.get('format')!r} is not {FORMAT}, which this version reads"
        )
    if description["kind"] not in KINDS:
        raise ValueError(f"field kind {description['kind']!r} is not one of {', '.join(KINDS)}")
    module, _, name = KINDS[description["kind"]].partition(":")
    result: nn.Module = getattr(importlib.import_module(module), name).from_description(description)
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
        interpolation: str = "linear",
        hidden: tuple[int, ...] = (64, 64),
        activation: str = "relu",
        table_range: float = 1e-2,
    ) -> None:
        grid = HashGrid(levels, features, base, finest, log2_table_size, interpolation)
        super().__init__(
            FieldSpec(ndim, grid, hidden, ndim if out is None else out, activation), table_range=table_range
        )


class Siren(Field):
    """Sine network, on Fourier features where ``frequencies`` is not 0 (NIR's gaussian_sine model).

    Weights start as in Sitzmann et al. 2020: U(-1/n, 1/n) in the first layer, U(-sqrt(6/n)/w, sqrt(6/n)/w) beyond,
    where ``w`` is ``initial_omega``: NIR's released code computes with omega 10 but divides the bound by 30.
    B is drawn from N(0, sigma^2) and stays fixed; with ``octaves`` it is the axis-aligned frequencies 2^0 ..
    2^(octaves - 1) instead.
    """

    def __init__(
        self,
        *,
        ndim: int = 3,
        out: int | None = None,
        frequencies: int = 128,
        sigma: float = 1.0,
        scale: float = math.pi,
        octaves: int = 0,
        hidden: tuple[int, ...] = (256, 256, 256),
        omega: float = 10.0,
        initial_omega: float = 30.0,
        start_at_zero: bool = True,
    ) -> None:
        frequencies = ndim * octaves if octaves else frequencies
        encoding = Fourier(frequencies, scale) if frequencies else None
        spec = FieldSpec(
            ndim, encoding, hidden, ndim if out is None else out, "sine", (float(omega),) * len(hidden)
        )
        super().__init__(spec, start_at_zero=start_at_zero)
        start_matrix(self.matrix, sigma, octaves)
        count = len(hidden) + (0 if start_at_zero else 1)
        start_sines(list(self.weights[: 2 * count : 2]), (initial_omega,) * count)


class GatedSiren(Field):
    """NePhi's decoder: sine layers on Fourier features, each times a layer of a modulator that sees the latents too.

    B is drawn from N(0, sigma^2) and stays fixed; ``latent`` and ``latent_volume`` are the widths of a code that is
    given with every call and of a volume of codes that is read at x. With the defaults and 32 + 32 latent channels it
    has NePhi's 140,419 parameters.
    """

    def __init__(
        self,
        *,
        ndim: int = 3,
        out: int | None = None,
        frequencies: int = 128,
        sigma: float = 1.0,
        scale: float = 2 * math.pi,
        hidden: tuple[int, ...] = (128, 128, 128),
        first_omega: float = 1.0,
        omega: float = 30.0,
        latent: int = 0,
        latent_volume: int = 0,
        start_at_zero: bool = True,
    ) -> None:
        later = (float(omega),) * (len(hidden) - 1)
        spec = FieldSpec(
            ndim,
            Fourier(frequencies, scale),
            hidden,
            ndim if out is None else out,
            "sine",
            (float(first_omega), *later),
            latent=latent,
            latent_volume=latent_volume,
            skip="first",
            gate_omega=(float(omega), *later),
        )
        super().__init__(spec, start_at_zero=start_at_zero)
        start_matrix(self.matrix, sigma, 0)
        count = len(hidden)
        start_sines(list(self.weights[: 2 * count : 2]), spec.omega)
        start_sines(list(self.weights[2 * count + 2 :: 2]), spec.gate_omega)


class VelocityField(Field):
    """The flow of a stationary velocity: ``forward`` gives the displacement of the flow's end.

    Takes over the parameters of ``field`` (a :class:`HashMLP` with its defaults where none is given). ``bounded``
    passes the velocity through tanh, as NIR does: with its time of 0.2 no point moves by more than 0.2 an axis.
    """

    def __init__(
        self,
        field: Field | None = None,
        *,
        time: float = 0.2,
        steps: int = 4,
        scheme: str = "rk4",
        bounded: bool = True,
    ) -> None:
        field = HashMLP() if field is None else field
        nn.Module.__init__(self)
        output = "velocity" if bounded else "displacement"
        self.spec = replace(field.spec, output=output, flow=Flow(time, steps, scheme))
        self.table, self.weights, self.recompute = field.table, field.weights, field.recompute
        if field.matrix is None:
            self.matrix = None
        else:
            self.register_buffer("matrix", field.matrix)


class SquaredField(VelocityField):
    """A :class:`VelocityField` that is integrated on lattices by scaling and squaring.

    ``squared`` asks the velocity once a lattice point and squares the lattice's map (Arsigny et al. 2006), which costs
    a fraction of asking again at every step; at scattered points ``forward`` and ``jet`` integrate as a VelocityField.
    """

    def velocity(self, x: Tensor) -> Tensor:
        """(N, ndim) velocity at x."""
        spec = replace(self.spec, flow=None)
        return kernels.field(x, [*self.encoding, *self.weights], spec, recompute=self.recompute)

    def squared(self, velocity: Tensor, squarings: int) -> Tensor:
        """The displacement (1, ndim, *lattice) of the flow's end from velocities there, both in lattice steps."""
        assert self.spec.flow is not None
        return kernels.integrate(velocity * self.spec.flow.time, squarings)


class Stretched(nn.Module):
    """A map whose end is stretched about the centre of the coordinates: x + u'(x) = factor (x + u(x)).

    NIR's released code reads images with align_corners=False at coordinates that have 1 at the outer voxel centres,
    which is a factor of N / (N - 1) on an axis of N voxels; this makes the map say where it really reads.
    """

    factor: Tensor

    def __init__(self, inner: nn.Module, factor: Sequence[float]) -> None:
        super().__init__()
        self.inner: Any = inner
        self.register_buffer("factor", torch.tensor(factor, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (x + self.inner(x)) - x

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u' (N, ndim) and its Jacobian (N, ndim, ndim)."""
        u, jacobian = self.inner.jet(x)
        eye = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return self.factor * (x + u) - x, self.factor[:, None] * (eye + jacobian) - eye

    def describe(self) -> dict[str, Any]:
        """The inner field and the factor in plain types, for :func:`load_field`."""
        return {
            "format": FORMAT,
            "kind": "stretched",
            "inner": self.inner.describe(),
            "factor": self.factor.tolist(),
        }

    @staticmethod
    def from_description(description: dict[str, Any]) -> Stretched:
        """The map that ``describe`` described."""
        return Stretched(load_field(description["inner"]), description["factor"])


class Composed(nn.Module):
    """Two maps one behind the other, the inner frozen (NIR's hybrid): u(x) = u1(x) + u2(x + u1(x)).

    Without arguments: two small fields. Gradients reach the outer field and x; the inner field's parameters have none.
    """

    def __init__(self, inner: nn.Module | None = None, outer: nn.Module | None = None) -> None:
        super().__init__()
        self.inner: Any = HashMLP() if inner is None else inner
        self.outer: Any = HashMLP() if outer is None else outer
        self.inner.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        first = self.inner(x)
        return first + self.outer(x + first)

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, ndim) and J (N, ndim, ndim): J = J1 + J2 + J2 J1."""
        first, first_jacobian = self.inner.jet(x)
        second, second_jacobian = self.outer.jet(x + first)
        return first + second, first_jacobian + second_jacobian + second_jacobian @ first_jacobian

    def describe(self) -> dict[str, Any]:
        """Both fields in plain types, for :func:`load_field`."""
        return {
            "format": FORMAT,
            "kind": "composed",
            "inner": self.inner.describe(),
            "outer": self.outer.describe(),
        }

    @staticmethod
    def from_description(description: dict[str, Any]) -> Composed:
        """The maps that ``describe`` described."""
        return Composed(load_field(description["inner"]), load_field(description["outer"]))


def start_matrix(matrix: Tensor | None, sigma: float, octave_count: int) -> None:
    """Fills a Fourier matrix: axis-aligned octaves where there are any, else N(0, sigma^2)."""
    if matrix is None:
        return
    if octave_count:
        matrix.copy_(torch.tensor(octaves(len(matrix), octave_count)))
    else:
        nn.init.normal_(matrix, std=sigma)


def start_sines(weights: list[Tensor], omegas: tuple[float, ...]) -> None:
    """Sitzmann et al. 2020, from the first layer on."""
    for index, (weight, omega) in enumerate(zip(weights, omegas, strict=True)):
        fan_in = weight.shape[1]
        bound = 1 / fan_in if index == 0 else math.sqrt(6 / fan_in) / omega
        nn.init.uniform_(weight, -bound, bound)
