"""NIR's displacement scheme in plain torch: the baseline that preset ``paper-displacement`` is held against.

Written from the method alone, with torch's own modules and functions and none of neuralreg's kernels: Fourier
features and a sine network as ``nn.Module``, the look-up by ``grid_sample``, LNCC by cumulative sums, the Jacobian by
slices. Settings are read from the preset, so that both do the same. ``python -m neuralreg.bench.plain_nir`` takes
the words of ``neuralreg register`` that it can honour.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from neuralreg.bench.pairs import prepare
from neuralreg.cli.flags import parse_options, parse_pair
from neuralreg.errors import InputError, NeuralregError
from neuralreg.methods.nir import PRESETS, Options
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.transforms import Transform, read_affine

# Options of the preset that can be changed here, and those that stand as they are.
KNOWN = (
    *("iterations", "lr", "final_lr", "hidden", "frequencies", "sigma", "omega", "initial_omega"),
    *("stride", "lncc_window", "dropout", "jacobian_weight"),
)
FIXED = {
    "encoding": "fourier", "activation": "", "start_at_zero": False, "output": "displacement", "hybrid": False,
    "sampler": "downsize", "scales": (1,), "similarity": "lncc", "padding": "valid", "zero_rule": True,
    "nir_compat": False, "jacobian": "lattice", "jacobian_threshold": 0.0, "diffusion_weight": 0.0, "patience": 0,
}  # fmt: skip
EPS = 1e-5


class FourierFeatures(nn.Module):
    """sin and cos of random projections, fixed from the start (Tancik et al. 2020)."""

    def __init__(self, ndim: int, frequencies: int, sigma: float) -> None:
        super().__init__()
        self.matrix: Tensor
        self.register_buffer("matrix", sigma * torch.randn(ndim, frequencies))

    def forward(self, x: Tensor) -> Tensor:
        phase = math.pi * (x @ self.matrix)
        return torch.cat([phase.sin(), phase.cos()], -1)


class Sine(nn.Module):
    """sin(omega x)."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


def make_network(ndim: int, options: Options) -> nn.Sequential:
    """Fourier features, sine layers and a linear layer; weights as NIR's released code starts them.

    Random numbers are drawn in the order of the preset's field: one seed gives one network in both.
    """
    widths = [2 * options.frequencies, *options.hidden, ndim]
    linear = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
    layers: list[nn.Module] = [FourierFeatures(ndim, options.frequencies, options.sigma)]
    for index, layer in enumerate(linear):
        n = layer.in_features
        bound = 1 / n if index == 0 else math.sqrt(6 / n) / options.initial_omega
        nn.init.uniform_(layer.weight, -bound, bound)
        layers += [layer, Sine(options.omega)]
    return nn.Sequential(*layers[:-1])


