"""NCF: neural correspondence field for medical image registration (arXiv 2503.00760), as we read it.

Two small networks per pair, about 0.06 million parameters, and no training data. The coarse correspondence module, an
MLP of five layers, is asked at a dense lattice over the fixed grid and says where each point lies in the moving image;
the smoothing module, two convolutions, runs over that lattice. The moving image is read where the smoothed lattice
points, and three losses compare it with the fixed one: a photometric one, SSIM, and one between occupancies (soft
masks of body or lung).

The paper has no public code and its abstract leaves widths, weights and rates open: docs/ncf.md says what is ours.
Preset ``fast`` goes beyond the paper: LNCC, a smoothness penalty, a coarser lattice, and shrunken images first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.correspondence import CorrespondenceField, Smoother, coarse_network
from neuralreg.errors import InputError
from neuralreg.fields import Field
from neuralreg.fit import Progress, Step, Stop, minimise
from neuralreg.kernels.spec import ACTIVATIONS
from neuralreg.losses import SIMILARITIES, similarity
from neuralreg.memory import Holding
from neuralreg.methods.nir import dense_displacement
from neuralreg.objective import lattice_regularity
from neuralreg.occupancy import OCCUPANCY_LOSSES, OCCUPIED, occupancy_loss, otsu_threshold, soft_occupancy
from neuralreg.pair import Pair
from neuralreg.precision import PRODUCTS, multiplying
from neuralreg.samplers import Downsize, Lattice, lattice_shape, shrunken_grid, smallest_stride

__all__ = ["PRESETS", "Options", "dense_displacement", "fit", "holding", "with_at_most"]


@dataclass(frozen=True)
class Options:
    """Every choice of NCF. The defaults are preset ``paper``: our reading of the paper."""

    hidden: tuple[int, ...] = (128, 128, 128, 128)  # and a linear layer: five
    activation: str = "sine"
    omega: float = 10.0  # of the sine
    octaves: int = 0  # of the positional encoding; 0: the coordinates themselves
    output: str = "displacement"  # or position, which learns the identity first
    identity_iterations: int = 150
    channels: int = 32  # of the smoothing module
    residual: bool = True  # it adds to the coarse field, instead of replacing it
    lattice_step: int = 0  # voxels between points of the field's lattice; 0: the fewest for max_points
    stride: int = 0  # voxels between the points that losses look at; 0: the fewest for max_points
    max_points: int = 100_000
    scales: tuple[int, ...] = (
        1,
    )  # how often the images are shrunk, in turn; they share the iterations evenly
    precision: str = "fp32"  # of the coarse module's products while it is fitted; or bf16
    iterations: int = 300
    lr: float = 3e-4  # of the coarse module
    smoother_lr: float = 1e-3
    final_lr: float = 0.1
    patience: int = 0  # iterations without progress that end a stage; 0: never
    photometric: str = "l1"  # or mse, and between modalities ncc, nmi, mind
    photometric_weight: float = 1.0
    ssim_window: int = 11
    ssim_weight: float = 1.0
    occupancy: str = (
        "brighter"  # what is occupied: brighter or darker than the threshold, or the masks given: mask
    )
    occupancy_threshold: float = -1.0  # in scaled intensities (0 to 1); below 0: Otsu's of each image
    occupancy_softness: float = 0.05
    occupancy_loss: str = "l1"  # or bce, dice
    occupancy_weight: float = 1.0
    lncc_window: int = 5  # also MIND's
    lncc_weight: float = 0.0
    jacobian_weight: float = 0.0
    jacobian_threshold: float = 0.4
    diffusion_weight: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("activation", ACTIVATIONS),
            ("output", ("displacement", "position")),
            ("photometric", ("l1", "mse", "ncc", "nmi", "mind")),
            ("occupancy", (*OCCUPIED, "mask")),
            ("occupancy_loss", OCCUPANCY_LOSSES),
            ("precision", tuple(PRODUCTS)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("iterations", "max_points", "lncc_window", "ssim_window", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "stride",
            "lattice_step",
            "octaves",
            "identity_iterations",
            "patience",
            *WEIGHTS,
            *PENALTIES,
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0, got {getattr(self, name)}")
        for name in ("lr", "smoother_lr", "omega", "occupancy_softness"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.final_lr <= 1:
            raise ValueError(f"final_lr must lie in 0..1, got {self.final_lr}")
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be one or more numbers of at least 1, got {self.scales}")
        if not 1 <= len(self.hidden) <= 8 or not all(1 <= width <= 256 for width in self.hidden):
            raise ValueError(f"hidden must be 1 to 8 widths of 1 to 256, got {self.hidden}")
        if not any(getattr(self, name) for name in WEIGHTS):
            raise ValueError(f"one of {', '.join(WEIGHTS)} must be above 0")


IDENTITY_POINTS, IDENTITY_LR = 4096, 1e-3
WEIGHTS = ("photometric_weight", "ssim_weight", "occupancy_weight", "lncc_weight")
PENALTIES = ("jacobian_weight", "diffusion_weight")

PRESETS = {
    "fast": Options(
        omega=15.0,
        lattice_step=3,
        max_points=300_000,
        scales=(2, 1),
        iterations=150,
        photometric_weight=0.0,
        ssim_weight=0.0,
        occupancy_weight=0.0,
        lncc_weight=1.0,
        jacobian_weight=50.0,
        diffusion_weight=2.0,
    ),
    "paper": Options(),
    "paper-encoded": Options(octaves=10, activation="relu", channels=16, lr=1e-3),
}


def compared_by(name: str) -> dict[str, Any]:
    """The options in which one of SIMILARITIES alone compares the images.

    Raises:
        InputError: an unknown name.
    """
    if name not in SIMILARITIES:
        raise InputError(f"similarity must be one of {', '.join(SIMILARITIES)}, got {name!r}")
    windowed = name in ("lncc", "ssim")  # these have a term of their own
    chosen = {f"{name}_weight": 1.0} if windowed else {"photometric": name, "photometric_weight": 1.0}
    return dict.fromkeys(WEIGHTS, 0.0) | chosen


def make_field(options: Options, grid: tuple[int, ...]) -> CorrespondenceField:
    """Both modules over their lattice, freshly started at the identity."""
    coarse = coarse_network(
        len(grid),
        options.hidden,
        activation=options.activation,
        omega=options.omega,
        octave_count=options.octaves,
        output=options.output,
    )
    smoother = Smoother(len(grid), options.channels, residual=options.residual)
    step = options.lattice_step or smallest_stride(grid, options.max_points)
    shape = tuple(max(min(2, n), round((n - 1) / step) + 1) for n in grid)
    return CorrespondenceField(coarse, smoother, shape)


def with_at_most(options: Options, grid: tuple[int, ...], most: int) -> Options:
    """The options with at most that many points an iteration and in the field's lattice."""

    def fits(step: int) -> int:
        return 0 if step and math.prod(lattice_shape(grid, step)) > most else step

    return replace(
        options,
        max_points=min(options.max_points, most),
        stride=fits(options.stride),
        lattice_step=fits(options.lattice_step),
    )


