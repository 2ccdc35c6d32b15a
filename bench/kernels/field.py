"""field and field_jet, forward and backward to all parameters, against the same network in torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, gradient_step
from neuralreg.fields import Field, GatedSiren, HashMLP, Siren


def cases(setup: Setup) -> Iterator[Case]:
    """A value step and a Jacobian step of the networks of the four methods."""
    torch.manual_seed(0)
    hashed = HashMLP(table_range=1.0)
    dense = HashMLP(levels=6, features=4, base=6, finest=36, table_range=1.0)
    sine = Siren(frequencies=0, hidden=(256,) * 5, omega=30.0)
    short = Siren(frequencies=0, hidden=(256,) * 3, omega=30.0)
    gated = GatedSiren()
    few = 2_000 if setup.quick else 50_000
    yield case("hash 16x2, 64-64", hashed, lattice(setup), setup, jet=False)
    yield case("hash 16x2, 64-64", hashed, scattered(few), setup, jet=True)
    yield case("grid 6x4, 64-64", dense, lattice(setup), setup, jet=False)
    yield case("grid 6x4, 64-64", dense, scattered(few), setup, jet=True)
    yield case("sine 5x256", sine, scattered(few), setup, jet=False)
    yield case("sine 5x256", sine, scattered(few), setup, jet=True)
    yield case("gated sine 3x128", gated, scattered(few // 5), setup, jet=False)
    yield case("gated sine 3x128", gated, scattered(few // 5), setup, jet=True)
    if not setup.quick:
        for count in (20_000, 80_000):
            yield case("sine 3x256", short, scattered(count), setup, jet=True)
        yield case("sine 3x256", short, scattered(1_000_000), setup, jet=True, peers=False)


def lattice(setup: Setup) -> Tensor:
    """Points in the order of a lattice: NIR's, stride 3."""
    axes = [torch.linspace(-1, 1, n) for n in setup.lattice(3)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).view(-1, 3)


def scattered(count: int) -> Tensor:
    """Points anywhere."""
    return torch.rand(count, 3) * 2 - 1


def case(
    name: str,
    net: Field,
    x: Tensor,
    setup: Setup,
    jet: bool,
    peers: bool = True,
) -> Case:
    torch.nn.init.normal_(net.output_layer[0], std=0.1)
    x = x.to(setup.device, setup.dtype)
    spec = net.spec
    tensors = tuple(t.detach().to(setup.device, setup.dtype) for t in (*net.encoding, *net.weights))
    wanted = tuple(range(0 if net.matrix is None else 1, len(tensors)))  # a Fourier matrix is fixed

    def step(backend: str | None) -> Callable[..., Tensor]:
        def value(*parameters: Tensor) -> Tensor:
            points = x.to(parameters[0].dtype)
            if jet:
                u, jacobian = kernels.field_jet(points, list(parameters), spec, backend=backend)
                return u.square().mean() + penalty(jacobian)
            return kernels.field(points, list(parameters), spec, backend=backend).square().mean()

        return value

    def double_backward(*parameters: Tensor) -> Tensor:
        points = x.detach().requires_grad_()
        u = kernels.field(points, list(parameters), spec, backend="reference")
        rows = [torch.autograd.grad(u[:, i].sum(), points, create_graph=True)[0] for i in range(spec.out)]
        return u.square().mean() + penalty(torch.stack(rows, 1))

    truth_backend = "reference" if peers else None

    def truth() -> tuple[Tensor, ...]:
        return gradient_step(step(truth_backend), tuple(t.double() for t in tensors), wanted)()

    contenders = {"neuralreg": gradient_step(step(None), tensors, wanted)}
    if peers and jet:
        contenders["torch, double backward"] = gradient_step(double_backward, tensors, wanted)
        contenders["torch.func.jvp"] = gradient_step(step("reference"), tensors, wanted)
    elif peers:
        contenders["torch"] = gradient_step(step("reference"), tensors, wanted)
        if not setup.quick:
            graph = torch.compile(step("reference"), dynamic=False)
            contenders["torch.compile"] = gradient_step(graph, tensors, wanted)
    work = f"{name}, {len(x)} points, {'value and Jacobian' if jet else 'value'}"
    products = sum(w.numel() for w in net.weights if w.ndim == 2)
    return Case(
        "field",
        work,
        contenders,
        truth,
        # A ReLU that float32 rounds over its kink changes one point's gradient, and with it the few entries of a table
        # that this point alone reaches, by a unit's share of it; sines have no kink.
        0.1 if spec.activation == "relu" else 1e-3,
        4.0 * (len(x) * (3 + 3 + (9 if jet else 0)) * 2 + 2 * sum(t.numel() for t in tensors)),
        # a product and its two gradients, for one row a point, or for 1 + ndim
        flops=2.0 * products * len(x) * 3 * (4 if jet else 1),
    )


def penalty(jacobian: Tensor) -> Tensor:
    """(det(I + J) - 1)^2, from cofactors: torch's determinant goes through a factorisation."""
    a = jacobian + torch.eye(3, dtype=jacobian.dtype, device=jacobian.device)
    det = (torch.linalg.cross(a[:, 0], a[:, 1]) * a[:, 2]).sum(1)
    return (det - 1).square().mean()
