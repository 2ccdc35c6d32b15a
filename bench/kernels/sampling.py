"""warp with gradient to the displacement, and grid_sample of scattered points with gradient to the grid."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, Step, gradient_step, smooth_pair
from neuralreg.kernels import sampling

Sampler = Callable[[Tensor, Tensor], Tensor]  # displacement or grid, image


def cases(setup: Setup) -> Iterator[Case]:
    """A smooth displacement of a few voxels at every size; scattered points in one volume."""
    for size in setup.volumes():
        yield warp_case(size, setup)
    yield points_case(setup.main, 10_000 if setup.quick else 100_000, setup)


def warp_case(size: tuple[int, ...], setup: Setup) -> Case:
    image, _ = smooth_pair(size, setup.device, setup.dtype)
    coarse = torch.randn(1, 3, 6, 6, 6, generator=torch.Generator().manual_seed(1)) * 3
    displacement = F.interpolate(coarse, size=size, mode="trilinear", align_corners=True).to(
        setup.device, setup.dtype
    )
    # Clear of the planes between cells, where the gradient jumps and no two precisions agree.
    displacement = (displacement * 16).floor() / 16 + 1 / 32
    arguments = (displacement, image)
    contenders = {
        "neuralreg": lambda u, x: kernels.warp(x, u),
        "neuralreg saving the derivative": lambda u, x: kernels.warp(x, u),
        "torch grid_sample": gridded(displacement),
    }
    if importlib.util.find_spec("monai"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells that it runs torch's grid_sample
            from monai.networks.blocks import Warp

            monai = Warp(padding_mode="zeros")
        contenders["MONAI Warp"] = lambda u, x: monai(x, u)
    if importlib.util.find_spec("interpol"):
        import interpol

        here = identity(size, displacement)
        contenders["torch-interpol grid_pull"] = lambda u, x: interpol.grid_pull(
            x, (here + u).movedim(1, -1), interpolation="linear", bound="zero", extrapolate=True
        )

    # Displacement, image and value; then displacement, image and upstream again, and the gradient.
    floor = 4.0 * image.numel() * ((3 + 1 + 1) + (3 + 1 + 1 + 3))
    name = f"{'x'.join(map(str, size))}, gradient to u"
    return Case("warp", name, steps("warp", contenders, arguments), truth(exact_warp, arguments), 1e-2, floor)


def points_case(size: tuple[int, ...], count: int, setup: Setup) -> Case:
    image, _ = smooth_pair(size, setup.device, setup.dtype)
    draw = torch.rand(1, 1, 1, count, 3, generator=torch.Generator().manual_seed(1))
    arguments = ((2 * draw - 1).to(setup.device, setup.dtype), image)
    contenders = {
        "neuralreg": lambda g, x: kernels.grid_sample(x, g, align_corners=True),
        "neuralreg computing it again": lambda g, x: kernels.grid_sample(x, g, align_corners=True),
        "torch grid_sample": lambda g, x: F.grid_sample(x, g, align_corners=True),
    }
    # Coordinates and eight voxels; value and gradient written, upstream read.
    floor = 4.0 * count * (3 + 8 + 1 + 1 + 3)
    name = f"{count} scattered points in {'x'.join(map(str, size))}, gradient to the grid"
    found = steps("grid_sample", contenders, arguments)
    return Case("grid_sample", name, found, truth(exact_grid_sample, arguments), 1e-2, floor)


def steps(op: str, contenders: dict[str, Sampler], arguments: tuple[Tensor, ...]) -> dict[str, Step]:
    """Steps of the mean square; the second contender is ours with the other choice of what to save."""
    found = {name: gradient_step(mean_square(sample), arguments, (0,)) for name, sample in contenders.items()}
    other = list(contenders)[1]
    plain = found[other]

    def switched() -> tuple[Tensor, ...]:
        with mock.patch.dict(sampling.SAVES, {op: not sampling.SAVES[op]}):
            return plain()

    return {**found, other: switched}


def mean_square(sample: Sampler) -> Sampler:
    return lambda where, image: sample(where, image).square().mean()


def truth(sample: Sampler, arguments: tuple[Tensor, ...]) -> Step:
    def exact() -> tuple[Tensor, ...]:
        return gradient_step(mean_square(sample), tuple(a.double() for a in arguments), (0,))()

    return exact


def exact_warp(u: Tensor, x: Tensor) -> Tensor:
    return kernels.warp(x, u, backend="reference")


def exact_grid_sample(g: Tensor, x: Tensor) -> Tensor:
    return kernels.grid_sample(x, g, align_corners=True, backend="reference")


def identity(size: tuple[int, ...], like: Tensor) -> Tensor:
    axes = [torch.arange(n, device=like.device, dtype=like.dtype) for n in size]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def gridded(displacement: Tensor) -> Sampler:
    """The usual form: the identity grid made once, the displacement scaled, reversed and added."""
    size = displacement.shape[2:]
    scale = displacement.new_tensor([2.0 / (n - 1) for n in reversed(size)])
    here = identity(tuple(size), displacement).flip(0).movedim(0, -1) * scale - 1

    def sample(u: Tensor, image: Tensor) -> Tensor:
        return F.grid_sample(image, here + u.flip(1).movedim(1, -1) * scale, align_corners=True)

    return sample
