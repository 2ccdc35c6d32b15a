"""IDIR (Wolterink et al., MIDL 2022) in plain torch: a baseline written from the paper's description.

A SIREN of three hidden layers gives the displacement; every step compares the images at random points of the fixed grid
by global correlation, and holds the map smooth by its bending energy, or its determinant at one, by derivatives of
derivatives. ``python -m neuralreg.bench.idir`` takes the words of ``neuralreg register`` that it can honour.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

from neuralreg.bench.plain_nir import Sine, given_options, read_moving, register_files
from neuralreg.bench.rows import run_command
from neuralreg.images import read_mask
from neuralreg.options import resolve
from neuralreg.pair import Pair

EPS = 1e-10


@dataclass(frozen=True)
class Options:
    """The paper's settings; ``weight`` below 0: 10 for bending energy, 0.05 for the determinant."""

    regulariser: str = "bending"
    weight: float = -1.0
    hidden: tuple[int, ...] = (256, 256, 256)
    omega: float = 32.0
    points: int = 10_000
    iterations: int = 2500
    lr: float = 1e-5

    def __post_init__(self) -> None:
        if self.regulariser not in WEIGHTS:
            raise ValueError(f"regulariser must be one of {', '.join(WEIGHTS)}, got {self.regulariser!r}")


WEIGHTS = {"bending": 10.0, "jacobian": 0.05}
PRESETS = {"bending": Options(), "jacobian": Options(regulariser="jacobian")}


def make_network(ndim: int, options: Options) -> nn.Sequential:
    """Sine layers with the starts of Sitzmann et al. 2020."""
    widths = [ndim, *options.hidden, ndim]
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(before, after)
        bound = 1 / before if index == 0 else math.sqrt(6 / before) / options.omega
        nn.init.uniform_(layer.weight, -bound, bound)
        layers += [layer, Sine(options.omega)]
    return nn.Sequential(*layers[:-1])


def jacobian_of(values: Tensor, x: Tensor) -> Tensor:
    """(N, n, ndim) derivatives of values (N, n), which can be derived again."""
    rows = [torch.autograd.grad(one.sum(), x, create_graph=True)[0] for one in values.unbind(1)]
    return torch.stack(rows, 1)


def regularity(u: Tensor, x: Tensor, options: Options) -> Tensor:
    """Mean bending energy, or mean |det - 1|, of the map x + u(x)."""
    jacobian = jacobian_of(u, x)
    if options.regulariser == "jacobian":
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        return (torch.linalg.det(jacobian + eye) - 1).abs().mean()
    return jacobian_of(jacobian.flatten(1), x).square().sum((1, 2)).mean()


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Global correlation of two sets of values."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).mean() / (a.square().mean() * b.square().mean() + EPS).sqrt()


def loss_of(network: nn.Module, pair: Pair, voxels: Tensor, options: Options) -> Tensor:
    """At voxels (N, ndim) of the fixed grid, whole numbers."""
    half = (torch.tensor(pair.grid) - 1) / 2
    x = (voxels / half - 1).requires_grad_()
    u = network(x)
    positions = (voxels + u * half).view(-1, *[1] * (pair.ndim - 1), pair.ndim)
    fixed = pair.fixed[0, 0][tuple(voxels.unbind(1))]
    weight = WEIGHTS[options.regulariser] if options.weight < 0 else options.weight
    return weight * regularity(u, x, options) - correlation(fixed, read_moving(pair, positions).flatten())


def fit(pair: Pair, options: Options, seed: int = 0, mask: Tensor | None = None) -> nn.Sequential:
    """The fitted network; points are drawn inside the mask (*grid), anywhere without one."""
    inside = torch.ones(pair.grid, dtype=torch.bool) if mask is None else mask
    places = inside.nonzero()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = make_network(pair.ndim, options)
        optimiser = torch.optim.Adam(network.parameters(), lr=options.lr)
        for _ in range(options.iterations):
            voxels = places[torch.randint(len(places), (options.points,))]
            optimiser.zero_grad(set_to_none=True)
            loss_of(network, pair, voxels, options).backward()
            optimiser.step()
    return network


def main(
    fixed: Annotated[Path, typer.Option(help="The image whose grid the result has.")],
    moving: Annotated[Path, typer.Option(help="The image that is deformed onto it.")],
    transform_out: Annotated[Path, typer.Option(help="Transform, fixed to moving points (.nii.gz, LPS mm).")],
    preset: Annotated[str, typer.Option(help="bending or jacobian: the regulariser.")] = "bending",
    initial_transform: Annotated[Path | None, typer.Option(help="Affine start, LPS mm.")] = None,
    fixed_mask: Annotated[Path | None, typer.Option(help="Where points are drawn.")] = None,
    window: Annotated[str | None, typer.Option(metavar="LO,HI", help="Intensity window.")] = None,
    iterations: Annotated[int | None, typer.Option(help="2500 by default.")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Of Options.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = 0,
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Register a moving image to a fixed image with IDIR in plain torch."""
    options = resolve(PRESETS, preset, given_options(option, iterations), "idir")
    mask = None if fixed_mask is None else read_mask(fixed_mask).data
    files = (fixed, moving, transform_out)
    register_files(files, initial_transform, window, threads, lambda pair: fit(pair, options, seed, mask))


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
