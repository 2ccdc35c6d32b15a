"""tiny-cuda-nn's modules over our ops: formulas, training, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from neuralreg.compat import tinycudann as tcnn
from neuralreg.kernels import HashGrid, hash_encode

GRID = {
    "otype": "HashGrid",
    "n_levels": 3,
    "n_features_per_level": 2,
    "log2_hashmap_size": 6,
    "base_resolution": 3,
    "per_level_scale": 1.5,
}
MLP = {"otype": "FullyFusedMLP", "activation": "ReLU", "n_neurons": 16, "n_hidden_layers": 2}


def test_grid_reads_zero_to_one() -> None:
    encoding = tcnn.Encoding(3, GRID)
    x = torch.rand(20, 3)
    spec = HashGrid(3, 2, 3, 6, 6)
    expected = hash_encode(2 * x - 1, encoding.params.detach().view(-1, 2), spec)
    assert torch.equal(encoding(x), expected)
    assert encoding.n_output_dims == 6
    smooth = tcnn.Encoding(3, GRID | {"interpolation": "Smoothstep"})
    assert not torch.allclose(smooth(x), expected)


@pytest.mark.parametrize("config", [{"otype": "DenseGrid"}, {"otype": "Grid", "type": "Dense"}])
def test_dense_grid_has_an_entry_a_vertex(config: dict[str, Any]) -> None:
    encoding = tcnn.Encoding(2, {k: v for k, v in GRID.items() if k != "log2_hashmap_size"} | config)
    assert encoding.params.numel() == 2 * (3**2 + 4**2 + 6**2)


def test_frequency_pairs_sine_and_cosine() -> None:
    encoding = tcnn.Encoding(2, {"otype": "Frequency", "n_frequencies": 3})
    x = torch.rand(5, 2)
    columns = []
    for axis in range(2):
        for octave in range(3):
            phase = math.pi * 2**octave * x[:, axis]
            columns += [phase.sin(), phase.cos()]
    assert encoding.params.numel() == 0
    assert (encoding(x) - torch.stack(columns, 1)).abs().max() < 1e-5  # of phases to 12


def test_identity_scales_and_moves() -> None:
    encoding = tcnn.Encoding(5, {"otype": "Identity", "scale": 2.0, "offset": 0.5})
    x = torch.rand(4, 5)
    assert torch.equal(encoding(x), 2 * x + 0.5)


@pytest.mark.parametrize("activation", ["ReLU", "Sine", "Tanh"])
@pytest.mark.parametrize("output", ["None", "Sigmoid"])
def test_network_has_no_biases(activation: str, output: str) -> None:
    net = tcnn.Network(7, 4, MLP | {"activation": activation, "output_activation": output})
    x = torch.randn(9, 7)
    w0, w1, w2 = net.params.detach().split([7 * 16, 16 * 16, 16 * 4])
    act = {"ReLU": torch.relu, "Sine": torch.sin, "Tanh": torch.tanh}[activation]
    expected = act(act(x @ w0.view(16, 7).T) @ w1.view(16, 16).T) @ w2.view(4, 16).T
    expected = expected.sigmoid() if output == "Sigmoid" else expected
    assert (net(x) - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    "encoding",
    [GRID, {"otype": "Frequency", "n_frequencies": 4}, {"otype": "Identity"}],
    ids=lambda e: e["otype"],
)
def test_both_together_train(encoding: dict[str, Any]) -> None:
    net = tcnn.NetworkWithInputEncoding(2, 1, encoding, MLP, seed=3)
    optimiser = torch.optim.Adam([net.params], lr=1e-2)
    x = torch.rand(400, 2)
    target = torch.sin(5 * x[:, :1]) * x[:, 1:]
    losses = []
    for _ in range(120):
        optimiser.zero_grad()
        loss = (net(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    # without biases plain coordinates are the hardest: ReLU through the origin alone
    assert losses[-1] < (0.5 if encoding["otype"] == "Identity" else 0.1) * losses[0]


def test_seeds_types_and_states() -> None:
    one, same, other = (tcnn.NetworkWithInputEncoding(3, 3, GRID, MLP, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.params, same.params)
    assert not torch.equal(one.params, other.params)
    other.load_state_dict(one.state_dict())
    x = torch.rand(6, 3)
    assert torch.equal(one(x), other(x))
    half = tcnn.NetworkWithInputEncoding(3, 3, GRID, MLP, seed=1, dtype=torch.bfloat16)
    assert half.params.dtype == torch.float32
    assert torch.equal(half(x), one(x).bfloat16())


@pytest.mark.parametrize(
    ("encoding", "network", "message"),
    [
        ({"otype": "SphericalHarmonics"}, MLP, "SphericalHarmonics"),
        (GRID | {"interpolation": "Nearest"}, MLP, "Nearest"),
        (GRID | {"otype": "Grid", "type": "Tiled"}, MLP, "Tiled"),
        (GRID | {"stochastic_interpolation": True}, MLP, "stochastic_interpolation"),
        (GRID, MLP | {"activation": "Squareplus"}, "Squareplus"),
        (GRID, MLP | {"output_activation": "Squareplus"}, "Squareplus"),
        (GRID, MLP | {"otype": "Transformer"}, "Transformer"),
        (GRID, MLP | {"n_neurons": 512}, "256"),
    ],
)
def test_what_is_not_covered_is_refused(
    encoding: dict[str, Any], network: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        tcnn.NetworkWithInputEncoding(3, 3, encoding, network)
    with pytest.raises(ValueError, match="dtype"):
        tcnn.Network(3, 3, MLP, dtype=torch.float16)
