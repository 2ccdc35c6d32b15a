"""NIR: medical image registration via neural fields (Sun, Han et al., arXiv 2206.03111).

A field u maps a point x of the fixed grid to x + u(x). Each iteration samples the fixed grid on a coarse lattice with
a random offset (the downsize sampler), reads the moving image where the field points, and compares local windows
(LNCC); penalties on the Jacobian determinant of the lattice map and on its gradient keep it from folding and make it
smooth. Inference asks the field at every voxel.

Preset ``fast`` goes beyond the paper: it fits shrunken images first, so that a window sees far before it sees fine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.fields import Field, HashMLP, Siren
from neuralreg.fit import Progress, minimise
from neuralreg.pair import Pair
from neuralreg.samplers import (
    Downsize,
    Lattice,
    axis_coordinates,
    lattice_coordinates,
    lattice_shape,
    shrunken_grid,
    smallest_stride,
)

SLAB_POINTS = 1 << 19  # points asked at once when the whole grid is evaluated


@dataclass(frozen=True)
class Options:
    """Every choice of NIR. The defaults are preset ``fast``."""

    encoding: str = "grid"  # grid (multi-resolution features + ReLU) or fourier (random features + sine)
    levels: int = 6
    features: int = 4
    base: int = 6
    finest: int = 36
    log2_table_size: int = 17
    table_range: float = 0.01
    frequencies: int = 128
    sigma: float = 1.0
    omega: float = 10.0
    initial_omega: float = 30.0
    start_at_zero: bool = True
    hidden: tuple[int, ...] = (64, 64)
    scales: tuple[int, ...] = (
        2,
        1,
    )  # how often the images are shrunk, in turn; the iterations are shared evenly
    iterations: int = 150
    lr: float = 1e-2  # of the layers
    table_lr: float = 1e-2  # of the grid's features
    final_lr: float = 0.1
    stride: int = 0  # voxels between lattice points; 0: the smallest that leaves at most max_points
    max_points: int = 300_000
    lncc_window: int = 5
    jacobian_weight: float = 50.0
    jacobian_threshold: float = 0.4
    diffusion_weight: float = 1.5

    def __post_init__(self) -> None:
        if self.encoding not in ("grid", "fourier"):
            raise ValueError(f"encoding must be grid or fourier, got {self.encoding!r}")
        for name in ("iterations", "max_points", "lncc_window"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.stride < 0:
            raise ValueError(f"stride must be at least 1, or 0 to choose it, got {self.stride}")
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be one or more numbers of at least 1, got {self.scales}")
        if self.lr <= 0 or self.table_lr <= 0 or not 0 <= self.final_lr <= 1:
            raise ValueError(f"needs lr, table_lr > 0 and 0 <= final_lr <= 1, got {self.lr}, {self.final_lr}")


PRESETS = {
    "fast": Options(),
    # Released code: Fourier scale 1 (its YAML), learning rate 1e-3 over 3000 iterations (its YAML),
    # relu(-det) times 10, last layer not started at zero.
    "paper-displacement": Options(
        encoding="fourier",
        hidden=(256, 256, 256, 256),
        iterations=3000,
        lr=1e-3,
        lncc_window=9,
        stride=3,
        jacobian_weight=10.0,
        jacobian_threshold=0.0,
        diffusion_weight=0.0,
        scales=(1,),
        start_at_zero=False,
    ),
}


def make_field(options: Options, ndim: int) -> Field:
    """The field that the options describe, freshly started."""
    if options.encoding == "grid":
        return HashMLP(
            ndim=ndim,
            levels=options.levels,
            features=options.features,
            base=options.base,
            finest=options.finest,
            log2_table_size=options.log2_table_size,
            hidden=options.hidden,
            table_range=options.table_range,
        )
    return Siren(
        ndim=ndim,
        frequencies=options.frequencies,
        sigma=options.sigma,
        hidden=options.hidden,
        omega=options.omega,
        initial_omega=options.initial_omega,
        start_at_zero=options.start_at_zero,
    )


def fit(
    pair: Pair, options: Options, *, seed: int = 0, progress: Progress | None = None
) -> tuple[Field, list[dict[str, Any]]]:
    """Fits a field to one pair; returns it with the history of the loss and its parts."""
    device = pair.fixed.device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        field = make_field(options, pair.ndim).to(device)
    generator = torch.Generator().manual_seed(seed)
    stages = make_stages(pair, options, generator)

    def step(iteration: int) -> dict[str, Tensor]:
        shrunken, sampler = stages[iteration * len(stages) // options.iterations]
        lattice = sampler.draw()
        displacement = lattice.displacement(field(lattice.coordinates()))
        similarity = lattice_similarity(shrunken, lattice, displacement, options)
        regulariser = regularity(displacement, options)
        return {
            "loss": regulariser - similarity,
            "similarity": similarity,
            "regulariser": regulariser,
            "scale": torch.tensor(float(sampler.scale), device=similarity.device),
        }

    history = minimise(
        step,
        [
            {"params": list(field.weights), "lr": options.lr},
            *([{"params": [field.table], "lr": options.table_lr}] if field.table is not None else []),
        ],
        iterations=options.iterations,
        final_lr=options.final_lr,
        progress=progress,
    )
    return field, history


def make_stages(pair: Pair, options: Options, generator: torch.Generator) -> list[tuple[Pair, Downsize]]:
    """The shrunken pair and its sampler for every scale on which a window still fits; the last scale must fit."""
    stages = []
    for index, scale in enumerate(options.scales):
        grid = shrunken_grid(pair.grid, scale)
        stride = options.stride or smallest_stride(grid, options.max_points)
        shape = lattice_shape(grid, stride)
        if min(shape) < max(2, options.lncc_window):
            if index + 1 < len(options.scales):
                continue
            raise InputError(
                f"lncc_window {options.lncc_window} is larger than the lattice {shape} that stride {stride} leaves of "
                f"the grid {pair.grid}, or that has fewer than 2 points on an axis; lower one of them"
            )
        stages.append((pair.shrink(scale), Downsize(pair.grid, stride, generator, pair.fixed.device, scale)))
    return stages


def lattice_similarity(pair: Pair, lattice: Lattice, displacement: Tensor, options: Options) -> Tensor:
    """LNCC between the fixed image on the lattice and the moving image where the displacement points."""
    affine = lattice.affine(pair.voxel_affine)
    warped = kernels.warp(pair.moving, displacement, affine)
    mask = None if pair.fixed_mask is None else lattice.pick(pair.fixed_mask)
    if pair.moving_mask is not None:
        inside = kernels.warp(pair.moving_mask, displacement.detach(), affine, mode="nearest")
        mask = inside if mask is None else mask * inside
    return kernels.lncc(lattice.pick(pair.fixed), warped, options.lncc_window, mask=mask)


def regularity(displacement: Tensor, options: Options) -> Tensor:
    """The weighted penalties of a displacement (1, ndim, *shape) in lattice steps; a weight of 0 costs nothing."""
    total = displacement.new_zeros(())
    if options.jacobian_weight:
        folding = kernels.jacobian_loss(displacement, threshold=options.jacobian_threshold)
        total = total + options.jacobian_weight * folding
    if options.diffusion_weight:
        total = total + options.diffusion_weight * kernels.diffusion_loss(displacement)
    return total


@torch.no_grad()
def dense_displacement(field: Field, grid: tuple[int, ...], progress: Progress | None = None) -> Tensor:
    """The field at every voxel of the grid: (ndim, *grid) displacement in voxels, slab by slab."""
    device = next(field.parameters()).device
    axes = [axis_coordinates(torch.arange(n, device=device, dtype=torch.float64), n).float() for n in grid]
    half = torch.tensor([(n - 1) / 2 for n in grid], device=device)
    result = torch.empty(len(grid), *grid, device=device)
    planes = max(1, SLAB_POINTS // max(1, result[0, 0].numel()))
    for start in range(0, grid[0], planes):
        slab = axes[0][start : start + planes]
        values = field(lattice_coordinates([slab, *axes[1:]])) * half
        result[:, start : start + planes] = values.T.reshape(len(grid), len(slab), *grid[1:])
        if progress:
            progress(min(start + planes, grid[0]), grid[0], float("nan"), "evaluate")
    return result