def lattice(grid: tuple[int, ...], stride: int, offset: Tensor) -> Tensor:
    """(*lattice, ndim) voxels: every stride-th one from the offset, floor(n / stride) an axis, at least one."""
    axes = [offset[k] + stride * torch.arange(max(1, n // stride)) for k, n in enumerate(grid)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float()


def displace(network: nn.Module, voxels: Tensor, grid: tuple[int, ...]) -> Tensor:
    """The network's displacement at fixed voxels (..., ndim), in voxels."""
    half = (torch.tensor(grid, dtype=voxels.dtype) - 1) / 2
    x = (voxels / half - 1).reshape(-1, len(grid))
    return (network(x) * half).view_as(voxels)


def read_moving(pair: Pair, positions: Tensor) -> Tensor:
    """The moving image (1, 1, *lattice) at fixed voxels (*lattice, ndim), zero outside."""
    moved = positions @ pair.voxel_affine[:, :-1].T + pair.voxel_affine[:, -1]
    last = torch.tensor(pair.moving.shape[2:]) - 1
    grid = (2 * moved / last - 1).flip(-1)
    return F.grid_sample(pair.moving, grid[None], align_corners=True)


def folding(positions: Tensor, stride: int) -> Tensor:
    """Mean of relu(-det) of the lattice map (*lattice, ndim), forward differences."""
    ndim = positions.shape[-1]
    short = [slice(0, -1)] * ndim
    columns = []
    for k in range(ndim):
        short[k] = slice(None)  # the difference has made this axis shorter already
        columns.append(positions.diff(dim=k)[tuple(short)] / stride)
        short[k] = slice(0, -1)
    if ndim == 2:
        (a, b), (c, d) = (column.unbind(-1) for column in columns)
        det = a * d - b * c
    else:
        det = (torch.linalg.cross(columns[0], columns[1]) * columns[2]).sum(-1)
    return F.relu(-det).mean()


def box_sums(images: Tensor, window: int) -> Tensor:
    """Sums over the cubes of ``window`` points that fit, by cumulative sums along every axis: the fastest on a CPU.

    They run in float64: in float32 the differences of large sums cost the gradient a tenth on an image with a
    background, and save little time.
    """
    sums = images.double()
    for axis in range(2, images.ndim):
        ends = sums.cumsum(axis)
        before = F.pad(ends, [0, 0] * (images.ndim - 1 - axis) + [1, -window])
        sums = ends.narrow(axis, window - 1, ends.shape[axis] - window + 1) - before
    return sums.to(images.dtype)


def box_max(images: Tensor, window: int) -> Tensor:
    """Largest values in the cubes that fit."""
    ndim = images.ndim - 2
    pool = F.max_pool2d if ndim == 2 else F.max_pool3d
    for axis in range(ndim):
        images = pool(images, [window if k == axis else 1 for k in range(ndim)], stride=1)
    return images


def similarity_of(fixed: Tensor, warped: Tensor, window: int, dropout: float) -> Tensor:
    """Mean squared correlation of windows that fit; squared differences under windows that are empty in one image.

    ``dropout``: the share of both maps that is left out at random.
    """
    products = torch.cat([fixed, warped, fixed * fixed, warped * warped, fixed * warped])
    f, w, ff, ww, fw = box_sums(products, window).split(1)
    n = window ** (fixed.ndim - 2)
    correlation = (fw - f * w / n).square() / ((ff - f * f / n) * (ww - w * w / n) + EPS)
    with torch.no_grad():
        filled = (box_max(torch.cat([fixed, warped]), window) > 0).all(0, keepdim=True).to(fixed.dtype)
        empty = box_max(F.pad(1 - filled, [window - 1] * (2 * (fixed.ndim - 2))), window)
        if dropout:
            filled, empty = (
                weight * torch.empty_like(weight).bernoulli_(1 - dropout) for weight in (filled, empty)
            )
    difference = (fixed - warped).square()
    return weighted_mean(correlation, filled) - weighted_mean(difference, empty)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """0 where there is no weight."""
    return (values * weights).sum() / weights.sum().clamp(min=1)


def loss_of(network: nn.Module, pair: Pair, options: Options, offset: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and similarity on the lattice of an offset."""
    voxels = lattice(pair.grid, options.stride, offset)
    positions = voxels + displace(network, voxels, pair.grid)
    fixed = pair.fixed
    for axis, (start, n) in enumerate(zip(offset, voxels.shape[:-1], strict=True)):
        fixed = fixed.index_select(2 + axis, start + options.stride * torch.arange(n))
    similarity = similarity_of(fixed, read_moving(pair, positions), options.lncc_window, options.dropout)
    return options.jacobian_weight * folding(positions, options.stride) - similarity, similarity


def draw_offset(pair: Pair, options: Options, generator: torch.Generator) -> Tensor:
    """Where the next lattice begins."""
    reach = [min(options.stride, n) for n in pair.grid]
    return torch.cat([torch.randint(r, (1,), generator=generator) for r in reach])


def fit(pair: Pair, options: Options, seed: int = 0) -> tuple[nn.Sequential, list[float]]:
    """The fitted network and the similarity of every iteration."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(pair.ndim, options)
        generator = torch.Generator().manual_seed(seed)
        optimiser = torch.optim.Adam(network.parameters(), lr=options.lr, fused=True)
        slope = (1 - options.final_lr) / max(1, options.iterations - 1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda iteration: 1 - slope * iteration)
        history = []
        for _ in range(options.iterations):
            offset = draw_offset(pair, options, generator)
            optimiser.zero_grad(set_to_none=True)
            loss, similarity = loss_of(network, pair, options, offset)
            loss.backward()
            optimiser.step()
            schedule.step()
            history.append(similarity.detach())
    return network, torch.stack(history).tolist()


@torch.no_grad()
def dense_displacement(network: nn.Module, grid: tuple[int, ...], planes: int = 4) -> Tensor:
    """(ndim, *grid) displacement in voxels, a few planes at a time."""
    parts = []
    for start in range(0, grid[0], planes):
        axes = [torch.arange(start, min(start + planes, grid[0])), *(torch.arange(n) for n in grid[1:])]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).float()
        parts.append(displace(network, voxels, grid).movedim(-1, 0))
    return torch.cat(parts, 1)


def plain_options(preset: str = "paper-displacement", **overrides: object) -> Options:
    """The preset's settings with overrides.

    Raises:
        InputError: an option, or a preset's choice, that this baseline does not have.
    """
    for name in overrides:
        if name not in KNOWN:
            raise InputError(f"plain-nir has no option {name!r}; options are {', '.join(KNOWN)}")
    options = resolve(PRESETS, preset, overrides, "plain-nir")
    for name, value in FIXED.items():
        if getattr(options, name) != value:
            raise InputError(
                f"plain-nir has {name} {value!r} alone; preset {preset} has {getattr(options, name)!r}"
            )
    return options


def given_options(option: list[str] | None, iterations: int | None) -> dict[str, Any]:
    """What the command line says about a baseline's options."""
    return parse_options(option or []) | ({} if iterations is None else {"iterations": iterations})


def register_files(
    files: tuple[Path, Path, Path],
    initial_transform: Path | None,
    window: str | None,
    threads: int | None,
    find: Callable[[Pair], nn.Module],
) -> None:
    """A baseline from files to file, fixed, moving and transform; ``find`` fits a network to the pair."""
    if threads is not None:
        torch.set_num_threads(threads)
    initial = None if initial_transform is None else read_affine(initial_transform)
    pair, target, source = prepare(files[0], files[1], initial, parse_pair("--window", window))
    displacement = dense_displacement(find(pair), pair.grid)
    Transform(displacement, target.geometry, source.geometry, initial).save(files[2])


def main(
    fixed: Annotated[Path, typer.Option(help="The image whose grid the result has.")],
    moving: Annotated[Path, typer.Option(help="The image that is deformed onto it.")],
    transform_out: Annotated[Path, typer.Option(help="Transform, fixed to moving points (.nii.gz, LPS mm).")],
    initial_transform: Annotated[Path | None, typer.Option(help="Affine start, LPS mm.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LO,HI", help="Intensity window.")] = None,
    iterations: Annotated[int | None, typer.Option(help="The preset's own number by default.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help=", ".join(KNOWN))] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Register a moving image to a fixed image with NIR's displacement scheme in plain torch."""
    options = plain_options(**given_options(option, iterations))
    files = (fixed, moving, transform_out)
    register_files(files, initial_transform, window, threads, lambda pair: fit(pair, options, seed)[0])


if __name__ == "__main__":
    try:
        typer.run(main)
    except NeuralregError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
