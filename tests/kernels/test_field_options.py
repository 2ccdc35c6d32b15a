"""Latents, skips, gates, outputs, flows and jets of field: the reference against numpy, the backends against it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import FieldSpec, Flow, Fourier, HashGrid, field, field_jet, hash_encode, octaves
from neuralreg.kernels.spec import flatten, unflatten

from .common import On, assert_near, assert_relative, leaf, serving

FIELD, JET = serving("field"), serving("field_jet")
REFERENCE = On("reference", "cpu")
GRID = HashGrid(levels=3, features=2, base=3, finest=9, log2_table_size=6, interpolation="smoothstep")
SPECS = {
    "smoothstep silu latents": FieldSpec(
        encoding=GRID, hidden=(8, 8, 8), activation="silu", latent=4, latent_volume=3, skip="first"
    ),
    "linear relu": FieldSpec(encoding=HashGrid(4, 2, 3, 9, 5), hidden=(16, 16)),
    "odd features 2-D": FieldSpec(2, HashGrid(2, 3, 3, 9, 4), (8, 9), 2, "tanh", latent=2, output="velocity"),
    "softplus position": FieldSpec(hidden=(8, 8), activation="softplus", output="position", skip="previous"),
    "raw fourier": FieldSpec(
        encoding=Fourier(5, 2.0, raw=True), hidden=(8, 7), activation="sine", omega=(1.0, 2.0), out=4
    ),
    "gated": FieldSpec(
        encoding=Fourier(5, 2.0),
        hidden=(8, 8, 8),
        activation="sine",
        omega=(1.0, 2.0, 3.0),
        latent=3,
        latent_volume=8,
        skip="first",
        gate_omega=(2.0, 1.0, 1.5),
    ),
    "gated flow": FieldSpec(
        encoding=Fourier(5, 1.0, raw=True),
        hidden=(8, 8),
        activation="sine",
        omega=(1.0, 2.0),
        latent_volume=2,
        skip="previous",
        gate_omega=(2.0, 1.0),
        output="velocity",
        flow=Flow(0.4, 3),
    ),
    "flow 2-D": FieldSpec(2, HashGrid(2, 2, 3, 9, 4), (8,), 2, "tanh", latent=2, flow=Flow(0.3, 2, "euler")),
    "wide": FieldSpec(encoding=Fourier(5, 2.0), hidden=(150, 150), activation="sine", omega=(1.0, 1.0)),
}


def inputs(
    spec: FieldSpec, count: int, per_point: bool = False
) -> tuple[Tensor, list[Tensor], dict[str, Tensor]]:
    """Points, some outside [-1, 1], parameters that keep every layer near 1, and the latents; float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    params = [normal(*s) * (0.5 if len(s) < 2 else s[1] ** -0.5) for s in spec.parameter_shapes()]
    latents = {}
    if spec.latent:
        latents["latent"] = normal(count, spec.latent) if per_point else normal(spec.latent)
    if spec.latent_volume:
        latents["volume"] = normal(spec.latent_volume, *(3, 1, 4)[: spec.ndim])
    return 2.2 * torch.rand(count, spec.ndim, dtype=torch.float64) - 1.1, params, latents


def results(
    on: On, jet: bool, spec: FieldSpec, x: Tensor, params: list[Tensor], latents: dict[str, Tensor]
) -> list[Tensor]:
    """Values (and Jacobian), and the gradients of a weighted sum of them to everything."""
    point, inner = leaf(x), [leaf(p) for p in params]
    given = {name: leaf(t) for name, t in latents.items()}
    found = on(field_jet if jet else field, point, inner, spec, **given)
    values = found if jet else (found,)
    loss = sum((v * torch.linspace(-1, 2, v.numel(), dtype=v.dtype).view_as(v)).sum() for v in values)
    wanted = [point, *inner, *given.values()]
    grads = torch.autograd.grad(loss, wanted, allow_unused=True)
    filled = [torch.zeros_like(t) if g is None else g for t, g in zip(wanted, grads, strict=True)]
    return [*[v.detach() for v in values], *filled]


@pytest.mark.parametrize("name", SPECS)
def test_flatten_and_back(name: str) -> None:
    assert unflatten(*flatten(SPECS[name])) == SPECS[name]


def test_octaves() -> None:
    assert octaves(2, 3) == [[1, 2, 4, 0, 0, 0], [0, 0, 0, 1, 2, 4]]


