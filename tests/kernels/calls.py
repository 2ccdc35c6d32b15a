"""Small calls of every public function: for opcheck, torch.compile and the instruction sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.kernels.spec import FieldSpec, Flow, Fourier, HashGrid

from .common import leaf

GRID = HashGrid(levels=4, features=2, base=3, finest=20, log2_table_size=8)
SPECS = {
    "grid": FieldSpec(encoding=GRID, hidden=(16, 16)),
    "fourier": FieldSpec(encoding=Fourier(frequencies=6), hidden=(8, 8), activation="sine", omega=(3.0, 1.0)),
    "gated": FieldSpec(
        encoding=Fourier(frequencies=6),
        hidden=(8, 8),
        activation="sine",
        omega=(1.0, 2.0),
        latent=3,
        latent_volume=2,
        skip="first",
        gate_omega=(2.0, 1.0),
    ),
    "codes": FieldSpec(hidden=(8,), activation="tanh", latent=3, latent_volume=16),
    "flow": FieldSpec(hidden=(8,), activation="softplus", output="velocity", flow=Flow(0.3, 2)),
    "siren": FieldSpec(ndim=2, hidden=(16,), activation="sine", omega=(8.0,), out=2),
}

# Name of the case -> public function, arguments (tensors are random, some want gradients), options
Call = tuple[Callable[..., Any], list[Any], dict[str, Any]]


def calls(dtype: torch.dtype) -> dict[str, Call]:
    """The calls, freshly drawn from torch's generator."""

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64).to(dtype)

    def randn(*shape: int) -> Tensor:
        return (0.4 * torch.randn(shape, dtype=torch.float64)).to(dtype)

    def image(*shape: int) -> Tensor:
        return leaf(rand(*shape))

    def parameters(spec: FieldSpec) -> list[Tensor]:
        return [leaf(randn(*shape)) for shape in spec.parameter_shapes()]

    mask = rand(2, 1, 7, 6, 9) < 0.8
    labels = (4 * rand(2, 1, 7, 6, 9)).to(torch.int16)
    affine = torch.eye(3, 4, dtype=dtype).expand(2, -1, -1) + 0.1 * randn(2, 3, 4)
    u, flat = leaf(randn(2, 3, 7, 6, 9)), leaf(randn(2, 2, 8, 7))
    f3, w3, f2, w2 = image(2, 2, 7, 6, 9), image(2, 2, 7, 6, 9), image(1, 1, 12, 11), image(1, 1, 12, 11)
    x3, x2 = leaf(2 * rand(50, 3) - 1), leaf(2 * rand(50, 2) - 1)
    table, matrix = leaf(randn(sum(GRID.entries(3)), 2)), leaf(randn(3, 5))
    grid3, grid2 = leaf(2.4 * rand(2, 4, 5, 3, 3) - 1.2), leaf(2.4 * rand(1, 6, 5, 2) - 1.2)
    return {
        "grid_sample": (kernels.grid_sample, [f3, grid3], {}),
        "grid_sample 2-D": (kernels.grid_sample, [f2, grid2, "bilinear", "reflection", True], {}),
        "grid_sample grid only": (kernels.grid_sample, [f2.detach(), grid2], {"align_corners": True}),
        "grid_sample nearest": (kernels.grid_sample, [f3, grid3, "nearest", "border"], {}),
        "warp": (kernels.warp, [f3, u], {}),
        "warp affine": (kernels.warp, [f3, u, leaf(affine)], {"padding_mode": "border"}),
        "warp image only": (kernels.warp, [f3, u.detach(), affine], {}),
        "warp displacement only": (kernels.warp, [f3.detach(), u], {"padding_mode": "reflection"}),
        "warp 2-D": (kernels.warp, [image(2, 1, 5, 9), flat], {}),
        "warp label": (kernels.warp, [labels, u.detach(), affine, "label"], {}),
        "warp nearest label": (kernels.warp, [labels, u.detach(), None, "nearest", "border"], {}),
        "warp_with_gradient": (kernels.warp_with_gradient, [f3, u], {}),
        "warp_with_gradient affine": (kernels.warp_with_gradient, [f3, u, leaf(affine), "reflection"], {}),
        "box_mean": (kernels.box_mean, [f3, (2, 5, 4)], {}),
        "box_mean 2-D": (kernels.box_mean, [f2], {}),
        "lncc": (kernels.lncc, [f3, w3, 5], {}),
        "lncc to one image": (kernels.lncc, [f3.detach(), w3, 3], {}),
        "lncc map": (kernels.lncc, [f3, w3, (2, 3, 4)], {"reduction": "none", "padding": "valid"}),
        "lncc mask": (kernels.lncc, [f3, w3, 3], {"mask": mask, "eps_mode": "each", "squared": False}),
        "lncc recompute": (kernels.lncc, [f3, w3, 4], {"recompute": True, "eps_mode": "clamp"}),
        "lncc saved": (kernels.lncc, [f3, w3, 4], {"recompute": False, "zero_rule": True}),
        "lncc 2-D": (kernels.lncc, [f2, w2, 9], {}),
        "ssim": (kernels.ssim, [f3, w3, 5], {"recompute": False}),
        "ssim to one image": (kernels.ssim, [f3, w3.detach(), 4], {"sigma": (0.8, 1.0, 2.0)}),
        "ssim map": (kernels.ssim, [f3, w3, (2, 3, 4)], {"reduction": "none", "padding": "valid"}),
        "ssim recompute": (kernels.ssim, [f3, w3, 3], {"recompute": True}),
        "ssim 2-D": (kernels.ssim, [f2, w2], {}),
        "jacobian_determinant": (kernels.jacobian_determinant, [u], {}),
        "jacobian_determinant 2-D": (kernels.jacobian_determinant, [flat, (0.5, 2.0), "central"], {}),
        "jacobian_loss": (kernels.jacobian_loss, [u], {"threshold": 0.8, "spacing": (1.0, 2.0, 0.5)}),
        "jacobian_loss unit": (kernels.jacobian_loss, [u, None, "backward", "unit"], {}),
        "jacobian_loss folds": (kernels.jacobian_loss, [u], {"threshold": 0.5, "return_folds": True}),
        "jacobian_penalty": (kernels.jacobian_penalty, [leaf(randn(40, 3, 3)), "relu", 0.9], {}),
        "jacobian_penalty 2-D": (kernels.jacobian_penalty, [leaf(randn(40, 2, 2)), "unit"], {}),
        "log_jacobian": (kernels.log_jacobian, [u], {"floor": 0.2}),
        "diffusion_loss": (kernels.diffusion_loss, [u], {}),
        "bending_loss": (kernels.bending_loss, [u], {"spacing": (1.0, 2.0, 0.5)}),
        "bending_loss 2-D": (kernels.bending_loss, [flat], {}),
        "compose": (kernels.compose, [u, leaf(randn(2, 3, 7, 6, 9))], {}),
        "integrate": (kernels.integrate, [u, 3], {}),
        "integrate euler": (kernels.integrate, [flat, 6, "euler"], {}),
        "integrate rk4": (kernels.integrate, [flat, 2, "rk4"], {}),
        "invert": (kernels.invert, [u, 3], {}),
        "refine": (kernels.refine, [u.detach(), f3.detach(), w3.detach(), 2], {"window": 3}),
        "refine 2-D": (
            kernels.refine,
            [flat.detach(), rand(2, 1, 8, 7), rand(2, 1, 5, 9), 2, 0.1, 5],
            {"amsgrad": False},
        ),
        "fourier_encode": (kernels.fourier_encode, [x3, matrix], {}),
        "hash_encode": (kernels.hash_encode, [x3, table, GRID], {}),
        "hash_encode table only": (kernels.hash_encode, [x3.detach(), table, GRID], {}),
        "field": (kernels.field, [x3, parameters(SPECS["grid"]), SPECS["grid"]], {}),
        "field fourier": (kernels.field, [x3, parameters(SPECS["fourier"]), SPECS["fourier"]], {}),
        "field siren": (kernels.field, [x2, parameters(SPECS["siren"]), SPECS["siren"]], {}),
        "field gated": (
            kernels.field,
            [x3, parameters(SPECS["gated"]), SPECS["gated"]],
            {"latent": leaf(randn(50, 3)), "volume": leaf(randn(2, 3, 4, 2))},
        ),
        "table_adam": (
            one_adam_step,
            [table.detach(), randn(*table.shape).relu(), *randn(2, *table.shape).abs()],
            {},
        ),
        "field_jet": (kernels.field_jet, [x3, parameters(SPECS["grid"]), SPECS["grid"]], {}),
        "field_jet codes": (
            kernels.field_jet,
            [x3, parameters(SPECS["codes"]), SPECS["codes"]],
            {"latent": leaf(randn(3)), "volume": leaf(randn(16, 3, 4, 2))},
        ),
        "field_jet flow": (kernels.field_jet, [x3, parameters(SPECS["flow"]), SPECS["flow"]], {}),
        "gradient_inverse_consistency": (
            kernels.gradient_inverse_consistency,
            [x3, parameters(SPECS["gated"]), parameters(SPECS["gated"]), SPECS["gated"]],
            {"latent": leaf(randn(3)), "volume": leaf(randn(2, 3, 4, 2))},
        ),
        "gradient_inverse_consistency 2-D": (
            kernels.gradient_inverse_consistency,
            [x2, parameters(SPECS["siren"]), parameters(SPECS["siren"]), SPECS["siren"]],
            {},
        ),
        "conv_relu_conv": (
            kernels.conv_relu_conv,
            [u, *[leaf(randn(*shape)) for shape in ((9, 3, 3, 3, 3), (9,), (2, 9, 3, 3, 3), (2,))]],
            {},
        ),
        "conv_relu_conv 2-D": (
            kernels.conv_relu_conv,
            [flat.detach(), *[leaf(randn(*shape)) for shape in ((4, 2, 3, 3), (4,), (2, 4, 3, 3), (2,))]],
            {},
        ),
    }


