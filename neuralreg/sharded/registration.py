"""``register`` over several processes: one pair, a slab of it on each, the result that one process has.

Served is what needs one lattice over the grid: NIR's displacement with the samplers downsize, center and whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.affines import voxel_affine
from neuralreg.boxes import Box, common, longest_axis, readable, slices, whole, with_rows, within
from neuralreg.device import settings
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.formats.grids import is_sheared
from neuralreg.formats.itk_nifti import VECTOR_INTENT, stored
from neuralreg.images import Geometry, Image, check_pair
from neuralreg.losses import WINDOWED
from neuralreg.memory import MB, peak_bytes
from neuralreg.methods import nir
from neuralreg.methods.nir_options import WHOLE_LATTICES, Options
from neuralreg.metrics import determinant_sums, determinants, regularity_of
from neuralreg.options import resolve
from neuralreg.outputs import write_json
from neuralreg.precision import check_precision
from neuralreg.registration import DEFAULT_PRESET, describe, environment
from neuralreg.saved_field import save_field
from neuralreg.sharded.files import write_parts
from neuralreg.sharded.inverse import InversePart, invert, reach, transform_in
from neuralreg.sharded.ranks import Together
from neuralreg.sharded.slab import Slab
from neuralreg.sharded.volume import Volume, cut, find_range, read_mask_volume
from neuralreg.start.choose import check_initial, read_initial
from neuralreg.transforms import Transform

MARGIN = 10.0  # millimetres that points are expected to move; farther ones cost another reading


@dataclass(frozen=True)
class Part:
    """What one rank has of a registration. All ranks call each ``save``, rank 0 with the path.

    Attributes:
        box: this rank's voxels of the fixed grid; ``transform`` is on that part of the grid.
        grid: the whole fixed grid.
        moving: the moving image.
        inverse: this rank's part of the inverse, where it was asked for.
        field, history, summary: as in :class:`neuralreg.Registration`, the same on every rank.
    """

    ranks: Together
    box: Box
    grid: Geometry
    transform: Transform
    moving: Volume
    inverse: InversePart | None
    field: Any
    history: list[dict[str, Any]]
    summary: dict[str, Any]

    def save_transform(self, path: Path | None) -> None:
        """The file that :meth:`neuralreg.Transform.save` writes."""
        save_vectors(self.ranks, path, self.grid, self.box, self.transform)

    def save_inverse(self, path: Path | None) -> None:
        """The inverse in the same format.

        Raises:
            InputError: it was not asked for.
        """
        if self.inverse is None:
            raise InputError("this registration has no inverse: ask for it (inverse_out=True)")
        save_vectors(self.ranks, path, self.moving.geometry, self.inverse.box, self.inverse.transform)

    def save_warped(self, path: Path | None) -> None:
        """The moving image on the fixed grid."""
        with self.ranks.agreed():
            moving = self.moving.geometry
            source = readable(*reach(self.transform, moving), moving.shape)
            image = Image(torch.from_numpy(self.moving.read(source)), cut(moving, source).affine)

        def values(box: Box, component: int) -> np.ndarray:
            return transform_in(self.transform, within(box, self.box)).warp(image).data.numpy()

        write_parts(self.ranks, path, self.grid, self.box, values)

    def save_field(self, path: Path | None) -> None:
        """The file that :meth:`neuralreg.Registration.save_field` writes."""
        if path is not None:
            options = self.summary["options"]
            save_field(path, self.field, "nir", options, self.grid, np.asarray(self.transform.initial))

    def save_summary(self, path: Path | None) -> None:
        """The summary as JSON."""
        if path is not None:
            write_json(path, self.summary)


def save_vectors(ranks: Together, path: Path | None, grid: Geometry, box: Box, transform: Transform) -> None:
    """Writes the displacement field of a whole grid, of which ``transform`` is on the part ``box``.

    Raises:
        InputError: a sheared grid, which ITK does not know.
    """

    def vectors(part: Box, component: int) -> np.ndarray:
        return stored(transform_in(transform, within(part, box)))[component]

    check_straight(grid)
    write_parts(ranks, path, grid, box, vectors, vectors=True, intent=VECTOR_INTENT)


def check_straight(grid: Geometry) -> None:
    """InputError where a displacement field on this grid would have to be resampled first."""
    if is_sheared(grid):
        raise InputError(
            "the grid is sheared, and a displacement field on it is resampled as a whole: resample the image to a grid "
            "with orthogonal axes first, or start without torchrun"
        )


def register(
    ranks: Together,
    fixed: Any,
    moving: Any,
    method: str = "nir",
    preset: str | None = None,
    *,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] | None = None,
    nan_to: float | None = None,
    margin: float | None = None,
    inverse_out: bool = False,
    iterations: int | None = None,
    precision: str | None = None,
    seed: int = 0,
    deterministic: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> Part:
    """Registers one pair together with the other ranks; arguments as in :func:`neuralreg.register`.

    Args:
        ranks: from :func:`neuralreg.sharded.ranks.joined`. Every rank makes the same call.
        fixed, moving, fixed_mask, moving_mask: paths, which every rank can read.
        margin: millimetres that points are expected to move at most; default MARGIN. Where one moves farther the rank
            reads more of the moving image, so that only time depends on it.
        inverse_out: also invert the transform; the summary has its consistency then.

    Raises:
        InputError: a choice that is not served here, or what :func:`neuralreg.register` refuses.
        NeuralregError: the same where another rank has met it.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    if method != "nir":
        raise InputError(f"several processes for one pair serve method nir, not {method}")
    if iterations is not None:
        options["iterations"] = iterations
    if precision is not None:
        options["precision"] = precision
    chosen = resolve(nir.PRESETS, preset or DEFAULT_PRESET, options, method)
    check_served(chosen)
    check_precision(chosen, ranks.device)
    if margin is not None and not margin >= 0:
        raise InputError(f"margin must be at least 0 mm, got {margin}")
    volumes = Volume(fixed, "fixed image", nan_to), Volume(moving, "moving image", nan_to)
    images = [volume.image for volume in volumes]
    grid = volumes[0].geometry
    check_pair(grid, volumes[1].geometry)
    masks = (
        read_mask_volume(fixed_mask, "fixed mask", grid),
        read_mask_volume(moving_mask, "moving mask", volumes[1].geometry),
    )
    given, more = read_initial(initial_transform, grid, volumes[1].geometry)
    if more is not None:
        raise InputError(
            f"initial transform {initial_transform} is more than an affine: several processes for one pair start from "
            "affines"
        )
    initial, initial_name = given or (np.eye(grid.ndim + 1), "identity")
    check_initial(initial, initial_name, grid.ndim)
    axis = longest_axis(grid.shape)
    lattices, halo = outline(chosen, grid.shape, axis, ranks.world)
    with settings(deterministic=deterministic):
        scaling = {
            name: find_range(ranks, volume, mask, window, quantiles or (0.0, 0.999))
            for name, volume, mask in zip(("fixed", "moving"), volumes, masks, strict=True)
        }
        millimetres = MARGIN if margin is None else margin
        with ranks.agreed():
            slab = Slab(
                ranks,
                *volumes,
                masks,
                voxel_affine(grid, volumes[1].geometry, initial),
                axis,
                halo,
                lattices,
                millimetres / np.array(grid.spacing),
            )
        field, history = nir.fit(slab, chosen, seed=seed, progress=progress)
        readings, rows = slab.readings, slab.fixed_box[axis]
        del slab
        box = ranks.own_box(grid.shape, axis)
        displacement, quality = evaluate(ranks, field, grid, box, axis, masks[0], progress)
    transform = Transform(displacement, cut(grid, box), volumes[1].geometry, initial)
    backward, consistency = invert(ranks, field, transform, grid) if inverse_out else (None, None)
    summary = {
        "method": method,
        "preset": preset or DEFAULT_PRESET,
        "options": asdict(chosen),
        "seed": seed,
        "parameters": sum(p.numel() for p in field.parameters()),
        "iterations": len(history),
        "deterministic": deterministic,
        "similarity": history[-1]["similarity"] if history else None,
        "loss": history[-1]["loss"] if history else None,
        **quality,
        "inverse_consistency_mm": consistency and consistency["mean_mm"],
        "inverse_consistency": consistency,
        "intensity": scaling,
        "initial_transform": initial_name,
        "initial_matrix_ras": np.asarray(initial).tolist(),
        "inputs": {
            "fixed": describe(fixed, images[0]),
            "moving": describe(moving, images[1]),
        },
        "world_size": ranks.world,
        "axis": axis,
        "margin_mm": millimetres,
        **_of_every_rank(
            ranks,
            {
                "rows_read": list(rows),
                "readings_of_moving": readings,
                "peak_memory_mb": peak_bytes() / MB,
                "cpu_seconds": time.process_time() - cpu,
            },
        ),
        "wall_seconds": time.perf_counter() - wall,
        **environment(ranks.device),
    }
    return Part(ranks, box, grid, transform, volumes[1], backward, field, history, summary)