def test_gated_field_by_hand() -> None:
    spec = SPECS["gated"]
    x, params, latents = inputs(spec, 6)
    x = x.clamp(-1, 1)
    b, *layers = [p.numpy() for p in params]
    phase = 2.0 * x.numpy() @ b
    encoded = np.concatenate([np.sin(phase), np.cos(phase)], 1)
    volume = latents["volume"]
    # torch reads volumes in x, y, z order
    at = torch.nn.functional.grid_sample(volume[None], x.flip(1)[None, None, None], align_corners=True)
    code = np.concatenate([np.tile(latents["latent"].numpy(), (6, 1)), at[0, :, 0, 0].T.numpy()], 1)
    main, gates = layers[:8], layers[8:]
    v, g, first = encoded, np.concatenate([encoded, code], 1), 0.0
    for layer in range(3):
        g = np.sin(spec.gate_omega[layer] * (g @ gates[2 * layer].T + gates[2 * layer + 1])) + first
        first = g if layer == 0 else first
        v = g * np.sin(spec.omega[layer] * (v @ main[2 * layer].T + main[2 * layer + 1]))
    expected = torch.from_numpy(v @ main[6].T + main[7])
    assert_near(field(x, params, spec, **latents, backend="reference"), expected, 1e-12)


def test_skips_activations_and_outputs_by_hand() -> None:
    spec = SPECS["smoothstep silu latents"]
    x, params, latents = inputs(spec, 5, per_point=True)
    at = hash_encode(x, params[0], GRID, backend="reference")
    x0 = x.clamp(-1, 1)
    volume = torch.nn.functional.grid_sample(
        latents["volume"][None], x0.flip(1)[None, None, None], align_corners=True
    )[0, :, 0, 0].T
    v, first = torch.cat([at, latents["latent"], volume], 1), 0.0
    for weight, bias in zip(params[1:-2:2], params[2:-2:2], strict=True):
        z = v @ weight.T + bias
        v = z / (1 + torch.exp(-z)) + first
        first = v if isinstance(first, float) else first
    expected = v @ params[-2].T + params[-1]
    assert_near(field(x, params, spec, **latents, backend="reference"), expected, 1e-12)
    spec = SPECS["softplus position"]
    x, (w0, b0, w1, b1, w2, b2), _ = inputs(spec, 5)
    one = torch.log1p(torch.exp(x @ w0.T + b0))
    two = torch.log1p(torch.exp(one @ w1.T + b1)) + one
    assert_near(field(x, [w0, b0, w1, b1, w2, b2], spec, backend="reference"), two @ w2.T + b2 - x, 1e-12)


def test_flow_of_a_linear_velocity() -> None:
    # v = A x: the flow's end is exp(A t) x, and a step of Runge-Kutta is its Taylor sum to degree 4
    spec = FieldSpec(hidden=(3,), activation="softplus", flow=Flow(0.5, 2))
    a = 0.3 * torch.randn(3, 3, dtype=torch.float64)
    x = torch.rand(4, 3, dtype=torch.float64)
    # softplus(z) = z beyond 40 to double precision: shift there and back
    params = [torch.eye(3).double(), torch.full((3,), 60.0).double(), a, -60.0 * a.sum(1)]
    step = sum(torch.matrix_power(0.25 * a, k) / math.factorial(k) for k in range(5))
    for on in (REFERENCE, *[p.values[0] for p in FIELD]):
        u, jacobian = on(field_jet, x, params, spec)
        assert_near(u, x @ (step @ step).T - x, 1e-12)
        assert_near(jacobian, (step @ step - torch.eye(3)).expand(4, 3, 3), 1e-12)


@pytest.mark.parametrize("name", SPECS)
def test_reference_jet_is_forward_mode_of_the_value(name: str) -> None:
    spec = SPECS[name]
    x, params, latents = inputs(spec, 4)
    y, jacobian = field_jet(x, params, spec, **latents, backend="reference")

    def one(point: Tensor) -> Tensor:
        return field(point[None], params, spec, **latents, backend="reference")[0]

    expected = torch.stack([torch.func.jacfwd(one)(point) for point in x])
    assert_near(jacobian, expected, 1e-12)
    assert_near(y, torch.stack([one(point) for point in x]), 1e-12)