def holding(options: Options) -> Holding:
    """The memory of a fit: a point of the field's lattice and one that the losses look at, as many of each."""
    point = 190.0 + (1050.0 if options.photometric_weight and options.photometric == "mind" else 0.0)
    return Holding(point, image=40 if options.occupancy_weight else 20)


def fit(
    pair: Pair,
    options: Options,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: float | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[CorrespondenceField, list[dict[str, Any]]]:
    """Fits the two modules to one pair; returns the field with the history of the loss and its parts.

    ``seconds`` and ``watch`` as for :func:`neuralreg.methods.nir.fit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            field = make_field(options, pair.grid).to(pair.fixed.device)
        except ValueError as error:
            raise InputError(f"method ncf: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    stages = make_stages(pair, options, generator)
    with multiplying(field, options.precision):
        if options.output == "position":
            learn_identity(field.coarse, options, generator, progress)
        history = minimise(
            [make_step(field, stage, options) for stage in stages],
            [
                {"params": list(field.coarse.parameters()), "lr": options.lr},
                {"params": list(field.smoother.parameters()), "lr": options.smoother_lr},
            ],
            iterations=options.iterations,
            final_lr=options.final_lr,
            stop=Stop(seconds, options.patience),
            progress=progress,
            watch=None if watch is None else lambda iteration: watch(iteration, field),
        )
    return field, history


def make_step(field: CorrespondenceField, stage: Stage, options: Options) -> Step:
    """One iteration at a stage."""
    scale = torch.tensor(float(stage.sampler.scale), device=stage.fixed.device)

    def step() -> dict[str, Tensor]:
        lattice = stage.sampler.draw()
        displacement = lattice.displacement(field(lattice.coordinates()))
        losses = compare(stage, lattice, displacement, options)
        data = torch.stack([getattr(options, f"{name}_weight") * loss for name, loss in losses.items()]).sum()
        regulariser = lattice_regularity(
            displacement,
            folding=options.jacobian_weight,
            threshold=options.jacobian_threshold,
            diffusion=options.diffusion_weight,
        )
        return {
            "loss": data + regulariser,
            "similarity": -data,
            **losses,
            "regulariser": regulariser,
            "scale": scale,
        }

    return step


def learn_identity(
    coarse: Field, options: Options, generator: torch.Generator, progress: Progress | None
) -> None:
    """Fits the coarse module's positions to x at random points, so that the registration starts near the identity."""
    device = coarse.weights[0].device

    def step() -> dict[str, Tensor]:
        x = torch.rand(IDENTITY_POINTS, coarse.spec.ndim, generator=generator).to(device) * 2 - 1
        return {"loss": coarse(x).square().mean()}

    minimise(
        [step],
        [{"params": list(coarse.parameters()), "lr": IDENTITY_LR}],
        iterations=options.identity_iterations,
        final_lr=0.05,
        progress=progress,
        name="identity",
    )


@dataclass(frozen=True)
class Stage:
    """What the losses see at one scale."""

    sampler: Downsize
    fixed: Tensor  # intensity and, where it counts, occupancy
    moving: Tensor
    fixed_mask: Tensor | None
    moving_inside: Tensor  # 1 wherever there is an image and, where one is given, the mask
    voxel_affine: Tensor


def make_stages(pair: Pair, options: Options, generator: torch.Generator) -> list[Stage]:
    """One stage a scale at which a lattice has two points an axis; the last scale must have them."""
    occupancies = occupancy_pair(pair, options) if options.occupancy_weight else None
    stages = []
    for index, scale in enumerate(options.scales):
        grid = shrunken_grid(pair.grid, scale)
        stride = options.stride or smallest_stride(grid, options.max_points)
        shape = lattice_shape(grid, stride)
        if min(shape) < 2:
            if index + 1 < len(options.scales):
                continue
            raise InputError(f"stride {stride} leaves {shape} points of the grid {grid}; it needs 2 an axis")
        shrunken = pair.shrink(scale)
        fixed, moving = [shrunken.fixed], [shrunken.moving]
        if occupancies is not None:
            occupied = occupancies.shrink(scale)
            fixed.append(occupied.fixed)
            moving.append(occupied.moving)
        inside = [torch.ones_like(shrunken.moving)]
        if shrunken.moving_mask is not None:
            inside.append(shrunken.moving_mask)
        stages.append(
            Stage(
                Downsize(pair.grid, stride, generator, pair.fixed.device, scale),
                torch.cat(fixed, 1),
                torch.cat(moving, 1),
                shrunken.fixed_mask,
                torch.cat(inside, 1),
                shrunken.voxel_affine,
            )
        )
    return stages


def occupancy_pair(pair: Pair, options: Options) -> Pair:
    """The pair with occupancies in place of intensities.

    Raises:
        InputError: the masks are to be the occupancies, and one of them is missing.
    """
    if options.occupancy == "mask":
        if pair.fixed_mask is None or pair.moving_mask is None:
            raise InputError("method ncf: occupancy mask needs both masks: --fixed-mask and --moving-mask")
        return Pair(pair.fixed_mask, pair.moving_mask, pair.voxel_affine)
    images = []
    for image in (pair.fixed, pair.moving):
        threshold = options.occupancy_threshold
        threshold = otsu_threshold(image) if threshold < 0 else threshold
        images.append(soft_occupancy(image, threshold, options.occupancy_softness, options.occupancy))
    return Pair(images[0], images[1], pair.voxel_affine)


def compare(stage: Stage, lattice: Lattice, displacement: Tensor, options: Options) -> dict[str, Tensor]:
    """The losses whose weight is not 0 between the fixed image and the moving one where the displacement points.

    Only points that fall into the moving image count. Intensities count inside both masks; occupancies everywhere, for
    a mask is to be moved onto another, and that shows outside it.
    """
    affine = lattice.affine(stage.voxel_affine)
    fixed = lattice.pick(stage.fixed)
    warped = kernels.warp(stage.moving, displacement, affine)
    inside = kernels.warp(stage.moving_inside, displacement.detach(), affine, mode="nearest")
    mask = inside.prod(1, keepdim=True)
    if stage.fixed_mask is not None:
        mask = mask * lattice.pick(stage.fixed_mask)
    images = fixed[:, :1], warped[:, :1]
    losses: dict[str, Tensor] = {}
    if options.photometric_weight:
        losses["photometric"] = -similarity(
            options.photometric, *images, mask=mask, window=options.lncc_window
        )
    if options.ssim_weight:
        losses["ssim"] = 1 - similarity("ssim", *images, mask=mask, window=options.ssim_window)
    if options.lncc_weight:
        losses["lncc"] = 1 - similarity("lncc", *images, mask=mask, window=options.lncc_window)
    if options.occupancy_weight:
        losses["occupancy"] = occupancy_loss(
            options.occupancy_loss, fixed[:, 1:], warped[:, 1:], inside[:, :1]
        )
    return losses