def one_adam_step(
    table: Tensor, grad: Tensor, mean: Tensor, square: Tensor, backend: str | None
) -> tuple[Tensor, ...]:
    """table_adam on copies: the tables behind the step."""
    tables = [t.clone() for t in (table, grad, mean, square)]
    steps = torch.arange(len(table), dtype=torch.int32)
    kernels.table_adam(*tables, steps, lr=0.1, backend=backend)
    return (*tables, steps)


CASES = list(calls(torch.float32))


def leaves(arguments: Any) -> list[Tensor]:
    """The tensors among the arguments that want a gradient."""
    if isinstance(arguments, Tensor):
        return [arguments] if arguments.requires_grad else []
    if isinstance(arguments, (list, tuple)):
        return [t for argument in arguments for t in leaves(argument)]
    return []


def weighted_sum(result: Any) -> Tensor:
    """A scalar whose gradient differs from element to element."""
    total = torch.zeros(())
    for value in result if isinstance(result, tuple) else (result,):
        if value.requires_grad:
            weights = torch.linspace(-1, 2, value.numel(), dtype=value.dtype, device=value.device)
            total = total + (value * weights.view_as(value)).sum()
    return total


def results(call: Call, backend: str | None, function: Callable[..., Any] | None = None) -> list[Tensor]:
    """The value of a call, and the gradient of a weighted sum of it to every leaf."""
    public, arguments, options = call
    value = (function or public)(*arguments, **options, backend=backend)
    wanted = leaves(arguments)
    grads = torch.autograd.grad(weighted_sum(value), wanted) if wanted else ()
    values = value if isinstance(value, tuple) else (value,)
    return [*[v.detach() for v in values], *grads]