@pytest.mark.parametrize("on", serving("field_jet", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("jet", [False, True], ids=["value", "jet"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize(("count", "per_point"), [(1, False), (7, True), (130, False), (130, True)])
def test_against_the_reference(on: On, jet: bool, name: str, count: int, per_point: bool) -> None:
    # the reference's jet is differentiated twice by torch, so this holds the jet's backward against double backward
    spec = SPECS[name]
    case = inputs(spec, count, per_point)
    for actual, expected in zip(
        results(on, jet, spec, *case), results(REFERENCE, jet, spec, *case), strict=True
    ):
        assert_near(actual, expected, 1e-11)


@pytest.mark.parametrize("on", serving("field_jet", "cpu", "cuda", "triton"))
@pytest.mark.parametrize("name", SPECS)
def test_float32(on: On, name: str) -> None:
    spec = SPECS[name]
    x, params, latents = inputs(spec, 300)
    # kinks and cell borders are where float32 and float64 may take different sides: keep the points off them
    steps = (
        np.lcm.reduce([r - 1 for r in spec.encoding.resolutions])
        if isinstance(spec.encoding, HashGrid)
        else 1
    )
    place = (x + 1) / 2 * float(steps)
    x = x[((place - place.round()).abs() > 1e-3).all(1)]
    expected = results(REFERENCE, True, spec, x, params, latents)
    single = {k: v.float() for k, v in latents.items()}
    actual = results(on, True, spec, x.float(), [p.float() for p in params], single)
    for one, other in zip(actual, expected, strict=True):
        assert_relative(one, other, 2e-4 if spec.activation == "relu" else 2e-5)


@pytest.mark.parametrize("on", serving("field_jet", "cpu"))
@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.activation != "relu"])
def test_gradcheck(on: On, name: str) -> None:
    spec = SPECS[name]
    x, params, latents = inputs(spec, 3)
    names = list(latents)

    def call(point: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(names, rest[len(params) :], strict=True))
        return on(field_jet, point, list(rest[: len(params)]), spec, **given)

    tensors = [leaf(0.9 * x / 1.1), *map(leaf, params), *map(leaf, latents.values())]
    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)


def losses_of_a_fit(on: On) -> list[float]:
    """60 steps of Adam on a known warp and the size of its Jacobian."""
    spec = FieldSpec(2, HashGrid(3, 2, 3, 9, 6), (16,), 2, "tanh")
    random = torch.Generator().manual_seed(0)
    params = [
        leaf(0.3 * torch.randn(shape, generator=random, dtype=torch.float64))
        for shape in spec.parameter_shapes()
    ]
    x = 2 * torch.rand(256, 2, generator=random, dtype=torch.float64) - 1
    target = 0.1 * torch.stack([torch.sin(2 * x[:, 0]), x[:, 0] * x[:, 1]], 1)
    optimiser = torch.optim.Adam(params, lr=0.02)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        u, jacobian = on(field_jet, x, params, spec)
        loss = (u - target).square().mean() + 1e-3 * jacobian.square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("on", serving("field_jet", "cpu", "cuda", "triton"))
def test_a_small_fit_converges_alike(on: On) -> None:
    losses, expected = losses_of_a_fit(on), losses_of_a_fit(REFERENCE)
    assert expected[-1] < 0.05 * expected[0]
    # in float64 the backends differ by rounding, which 60 steps do not make much of
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-9 * expected[0]


@pytest.mark.parametrize("on", JET)
def test_bad_points_stay_alone(on: On) -> None:
    spec = SPECS["gated"]
    x, params, latents = inputs(spec, 20)
    good = on(field_jet, x, params, spec, **latents)
    x[3, 1] = float("nan")
    keep = torch.arange(20) != 3
    for one, other in zip(on(field_jet, x, params, spec, **latents), good, strict=True):
        assert one[3].isnan().any()
        assert torch.equal(one[keep], other[keep])


@pytest.mark.parametrize("on", JET)
def test_no_points(on: On) -> None:
    spec = SPECS["gated"]
    x, params, latents = inputs(spec, 0)
    y, jacobian = on(field_jet, x, params, spec, **latents)
    assert y.shape == (0, 3)
    assert jacobian.shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent": None}, "latent"),
        ({"latent": torch.zeros(4)}, r"latent must be \(3,\) or \(5, 3\)"),
        ({"volume": torch.zeros(8, 2, 2)}, "volume must be"),
        ({"volume": torch.zeros(8, 2, 0, 2)}, "volume must be"),
        ({"latent": torch.zeros(3).double()}, "dtype"),
    ],
)
def test_wrong_latents(change: dict[str, Tensor | None], message: str) -> None:
    spec = SPECS["gated"]
    x, params, latents = inputs(spec, 5)
    single = {name: t.float() for name, t in latents.items()} | change
    with pytest.raises(ValueError, match=message):
        field(x.float(), [p.float() for p in params], spec, **single)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": "last"}, "skip"),
        ({"hidden": (8, 9), "skip": "first"}, "one width"),
        ({"gate_omega": (1.0, 1.0)}, "gates need"),
        ({"out": 2, "output": "position"}, "out == ndim"),
        ({"output": "position", "flow": Flow()}, "position"),
        ({"latent": -1}, "latent"),
    ],
)
def test_wrong_specs(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FieldSpec(**options)
    with pytest.raises(ValueError, match="steps"):
        Flow(steps=0)
    with pytest.raises(ValueError, match="interpolation"):
        HashGrid(interpolation="cubic")
