"""tiny-cuda-nn's PyTorch modules by their names and JSON configurations, over this library's ops, on any device.

    import neuralreg.compat.tinycudann as tcnn
    net = tcnn.NetworkWithInputEncoding(3, 3, config["encoding"], config["network"])

Parameters are float32, one flat tensor ``params`` as there. Outputs are float32, or ``dtype``; with bfloat16 a GPU
computes in it, a CPU computes in float32 and rounds the result. Grids read [0, 1] as there, with our levels (vertices
at both ends, no half-cell shift), so that fields train alike but stored weights do not carry over.

| not covered | instead |
|---|---|
| encodings other than Grid (Hash, Dense), HashGrid, DenseGrid, Frequency, Identity; grids of 1 or 4 dimensions | |
| interpolation Nearest | Linear, Smoothstep |
| activations other than ReLU, Sine, Tanh | output_activation also takes None, Sigmoid, Exponential |
| more than 8 hidden layers, wider than 256 | |
| half precision | float32, bfloat16 |
| the second derivative through the network, which is not there either | ``neuralreg.kernels.field_jet`` |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid, octaves

_GRID = {
    "type": "Hash",
    "n_levels": 16,
    "n_features_per_level": 2,
    "log2_hashmap_size": 19,
    "base_resolution": 16,
    "per_level_scale": 2.0,
    "interpolation": "Linear",
}
_NETWORK = {"activation": "ReLU", "output_activation": "None", "n_neurons": 128, "n_hidden_layers": 5}
_NETWORKS = ("FullyFusedMLP", "CutlassMLP", "MegakernelMLP")
_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "None": lambda z: z,
    "ReLU": torch.relu,
    "Sine": torch.sin,
    "Sigmoid": torch.sigmoid,
    "Exponential": torch.exp,
    "Tanh": torch.tanh,
}


class _Module(nn.Module):
    """Shapes, the flat parameter, and the range and type of what goes in and comes out."""

    matrix: Tensor
    zeros: Tensor

    def __init__(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype | None) -> None:
        super().__init__()
        if dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"dtype must be torch.float32 or torch.bfloat16, got {dtype}")
        self.dtype = dtype or torch.float32
        self._shapes = shapes
        self.params = nn.Parameter(torch.zeros(sum(math.prod(shape) for shape in shapes)))

    def _parts(self) -> list[Tensor]:
        split = self.params.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(split, self._shapes, strict=True)]

    def _computing(self, x: Tensor) -> torch.dtype:
        return self.dtype if x.is_cuda else torch.float32

    def _start(self, seed: int, table: bool) -> None:
        """Tables U(-1e-4, 1e-4), weights as Glorot and Bengio 2010."""
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for index, part in enumerate(self._parts()):
                bound = 1e-4 if table and index == 0 else math.sqrt(6 / sum(part.shape))
                part.copy_((2 * torch.rand(part.shape, generator=random) - 1) * bound)


class Encoding(_Module):
    """``tcnn.Encoding``: (N, n_input_dims) in [0, 1] to (N, n_output_dims)."""

    def __init__(
        self,
        n_input_dims: int,
        encoding_config: dict[str, Any],
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        spec, scale = _encoding(n_input_dims, encoding_config)
        field = FieldSpec(n_input_dims, spec, (1,), 1)
        super().__init__(field.parameter_shapes()[:1] if isinstance(spec, HashGrid) else [], dtype)
        self.n_input_dims, self.n_output_dims = n_input_dims, field.encoded
        self._spec, self._scale = spec, scale
        if isinstance(spec, Fourier):
            self.register_buffer("matrix", _octaves(n_input_dims, spec), persistent=False)
        self._start(seed, table=True)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self._computing(x)
        x = x.to(dtype)
        if isinstance(self._spec, HashGrid):
            return kernels.hash_encode(2 * x - 1, self._parts()[0].to(dtype), self._spec).to(self.dtype)
        if isinstance(self._spec, Fourier):
            both = kernels.fourier_encode(x, self.matrix.to(dtype), self._spec.scale)
            # there sine and cosine of one frequency are neighbours
            return both.unflatten(1, (2, -1)).transpose(1, 2).flatten(1).to(self.dtype)
        scale, offset = self._scale
        return (scale * x + offset).to(self.dtype)


class NetworkWithInputEncoding(_Module):
    """``tcnn.NetworkWithInputEncoding``: encoding and network in one op; (N, n_input_dims) to (N, n_output_dims)."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        encoding_config: dict[str, Any],
        network_config: dict[str, Any],
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        encoding, scale = _encoding(n_input_dims, encoding_config)
        hidden, activation, output = _network(network_config)
        sine = (1.0,) * len(hidden) if activation == "sine" else ()
        spec = FieldSpec(n_input_dims, encoding, hidden, n_output_dims, activation, sine)
        # the networks there have no biases
        shapes = [s for s in spec.parameter_shapes() if len(s) == 2]
        if isinstance(encoding, Fourier):
            shapes = shapes[1:]
        super().__init__(shapes, dtype)
        self.n_input_dims, self.n_output_dims = n_input_dims, n_output_dims
        self._spec, self._scale, self._output = spec, scale, output
        if isinstance(encoding, Fourier):
            self.register_buffer("matrix", _octaves(n_input_dims, encoding), persistent=False)
        self.register_buffer("zeros", torch.zeros(max(*hidden, n_output_dims)), persistent=False)
        self._start(seed, table=isinstance(encoding, HashGrid))

    def forward(self, x: Tensor) -> Tensor:
        dtype = self._computing(x)
        x = x.to(dtype)
        tensors = [part.to(dtype) for part in self._parts()]
        encoding = self._spec.encoding
        if isinstance(encoding, HashGrid):
            x = 2 * x - 1
        elif encoding is None:
            x = self._scale[0] * x + self._scale[1]
        else:
            tensors.insert(0, self.matrix.to(dtype))
        first = 0 if encoding is None else 1
        zeros = self.zeros.to(dtype)
        layers = [t for weight in tensors[first:] for t in (weight, zeros[: len(weight)])]
        return self._output(kernels.field(x, [*tensors[:first], *layers], self._spec)).to(self.dtype)


