"""grid_sample and warp on other libraries' own cases: torch's OpInfo samples, torch-interpol's operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import grid_sample, warp, warp_with_gradient
from neuralreg.kernels.backends.reference.sampling import MODES, PADDINGS

from .common import On, assert_near, leaf, serving
from .sampling_oracle import identity, off_lattice

OPS = ["nn.functional.grid_sample", "grid_sampler_2d", "grid_sampler_3d"]
MOST = 100_000  # elements: torch's largest samples only repeat the others


def spelled(arguments: tuple[Any, ...], options: dict[str, Any]) -> tuple[Tensor, list[Any]]:
    """Grid and options in grid_sample's words; the aten ops number modes and paddings."""
    grid, *rest = arguments
    if rest:
        return grid, [[*MODES, "bicubic"][rest[0]], PADDINGS[rest[1]], rest[2]]
    return grid, [
        options.get("mode", "bilinear"),
        options.get("padding_mode", "zeros"),
        options["align_corners"],
    ]


@pytest.mark.parametrize("on", serving("grid_sample"))
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_samples_of_opinfo(on: On, name: str, dtype: torch.dtype) -> None:
    pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
    from torch.testing._internal.common_methods_invocations import op_db

    found = [op for op in op_db if op.name == name]
    if not found:
        pytest.skip(f"this torch has no OpInfo for {name}")
    compared = 0
    for sample in found[0].sample_inputs("cpu", dtype, requires_grad=True):
        grid, options = spelled(sample.args, sample.kwargs)
        if sample.input.numel() > MOST:
            continue
        if options[0] == "bicubic":  # offered by torch in 2-D, not here
            with pytest.raises(ValueError, match="bicubic"):
                on(grid_sample, sample.input, grid, *options)
            continue
        results = []
        for run in (found[0].op, None):
            i, g = leaf(sample.input), leaf(grid)
            value = run(i, g, *sample.args[1:], **sample.kwargs) if run else on(grid_sample, i, g, *options)
            value.square().sum().backward()
            results.append((value.detach(), i.grad, g.grad))
        # float32: the gradient of the grid sums over channels and is as large as the image has voxels
        for one, other in zip(*results, strict=True):
            assert_near(one, other, 1e-9 if dtype == torch.float64 else 1e-4)
        compared += 1
    assert compared >= 10


@pytest.mark.parametrize("on", serving("warp"))
@pytest.mark.parametrize("sizes", [[6, 5, 7], [8, 9]], ids=str)
def test_torch_interpol(on: On, sizes: list[int]) -> None:
    """Pull, its gradients, its spatial gradient and that one's gradients; zeros outside."""
    interpol = pytest.importorskip("interpol", reason="torch-interpol is not installed")
    ndim = len(sizes)
    image = torch.rand(2, 2, *sizes, dtype=torch.float64)
    points = off_lattice([2, *[4, 5, 3][:ndim]], sizes, 2)
    options = {"interpolation": "linear", "bound": "zero", "extrapolate": True}

    def theirs(i: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        grid = (u + identity([*u.shape[2:]])).movedim(1, -1)
        gradient = interpol.grid_grad(i, grid, **options).movedim(-1, 2)
        return interpol.grid_pull(i, grid, **options), gradient

    def ours(i: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        return on(warp, i, u), on(warp_with_gradient, i, u)[1]

    results = []
    for run in (ours, theirs):
        i, u = leaf(image), leaf(points - identity([*points.shape[2:]]))
        parts = run(i, u)
        results.append([*parts])
        for part in parts:
            weights = torch.linspace(-1, 2, part.numel(), dtype=part.dtype).view_as(part)
            results[-1] += torch.autograd.grad((part * weights).sum(), (i, u), retain_graph=True)
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 1e-10)