def check_served(options: Options) -> None:
    """InputError where the options ask for what is not cut into slabs."""
    refused = {
        "hybrid": options.hybrid,
        f"output {options.output}": options.output != "displacement",
        f"sampler {options.sampler}": options.sampler not in WHOLE_LATTICES,
        f"jacobian {options.jacobian}": options.jacobian != "lattice",
        f"similarity {options.similarity}": options.similarity in ("mind", "nmi"),
    }
    for what, asked in refused.items():
        if asked:
            raise InputError(
                f"several processes for one pair do not serve {what}: they need a displacement on one lattice over "
                f"the grid (preset fast or paper-displacement, sampler {', '.join(WHOLE_LATTICES)}) and a similarity "
                "that is a mean"
            )


def outline(
    options: Options, grid: tuple[int, ...], axis: int, world: int
) -> tuple[list[tuple[tuple[int, ...], int, int]], int]:
    """Shape, stride and scale of every lattice of the fit, and the rows that windows and differences reach into.

    Raises:
        InputError: more processes than the rows suffice for.
    """
    halo = 2 if options.bending_weight else 1
    if options.similarity in WINDOWED:
        ends = options.zero_rule or options.padding == "valid"
        halo = max(halo, options.lncc_window - 1 if ends else options.lncc_window // 2)
    stages = nir.make_stages(grid, options, torch.Generator(), torch.device("cpu"))
    lattices = []
    for ((sampler, _),), _ in stages:
        assert isinstance(sampler, nir.Downsize)
        lattices.append((sampler.shape, sampler.stride, sampler.scale))
        rows = sampler.shape[axis]
        if world > max(1, rows // halo):
            raise InputError(
                f"{world} processes are too many for this pair: a lattice has {rows} rows along axis {axis} of the "
                f"fixed image, and windows reach {halo} rows beyond a process's own; start at most "
                f"{max(1, rows // halo)}"
            )
    return lattices, halo


def evaluate(
    ranks: Together,
    field: Any,
    grid: Geometry,
    box: Box,
    axis: int,
    mask: Volume | None,
    progress: Callable[..., None] | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The displacement (ndim, *box) in this rank's voxels; folds and SDlogJ of the whole as `neuralreg.metrics` has it.

    SDlogJ is that inside the mask where there is one.
    """
    start, stop = box[axis]
    beside = with_rows(box, axis, (max(0, start - 1), min(grid.shape[axis], stop + 1)))
    displacement = nir.dense_displacement(field, grid.shape, progress, beside).cpu()
    own = within(box, beside)
    inside = None if mask is None else torch.from_numpy(mask.read(box) != 0)
    everywhere, masked = np.zeros(4), np.zeros(4)
    first = 0
    for det in determinants(displacement):  # some planes of the first axis at once
        here = with_rows(whole(tuple(displacement.shape[1:])), 0, (first, first + len(det)))
        first += len(det)
        part = common(here, own)
        det = det[slices(within(part, here))]
        everywhere += determinant_sums(det)
        masked += determinant_sums(det if inside is None else det[inside[slices(within(part, own))]])
    displacement = displacement.narrow(1 + axis, own[axis][0], stop - start)
    return displacement, {
        "folds_percent": regularity_of(*ranks.sums(everywhere.tolist()))["folds_percent"],
        "sdlogj": regularity_of(*ranks.sums(masked.tolist()))["sdlogj"],
    }


def _of_every_rank(ranks: Together, mine: dict[str, Any]) -> dict[str, Any]:
    """What each rank used: CPU seconds together, memory of the largest, and a line each."""
    everyones = ranks.everyones(mine)
    return {
        "ranks": everyones,
        "cpu_seconds": sum(one["cpu_seconds"] for one in everyones),
        "peak_memory_mb": max(one["peak_memory_mb"] for one in everyones),
    }