TWICE = ("grid_sample", "warp")  # public functions whose registered ops have second derivatives


def second_results(call: Call, backend: str | None) -> list[Tensor]:
    """The gradient of a weighted sum of a call's gradients to every leaf."""
    public, arguments, options = call
    wanted = leaves(arguments)
    if not wanted:
        return []
    value = public(*arguments, **options, backend=backend)
    grads = torch.autograd.grad(weighted_sum(value * value), wanted, create_graph=True)
    return list(torch.autograd.grad(weighted_sum(grads), wanted, allow_unused=True, materialize_grads=True))


def few_bits(
    public: Callable[..., Any], widths: tuple[int, ...], count: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Results and gradients of a field whose factors bfloat16 holds, and the reference's in float64."""
    spec = FieldSpec(hidden=widths)
    torch.manual_seed(1)
    params = [torch.randint(-2, 3, s) / 2 * (torch.rand(s) < 6 / s[-1]) for s in spec.parameter_shapes()]
    x = torch.randint(-4, 5, (count, 3)) / 4
    found = []
    for backend, dtype in (("cpu", torch.float32), ("reference", torch.float64)):
        torch.manual_seed(2)
        inputs = [leaf(t.to(dtype)) for t in (x, *params)]
        products = "bfloat16" if backend == "cpu" else "full"
        results = public(inputs[0], inputs[1:], replace(spec, products=products), backend=backend)
        results = results if isinstance(results, tuple) else (results,)
        upstream = [torch.randint(-2, 3, r.shape).to(dtype) for r in results]
        grads = torch.autograd.grad(results, inputs, upstream, materialize_grads=True)
        found.append([t.detach().double() for t in (*results, *grads)])
    return found[0], found[1]
