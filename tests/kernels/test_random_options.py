"""The native backend against the reference, in float64, over drawn shapes, options and thread counts."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import (
    diffusion_loss,
    field,
    grid_sample,
    jacobian_determinant,
    jacobian_loss,
    lncc,
    warp,
)
from neuralreg.kernels.backends import registry
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid

from .calls import Call, results
from .common import assert_near, leaf, threads

SERVES, REASON = registry.available("cpu")
PADDINGS = ["zeros", "border", "reflection"]
SIZES = [1, 2, 3, 5, 8, 13, 17, 33, 40]


def sizes(ndim: int) -> list[int]:
    return [random.choice(SIZES) for _ in range(ndim)]


def maybe_leaf(tensor: Tensor) -> Tensor:
    return leaf(tensor) if random.random() < 0.7 else tensor


def draw_lncc() -> Call:
    spatial, channels = sizes(random.choice([2, 3])), random.choice([1, 2])
    shape = (random.choice([1, 2, 3]), channels, *spatial)
    window = [random.choice([1, 2, 3, 4, 5, 7, 9, 18, 21]) for _ in spatial]
    padding = random.choice(["same", "valid"])
    if padding == "valid":
        window = [min(w, n) for w, n in zip(window, spatial, strict=True)]
    fixed = torch.rand(shape, dtype=torch.float64)
    warped = 0.5 * fixed + 0.5 * torch.rand(shape, dtype=torch.float64)
    if random.random() < 0.5:
        fixed[..., : spatial[-1] // 2] = 0
    offset = random.choice([0, 0, 1, -1])
    options = {
        "padding": padding,
        "squared": random.random() < 0.6,
        "eps": random.choice([1e-5, 1e-2, 1.0]),
        "eps_mode": random.choice(["product", "clamp", "each"]),
        "numerator_eps": random.choice([0.0, 0.01]),
        "zero_rule": random.random() < 0.3,
        "reduction": random.choice(["mean", "none"]),
        "recompute": random.choice([None, True, False]),
    }
    if random.random() < 0.4:
        shares = torch.rand(shape[0], random.choice([1, channels]), *spatial)
        options["mask"] = shares < random.choice([0.1, 0.6, 0.95])
    return lncc, [maybe_leaf(fixed + offset), maybe_leaf(warped + offset), window], options


def draw_warp() -> Call:
    spatial, batch = sizes(random.choice([2, 3])), random.choice([1, 2])
    ndim = len(spatial)
    image = torch.rand(batch, random.choice([1, 2]), *spatial, dtype=torch.float64)
    u = random.choice([0.5, 3, 30]) * torch.randn(batch, ndim, *sizes(ndim), dtype=torch.float64)
    affine = None
    if random.random() < 0.5:
        noise = 0.2 * torch.randn(batch, ndim, ndim + 1, dtype=torch.float64)
        affine = maybe_leaf(torch.eye(ndim, ndim + 1, dtype=torch.float64) + noise)
    mode = random.choice(["bilinear", "nearest"])
    return warp, [maybe_leaf(image), maybe_leaf(u), affine, mode, random.choice(PADDINGS)], {}


def draw_grid_sample() -> Call:
    spatial, batch = sizes(random.choice([2, 3])), random.choice([1, 2])
    image = torch.rand(batch, random.choice([1, 2]), *spatial, dtype=torch.float64)
    grid = torch.randn(batch, *sizes(len(spatial)), len(spatial), dtype=torch.float64)
    options = [random.choice(["bilinear", "nearest"]), random.choice(PADDINGS), random.random() < 0.5]
    return grid_sample, [maybe_leaf(image), maybe_leaf(grid), *options], {}


def draw_lattice() -> Call:
    ndim = random.choice([2, 3])
    u = leaf(0.5 * torch.randn(random.choice([1, 2]), ndim, *sizes(ndim), dtype=torch.float64))
    spacing = random.choice([None, [random.uniform(0.3, 4) for _ in range(ndim)]])
    scheme = random.choice(["forward", "backward", "central"])
    return random.choice(
        [
            (jacobian_determinant, [u, spacing, scheme], {}),
            (jacobian_loss, [u, spacing, scheme, "relu", random.choice([0.0, 0.5])], {}),
            (jacobian_loss, [u, spacing, scheme, "unit"], {}),
            (diffusion_loss, [u, spacing], {}),
        ]
    )


def draw_field() -> Call:
    grid = HashGrid(
        levels=random.choice([1, 2, 5, 16]),
        features=random.choice([1, 2, 3, 4, 8]),
        base=random.choice([2, 5]),
        finest=random.choice([5, 33, 100]),
        log2_table_size=random.choice([3, 7, 12]),
    )
    hidden = tuple(random.choice([1, 3, 8, 16, 31, 64, 100, 256]) for _ in range(random.choice([1, 2, 3])))
    sine = random.random() < 0.5
    spec = FieldSpec(
        ndim=random.choice([2, 3]),
        encoding=random.choice([None, Fourier(random.choice([1, 3, 8, 17, 128])), grid]),
        hidden=hidden,
        out=random.choice([1, 2, 3, 5]),
        activation="sine" if sine else "relu",
        omega=tuple(random.uniform(0.5, 10) for _ in hidden) if sine else (),
    )
    params = [
        leaf(torch.randn(shape, dtype=torch.float64) / (shape[1] ** 0.5 if len(shape) == 2 else 1))
        for shape in spec.parameter_shapes()
    ]
    x = 2.2 * torch.rand(random.choice([1, 7, 96, 97, 300]), spec.ndim, dtype=torch.float64) - 1.1
    return field, [maybe_leaf(x), params, spec], {}


DRAWS: dict[str, tuple[Callable[[], Call], int]] = {
    "lncc": (draw_lncc, 120),
    "warp": (draw_warp, 80),
    "grid_sample": (draw_grid_sample, 60),
    "lattice": (draw_lattice, 80),
    "field": (draw_field, 40),
}


def described(call: Call) -> str:
    """The call with shapes for tensors."""

    def short(value: object) -> object:
        if isinstance(value, Tensor):
            return f"{tuple(value.shape)}{'!' if value.requires_grad else ''}"
        return [short(v) for v in value] if isinstance(value, list) else value

    function, arguments, options = call
    return f"{function.__name__} {short(arguments)} { {k: short(v) for k, v in options.items()} }"


@pytest.mark.skipif(not SERVES, reason=REASON)
@pytest.mark.parametrize("name", DRAWS)
def test_native_equals_reference(name: str) -> None:
    draw, count = DRAWS[name]
    for _ in range(count):
        call = draw()
        with threads(random.choice([1, 2, 3])):
            actual = results(call, "cpu")
        for one, other in zip(actual, results(call, "reference"), strict=True):
            try:
                assert_near(one, other, 1e-8)
            except AssertionError as error:
                raise AssertionError(f"{described(call)}: {error}") from None