class Network(NetworkWithInputEncoding):
    """``tcnn.Network``: layers on what comes in, (N, n_input_dims) to (N, n_output_dims)."""

    def __init__(
        self,
        n_input_dims: int,
        n_output_dims: int,
        network_config: dict[str, Any],
        seed: int = 1337,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(n_input_dims, n_output_dims, {"otype": "Identity"}, network_config, seed, dtype)


def _options(config: dict[str, Any], known: dict[str, Any], what: str) -> dict[str, Any]:
    given = {name: value for name, value in config.items() if name != "otype"}
    unknown = sorted(given.keys() - known.keys())
    if unknown:
        raise ValueError(f"{what}: {', '.join(unknown)} is not covered; there are {', '.join(known)}")
    return known | given


def _encoding(ndim: int, config: dict[str, Any]) -> tuple[HashGrid | Fourier | None, tuple[float, float]]:
    """The encoding, and scale and offset of the coordinates."""
    kind = config.get("otype", "HashGrid")
    plain = (1.0, 0.0)
    if kind == "Identity":
        given = _options(config, {"scale": 1.0, "offset": 0.0}, kind)
        return None, (given["scale"], given["offset"])
    if kind == "Frequency":
        count = _options(config, {"n_frequencies": 12}, kind)["n_frequencies"]
        return Fourier(ndim * count, math.pi), plain
    if kind not in ("Grid", "HashGrid", "DenseGrid"):
        raise ValueError(
            f"encoding {kind!r} is not covered; there are Grid, HashGrid, DenseGrid, Frequency, Identity"
        )
    given = _options(config, _GRID, kind)
    interpolation = str(given["interpolation"]).lower()
    if interpolation not in ("linear", "smoothstep"):
        raise ValueError(
            f"interpolation {given['interpolation']!r} is not covered; there are Linear, Smoothstep"
        )
    storage = {"HashGrid": "Hash", "DenseGrid": "Dense"}.get(kind, given["type"])
    if storage not in ("Hash", "Dense"):
        raise ValueError(f"grid type {storage!r} is not covered; there are Hash, Dense")
    base, levels = given["base_resolution"], given["n_levels"]
    finest = math.floor(base * given["per_level_scale"] ** (levels - 1) + 1e-6)
    size = given["log2_hashmap_size"] if storage == "Hash" else math.ceil(math.log2(finest**ndim))
    return HashGrid(levels, given["n_features_per_level"], base, finest, size, interpolation), plain


def _network(config: dict[str, Any]) -> tuple[tuple[int, ...], str, Callable[[Tensor], Tensor]]:
    """Hidden widths, activation, and the output's activation."""
    kind = config.get("otype", "FullyFusedMLP")
    if kind not in _NETWORKS:
        raise ValueError(f"network {kind!r} is not covered; there are {', '.join(_NETWORKS)}")
    given = _options(config, _NETWORK, kind)
    activation = {"ReLU": "relu", "Sine": "sine", "Tanh": "tanh"}.get(given["activation"])
    if activation is None:
        raise ValueError(f"activation {given['activation']!r} is not covered; there are ReLU, Sine, Tanh")
    if given["output_activation"] not in _OUTPUT:
        raise ValueError(
            f"output_activation {given['output_activation']!r} is not covered; there are {', '.join(_OUTPUT)}"
        )
    return (given["n_neurons"],) * given["n_hidden_layers"], activation, _OUTPUT[given["output_activation"]]


def _octaves(ndim: int, spec: Fourier) -> Tensor:
    return torch.tensor(octaves(ndim, spec.frequencies // ndim))
