"""NIR: medical image registration via neural fields (Sun, Han et al., arXiv 2206.03111).

A field maps a point x of the fixed grid to x + u(x), directly or as the end of a stationary velocity's flow. Each
iteration samples points of the fixed grid, reads the moving image where the field points, and compares local windows
(LNCC); a penalty on the Jacobian determinant keeps the map from folding. The downsize sampler sees the whole volume and
converges fast, mini-patches see every detail and keep the map regular; the hybrid scheme fits one field with the first,
freezes it and fits a second on top with the other. Inference asks the field at every voxel.

The ``fast`` presets go beyond the paper: they fit shrunken images first, so that a window sees far before it sees fine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import boxes
from neuralreg.errors import InputError
from neuralreg.fields import (
    Composed,
    Field,
    SquaredField,
    Stretched,
    VelocityField,
    start_matrix,
    start_sines,
)
from neuralreg.fit import Progress, Step, Stop, minimise
from neuralreg.kernels.spec import FieldSpec, Fourier, HashGrid
from neuralreg.losses import WINDOWED
from neuralreg.memory import SLAB_POINTS
from neuralreg.methods.nir_options import PRESETS, Options, holding
from neuralreg.objective import analytic_regularity, lattice_regularity, one_step_beyond, sampled_similarity
from neuralreg.pair import Images, Shown
from neuralreg.precision import multiplying
from neuralreg.samplers import (
    Downsize,
    Patches,
    RandomPoints,
    Sampler,
    axis_coordinates,
    lattice_coordinates,
    lattice_shape,
    shrunken_grid,
    smallest_stride,
)

__all__ = [
    "PRESETS",
    "Options",
    "dense_displacement",
    "fit",
    "holding",
    "make_field",
    "make_stages",
    "with_at_most",
]

DENSE_SQUARINGS = 7  # of a whole velocity field, once
JITTERS = {"downsize": "shared", "center": "none", "jitter": "voxels", "continuous": "anywhere"}


def make_field(options: Options, ndim: int) -> Field:
    """The field that the options describe, freshly started."""
    activation = options.activation or ("relu" if options.encoding == "grid" else "sine")
    encoding: HashGrid | Fourier | None = None
    if options.encoding == "grid":
        encoding = HashGrid(
            options.levels, options.features, options.base, options.finest, options.log2_table_size
        )
    elif options.encoding != "none":
        octaves = options.octaves if options.encoding == "octaves" else 0
        encoding = Fourier(ndim * octaves if octaves else options.frequencies)
    sine = activation == "sine"
    spec = FieldSpec(
        ndim,
        encoding,
        options.hidden,
        ndim,
        activation,
        (float(options.omega),) * len(options.hidden) if sine else (),
    )
    field = Field(spec, start_at_zero=options.start_at_zero, table_range=options.table_range)
    field.recompute = True if options.recompute else None
    start_matrix(field.matrix, options.sigma, options.octaves if options.encoding == "octaves" else 0)
    if sine:
        layers = len(options.hidden) + (not options.start_at_zero)
        start_sines(list(field.weights[: 2 * layers : 2]), (options.initial_omega,) * layers)
    if options.output != "velocity":
        return field
    kind = SquaredField if options.integrator == "squaring" else VelocityField
    scheme = "rk4" if options.integrator == "squaring" else options.integrator
    return kind(
        field, time=options.flow_time, steps=options.flow_steps, scheme=scheme, bounded=options.bounded
    )


def fit(
    pair: Images,
    options: Options,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: float | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Fits a field to one pair; returns it with the history of the loss and its parts.

    ``seconds`` limits the time: stages and learning rate then follow the clock where it runs ahead of the iterations.
    ``watch`` is called with the number of every iteration that is done, from 1, and the map as it is then.

    Raises:
        InputError: windows, strides and grid do not fit together.
    """
    device = pair.device
    if options.min_cell:  # finer cells than the images have detail for only give noise room
        most = max(options.base, int(max(pair.grid) / options.min_cell))
        options = replace(options, finest=min(options.finest, most))
    generator = torch.Generator().manual_seed(seed)
    stop = Stop(seconds, options.patience)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if not options.hybrid:
            field = make_field(options, pair.ndim).to(device)
            return fit_field(pair, options, field, None, generator, stop, progress, "fit", watch)
        first_options = replace(
            options, hybrid=False, iterations=max(1, round(options.iterations * options.first_share))
        )
        second_options = replace(
            options,
            hybrid=False,
            sampler=options.second_sampler,
            iterations=max(1, options.iterations - first_options.iterations),
        )
        first = make_field(first_options, pair.ndim).to(device)
        share = options.first_share
        _, history = fit_field(
            pair, first_options, first, None, generator, stop.part(share), progress, "first field", watch
        )
        second = make_field(second_options, pair.ndim).to(device)
        done = len(history)

        def watch_second(iteration: int, field: nn.Module) -> None:
            if watch:
                watch(done + iteration, field)

        outer, more = fit_field(
            pair,
            second_options,
            second,
            first,
            generator,
            stop.part(1 - share),
            progress,
            "second field",
            watch_second,
        )
        return outer, history + [{**record, "iteration": done + record["iteration"]} for record in more]


