"""NePhi: neural deformation fields for approximately diffeomorphic registration (Tian et al., ECCV 2024).

An encoder sees both images and predicts a global code and a coarse volume of local codes; two gated sine decoders turn
the codes into the map x + u(x) and its inverse. Both are compared with the images at sampled points, and the gradient
of what one makes of the other is held at the identity (gradient inverse consistency), which keeps them close to
diffeomorphic without a velocity or an integrator. Trained across pairs, a new pair is one prediction; a few steps on
its codes or decoders refine it. Without an encoder the codes are parameters, and one pair is fitted from nothing.

The paper's derivatives of derivatives become jets here: one op gives a map and its Jacobian, with a backward by hand.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from neuralreg.errors import InputError
from neuralreg.fields import GatedSiren
from neuralreg.fit import Progress, Step, Stop, minimise
from neuralreg.methods.nephi_losses import draw_points, draw_sample, pair_losses
from neuralreg.methods.nephi_options import ARCHITECTURE, PRESETS, Options
from neuralreg.methods.nir import SLAB_POINTS, dense_displacement
from neuralreg.networks.encoder import Encoder, halved, local_block_of
from neuralreg.pair import Pair, resampled
from neuralreg.precision import multiplying
from neuralreg.samplers import lattice_coordinates, lattice_shape, shrunken_grid
from neuralreg.two_way import CodedMap, TwoWayField, codes_last

__all__ = ["PRESETS", "NePhi", "Options", "dense_displacement", "fit", "make_trainee", "trainee_from"]


class NePhi(nn.Module):
    """Encoder and both decoders; ``encode`` gives the codes of pairs, ``maps`` those of one pair their maps."""

    def __init__(self, options: Options, shape: Sequence[int]) -> None:
        super().__init__()
        self.encoder = Encoder(
            shape,
            widths=options.widths,
            global_code=options.global_code,
            local_code=options.local_code,
            local_block=options.local_block,
            head=options.head,
            norm=options.norm,
            context=options.context,
        )
        self.there, self.back = (make_decoder(options, len(shape)) for _ in range(2))

    def encode(self, fixed: Tensor, moving: Tensor) -> list[tuple[Tensor | None, Tensor | None]]:
        """The codes of every pair of (B, 1, *shape) images."""
        codes, volumes = self.encoder(torch.cat([fixed, moving], 1))
        count = len(fixed)
        return list(
            zip(
                [None] * count if codes is None else codes,
                [None] * count if volumes is None else volumes,
                strict=True,
            )
        )

    def maps(self, latent: Tensor | None, volume: Tensor | None) -> tuple[CodedMap, CodedMap]:
        """The forward and the backward map of a pair's codes."""
        volume = None if volume is None else codes_last(volume)
        return CodedMap(self.there, latent, volume), CodedMap(self.back, latent, volume)


def make_decoder(options: Options, ndim: int) -> GatedSiren:
    """One decoder, at the identity whatever the codes."""
    return GatedSiren(
        ndim=ndim,
        frequencies=options.frequencies,
        sigma=options.sigma,
        hidden=options.hidden,
        first_omega=options.first_omega,
        omega=options.omega,
        latent=options.global_code,
        latent_volume=options.local_code,
    )