def fit_field(
    pair: Images,
    options: Options,
    field: Field,
    inner: Field | None,
    generator: torch.Generator,
    stop: Stop,
    progress: Progress | None,
    name: str,
    watch: Callable[[int, nn.Module], None] | None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Fits one field, on top of a frozen ``inner`` one where it is given; returns the whole map and the history."""
    whole: nn.Module = field if inner is None else Composed(inner, field)
    if options.nir_compat:
        whole = Stretched(whole, [n / (n - 1) if n > 1 else 1.0 for n in pair.grid]).to(pair.device)
    stages = make_stages(pair.grid, options, generator, pair.device)
    steps = [make_step(whole, pair.shrink(samplers[0][0].scale), samplers, options) for samplers, _ in stages]
    table = [{"params": [field.table], "lr": options.table_lr}] if field.table is not None else []
    with multiplying(whole, options.precision):
        history = minimise(
            steps,
            [{"params": list(field.weights), "lr": options.lr}, *table],
            iterations=options.iterations,
            final_lr=options.final_lr,
            shares=[share for _, share in stages],
            stop=stop,
            progress=progress,
            name=name,
            watch=None if watch is None else lambda iteration: watch(iteration, whole),
            gather=pair.gather,
        )
    return whole, history


def with_at_most(options: Options, grid: tuple[int, ...], most: int) -> Options:
    """The options with at most that many points an iteration: a wider stride, fewer patches or random points.

    What the points were encoded to is computed again rather than kept.

    Raises:
        InputError: a single patch, or the whole grid where sampler "whole" asks for it, is more than that.
    """
    names = options.sampler.split("+")
    most //= max(len(names), len(options.second_sampler.split("+")) if options.hybrid else 1)
    names += options.second_sampler.split("+") if options.hybrid else []
    patch = math.prod(min(options.patch_side, n) for n in grid)
    for name, points in (("whole", math.prod(grid)), ("patches", patch)):
        if name in names and points > most:
            raise InputError(
                f"the memory leaves room for {most} points an iteration, sampler {name} takes {points} at least; "
                "allow more memory, or take another sampler"
            )
    wide = options.stride and math.prod(lattice_shape(grid, options.stride)) > most
    return replace(
        options,
        max_points=min(options.max_points, most),
        stride=0 if wide else options.stride,
        patches=max(1, min(options.patches, most // patch)),
        recompute=True,
    )


def make_stages(
    grid: tuple[int, ...], options: Options, generator: torch.Generator, device: torch.device
) -> list[tuple[list[tuple[Sampler, int]], int]]:
    """The stages: samplers, each with its window, of every scale on which the windows still fit the shrunken ``grid``,
    and how often the scale is named in a row, which is its share of the iterations.

    Raises:
        InputError: the windows do not fit on the last scale.
    """
    stages = []
    windowed = options.similarity in WINDOWED
    runs = [(scale, len(list(run))) for scale, run in itertools.groupby(options.scales)]
    for index, (scale, share) in enumerate(runs):
        samplers = [
            make_sampler(name, grid, options, generator, device, scale) for name in options.sampler.split("+")
        ]
        windows = [
            options.patch_window if isinstance(sampler, Patches) else options.lncc_window
            for sampler in samplers
        ]
        for sampler, window in zip(samplers, windows, strict=True):
            shape = sampler.shape
            if shape is not None and min(shape) < max(2, window if windowed else 1):
                break
        else:
            stages.append((list(zip(samplers, windows, strict=True)), share))
            continue
        if index + 1 == len(runs):
            name = "patch_window" if isinstance(sampler, Patches) else "lncc_window"
            what = "patches" if isinstance(sampler, Patches) else f"lattice {shape} that the stride leaves"
            raise InputError(
                f"{name} {window} is larger than the {what} of the grid {grid}, or that has fewer than 2 points "
                f"on an axis; lower {name} or the stride"
            )
    return stages


def make_sampler(
    name: str,
    grid: tuple[int, ...],
    options: Options,
    generator: torch.Generator,
    device: torch.device,
    scale: int,
) -> Sampler:
    """The sampler of a name in SAMPLERS, on the grid shrunk ``scale`` times."""
    where = (generator, device, scale)
    if name == "patches":
        return Patches(grid, options.patches, options.patch_side, *where)
    if name == "random":
        return RandomPoints(grid, options.max_points, *where)
    if name == "whole":
        return Downsize(grid, 1, *where, jitter="none")
    stride = options.stride or smallest_stride(shrunken_grid(grid, scale), options.max_points)
    return Downsize(grid, stride, *where, jitter=JITTERS[name])


def make_step(field: nn.Module, pair: Shown, samplers: list[tuple[Sampler, int]], options: Options) -> Step:
    """One iteration: the losses at one draw of every sampler, averaged."""
    scale = torch.tensor(float(samplers[0][0].scale), device=pair.device)

    def step() -> dict[str, Tensor]:
        parts = [sampled_loss(field, pair, sampler, window, options) for sampler, window in samplers]
        similarity, regulariser = (torch.stack(terms).mean() for terms in zip(*parts, strict=True))
        return {
            "loss": regulariser - similarity,
            "similarity": similarity,
            "regulariser": regulariser,
            "scale": scale,
        }

    return step


def sampled_loss(
    field: Any, pair: Shown, sampler: Sampler, window: int, options: Options
) -> tuple[Tensor, Tensor]:
    """Similarity and weighted regulariser of a field at the points that a sampler draws."""
    sample, mean = pair.part(sampler.draw())
    weights = {
        "folding": options.jacobian_weight,
        "threshold": options.jacobian_threshold,
        "diffusion": options.diffusion_weight,
        "bending": options.bending_weight,
    }
    x = sample.coordinates()
    if sample.regular and options.jacobian == "lattice":
        if isinstance(field, SquaredField):
            displacement = field.squared(sample.displacement(field.velocity(x)), options.squarings)
        else:
            displacement = sample.displacement(field(x))
        regulariser = lattice_regularity(displacement, **weights, mean=mean)
    else:  # without neighbours a derivative comes from the field itself
        values, jacobian = field.jet(x)
        displacement = sample.displacement(values)
        beyond = None
        if options.bending_weight:
            _, beyond = field.jet(one_step_beyond(x, sampler.grid, sampler.scale))
        regulariser = analytic_regularity(jacobian, pair.grid, **weights, beyond=beyond)
    similarity = sampled_similarity(
        *pair.held(sample, displacement),
        displacement,
        options.similarity,
        window=window,
        padding=options.padding,
        zero_rule=options.zero_rule,
        dropout=options.dropout,
        mean=mean,
    )
    return similarity, regulariser


@torch.no_grad()
def dense_displacement(
    field: Any, grid: tuple[int, ...], progress: Progress | None = None, box: boxes.Box | None = None
) -> Tensor:
    """The map at every voxel of the grid, or of a box of it: (ndim, *box) displacement in voxels, slab by slab.

    A :class:`SquaredField` gives its velocity slab by slab, which is then squared as a whole; it takes no box.
    """
    squared = isinstance(field, SquaredField)
    ask = field.velocity if squared else field
    device = next(field.parameters()).device
    if squared and box is not None:
        raise ValueError("a squared field is made of its velocity on the whole grid: it has no box alone")
    box = box or boxes.whole(grid)
    axes = [
        axis_coordinates(torch.arange(*ends, device=device, dtype=torch.float64), n).float()
        for ends, n in zip(box, grid, strict=True)
    ]
    shape = boxes.shape_of(box)
    half = torch.tensor([(n - 1) / 2 for n in grid], device=device)
    result = torch.empty(len(shape), *shape, device=device)
    planes = max(1, SLAB_POINTS // max(1, math.prod(shape[1:])))
    for start in range(0, shape[0], planes):
        slab = axes[0][start : start + planes]
        values = ask(lattice_coordinates([slab, *axes[1:]])) * half
        result[:, start : start + planes] = values.T.reshape(len(shape), len(slab), *shape[1:])
        if progress:
            progress(min(start + planes, shape[0]), shape[0], float("nan"), "evaluate")
    return field.squared(result[None], DENSE_SQUARINGS)[0] if squared else result