class NePhiTrainee:
    """What the training loop sees of NePhi: losses of a batch, dense maps, optimiser, description."""

    def __init__(self, options: Options, shape: Sequence[int], seed: int = 0) -> None:
        self.options, self.shape, self._done = options, tuple(shape), 0.0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module: nn.Module = NePhi(options, self.shape)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.module.parameters()).device

    def losses(self, batch: Any, generator: torch.Generator) -> dict[str, Tensor]:
        """Means over the batch's pairs, all asked at one draw of points, in the stage that ``rate`` was last told."""
        module, options = self._nephi, self.options.stage(self._done)
        device = batch.fixed.device
        sample = draw_sample(options, self.shape, generator, device)
        points = draw_points(options, self.shape, generator, device)
        affine = torch.eye(len(self.shape), len(self.shape) + 1, device=device)
        found = []
        for index, codes in enumerate(module.encode(batch.fixed, batch.moving)):
            one = slice(index, index + 1)
            pair = Pair(batch.fixed[one], batch.moving[one], affine).shrink(options.scales[0])
            with multiplying(module, options.precision):
                found.append(pair_losses(module.maps(*codes), pair, sample, points, options))
        return {name: torch.stack([losses[name] for losses in found]).mean() for name in found[0]}

    @torch.no_grad()
    def displacement(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """(B, ndim, *shape) displacement in fixed voxels."""
        maps = [self._nephi.maps(*codes)[0] for codes in self._nephi.encode(fixed, moving)]
        return torch.stack([dense_displacement(one, self.shape) for one in maps])

    def optimiser(self) -> torch.optim.Optimizer:
        """Adam, with a rate for the encoder and one for the decoders."""
        module = self._nephi
        decoders = [*module.there.parameters(), *module.back.parameters()]
        groups = [
            {"params": list(module.encoder.parameters()), "lr": self.options.lr},
            {"params": decoders, "lr": self.options.decoder_lr},
        ]
        return torch.optim.Adam(groups, fused=True)

    def rate(self, done: float) -> float:
        """Linear from 1 to final_lr; the stage of the next losses follows."""
        self._done = min(max(done, 0.0), 1.0)
        return 1 - (1 - self.options.final_lr) * self._done

    def describe(self) -> dict[str, Any]:
        """Options, shape and parameters in plain types, for :func:`trainee_from`."""
        return {
            "method": "nephi",
            "options": asdict(self.options),
            "shape": list(self.shape),
            "state": self.module.state_dict(),
        }

    @property
    def _nephi(self) -> NePhi:
        assert isinstance(self.module, NePhi)
        return self.module


def make_trainee(options: Options, shape: Sequence[int], ndim: int, seed: int = 0) -> NePhiTrainee:
    """A fresh NePhi for images of ``shape``."""
    if ndim != len(shape):
        raise ValueError(f"shape {tuple(shape)} is not {ndim}-D")
    try:
        return NePhiTrainee(options, shape, seed)
    except ValueError as error:
        raise InputError(f"method nephi: {error}") from None


def trainee_from(description: dict[str, Any]) -> NePhiTrainee:
    """The trainee that ``describe`` described."""
    trainee = NePhiTrainee(Options(**description["options"]), description["shape"])
    trainee.module.load_state_dict(description["state"])
    return trainee


def fit(
    pair: Pair,
    options: Options,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: float | None = None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> tuple[TwoWayField, list[dict[str, Any]]]:
    """The auto-decoder: codes and decoders of one pair from nothing; the field with the history of the loss.

    ``seconds`` and ``watch`` as for :func:`neuralreg.methods.nir.fit`. The maps work in coordinates of the fixed grid,
    on which the moving image is read through the pair's affine.
    """
    grid = pair.grid
    block = local_block_of(grid) if options.local_block < 0 else options.local_block
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        there, back = (make_decoder(options, len(grid)) for _ in range(2))
        latent = random_code((options.global_code,))
        volume = random_code((options.local_code, *halved(grid, block + 1)))
    # on their device first: where they lie says how a field lays them out
    codes = [None if code is None else code.to(pair.fixed.device) for code in (latent, volume)]
    field = TwoWayField(there, back, *codes).to(pair.fixed.device)
    history = improve(
        field,
        pair,
        replace(options, refined="both"),
        iterations=options.iterations,
        seed=seed,
        progress=progress,
        seconds=seconds,
        watch=watch,
    )
    return field, history


def random_code(shape: tuple[int, ...]) -> Tensor | None:
    """N(0, 1 / width), as the released auto-decoder starts its codes; None of width 0."""
    return torch.randn(shape) / math.sqrt(shape[0]) if shape[0] else None


def fit_trained(
    trainee: NePhiTrainee,
    pair: Pair,
    options: Options,
    *,
    refine: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
    seconds: float | None = None,
) -> tuple[TwoWayField, list[dict[str, Any]]]:
    """The prediction for a pair, refined in so many steps; ``options`` are the trainee's but for how it is refined."""
    changed = [name for name in ARCHITECTURE if getattr(options, name) != getattr(trainee.options, name)]
    if changed:
        raise InputError(
            f"method nephi: {', '.join(changed)} cannot change: the weights were trained with it"
        )
    field = predict(trainee, pair)
    history = []
    if refine:
        history = improve(
            field, pair, options, iterations=refine, seed=seed, progress=progress, seconds=seconds
        )
    return field, history


@torch.no_grad()
def predict(trainee: NePhiTrainee, pair: Pair) -> TwoWayField:
    """The maps that the network predicts, with decoders of their own, so that refinement leaves the network alone.

    Images of another shape than the network's are resampled to it, outer voxel centres onto outer voxel centres.
    """
    module = trainee.module.to(pair.fixed.device).eval()
    assert isinstance(module, NePhi)
    if len(pair.grid) != len(trainee.shape):
        raise InputError(f"the weights are for {len(trainee.shape)}-D images, these are {len(pair.grid)}-D")
    pair = pair.on_fixed_grid()
    images = [resampled(image, trainee.shape) for image in (pair.fixed, pair.moving)]
    latent, volume = module.encode(*images)[0]
    there, back = copy.deepcopy(module.there), copy.deepcopy(module.back)
    return TwoWayField(there, back, latent, volume)


def improve(
    field: TwoWayField,
    pair: Pair,
    options: Options,
    *,
    iterations: int,
    seed: int,
    progress: Progress | None,
    seconds: float | None,
    watch: Callable[[int, nn.Module], None] | None = None,
) -> list[dict[str, Any]]:
    """Minimises NePhi's loss on one pair over the field's codes, decoders or both; returns the history."""
    options = options.of_one_pair()
    shared = pair.on_fixed_grid()
    generator = torch.Generator().manual_seed(seed)
    device = pair.fixed.device
    codes = [code for code in (field.latent, field.volume) if code is not None]
    decoders = [*field.there.parameters(), *field.back.parameters()]
    for parameter in (*codes, *decoders):
        parameter.requires_grad_(False)
    groups = []
    for name, parameters, lr in (
        ("codes", codes, options.refine_code_lr),
        ("decoders", decoders, options.refine_lr),
    ):
        if options.refined in (name, "both"):
            groups.append({"params": [p.requires_grad_() for p in parameters], "lr": lr})

    def stage(options: Options) -> Step:
        shrunken = shared.shrink(options.scales[0])
        scale = torch.tensor(float(options.scales[0]), device=device)

        def step() -> dict[str, Tensor]:
            sample = draw_sample(options, pair.grid, generator, device)
            points = draw_points(options, pair.grid, generator, device)
            return {**pair_losses(field.maps, shrunken, sample, points, options), "scale": scale}

        return step

    with multiplying(field, options.precision):
        return minimise(
            [stage(options.stage(number / options.stages)) for number in range(options.stages)],
            groups,
            iterations=iterations,
            final_lr=options.refine_final_lr,
            stop=Stop(seconds),
            progress=progress,
            watch=None if watch is None else lambda iteration: watch(iteration, field),
        )


@torch.no_grad()
def dense_inverse(field: TwoWayField, pair: Pair, progress: Progress | None = None) -> Tensor:
    """The backward map at every moving voxel j: displacement d (ndim, *moving grid) in moving voxels.

    With the pair's affine A from fixed to moving voxels, moving voxel j belongs to fixed voxel A^-1 (j + d): the
    network's map, taken at A^-1 j, moved back through A. Beyond the fixed grid its border's displacement counts.
    """
    grid = tuple(pair.moving.shape[2:])
    forward = torch.eye(pair.ndim + 1, dtype=torch.float64)
    forward[:-1] = pair.voxel_affine.cpu().double()
    back = torch.linalg.inv(forward)[:-1]
    device = pair.fixed.device
    half = torch.tensor([(n - 1) / 2 for n in pair.grid], dtype=torch.float64)
    linear = pair.voxel_affine[:, :-1] * half.to(pair.voxel_affine)  # of field coordinates
    result = torch.empty(pair.ndim, *grid, device=device)
    rest = [torch.arange(n, dtype=torch.float64) for n in grid[1:]]
    planes = max(1, SLAB_POINTS // max(1, math.prod(grid[1:])))
    for start in range(0, grid[0], planes):
        slab = torch.arange(start, min(start + planes, grid[0]), dtype=torch.float64)
        voxels = lattice_coordinates([slab, *rest]) @ back[:, :-1].T + back[:, -1]
        x = torch.where(half > 0, voxels / half.clamp(min=0.5) - 1, 0.0).clamp(-1, 1)
        moved = field.inverse(x.float().to(device)) @ linear.T
        result[:, start : start + planes] = moved.T.reshape(pair.ndim, len(slab), *grid[1:])
        if progress:
            progress(min(start + planes, grid[0]), grid[0], float("nan"), "inverse")
    return result


def with_at_most(options: Options, grid: tuple[int, ...], most: int) -> Options:
    """The options with at most that many points an iteration, both directions together.

    Raises:
        InputError: a single patch is more than that.
    """
    most //= 2
    whole = options.of_one_pair()
    strides, patches = [], [options.patches]
    for stage in (whole.stage(number / whole.stages) for number in range(whole.stages)):
        shrunken = shrunken_grid(grid, stage.scales[0])
        patch = math.prod(min(options.patch_side, n) for n in shrunken)
        if options.sampler == "patches" and patch > most:
            raise InputError(
                f"the memory leaves room for {most} points an iteration and direction, a patch takes {patch}; allow "
                "more memory, or lower patch_side"
            )
        (stride,) = stage.strides
        wide = stride and math.prod(lattice_shape(shrunken, stride)) > most
        strides.append(0 if wide else stride)
        patches.append(most // patch)
    return replace(
        options,
        max_points=max(1, min(options.max_points, most)),
        refine_scales=whole.scales,
        refine_strides=tuple(strides),
        refine_windows=whole.windows,
        patches=max(1, min(patches)),
    )


def between(first: TwoWayField, second: TwoWayField, share: float) -> TwoWayField:
    """The field whose codes lie ``share`` (0 to 1) of the way from those of one pair to those of another.

    Decoders are the first's: both fields must have been predicted by one network and not refined but in their codes.
    """
    codes = []
    for name in ("latent", "volume"):
        one, other = getattr(first, name), getattr(second, name)
        if (one is None) != (other is None) or (one is not None and one.shape != other.shape):
            raise ValueError(f"the fields have codes of different shapes: {name}")
        codes.append(None if one is None else torch.lerp(one.detach(), other.detach(), share))
    for mine, others in zip(first.there.parameters(), second.there.parameters(), strict=True):
        if not torch.equal(mine, others):
            raise ValueError("the fields have different decoders, between which codes do not move")
    return TwoWayField(copy.deepcopy(first.there), copy.deepcopy(first.back), *codes)
