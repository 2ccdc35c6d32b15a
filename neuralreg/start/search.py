"""The search for a rigid or affine map: one similarity, climbed from several beginnings, coarse to fine."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.fit import Progress, Step, minimise
from neuralreg.losses import similarity
from neuralreg.start.levels import Level
from neuralreg.start.model import LinearModel

COARSE_ITERATIONS = 60  # from every beginning
ITERATIONS = 80  # from the best of them, shared by the levels
STEP = 0.5  # of an iteration at first, in voxels of the level that the search begins on
FINER_STEP = 0.15
FINAL_LR = 0.02
BETAS = (0.8, 0.9)  # a short memory: gradients of the far way must not shorten the last steps
WINDOW = 5  # voxels of the level, for similarities that have windows
LEAST_OVERLAP = 0.05  # of the smaller image
MOST_STRETCH = 2.0  # along any direction, either way


def compared(level: Level, matrix: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Similarity under a world affine (ndim + 1, ndim + 1), and the mask (1, 1, *spatial) of the voxels that count.

    The moving image is read at every fixed voxel; what falls outside of it or of a mask does not count.
    """
    to_fixed, from_moving = (torch.from_numpy(a) for a in (level.affines[0], np.linalg.inv(level.affines[1])))
    fixed, moving = level.images
    ndim = fixed.ndim - 2
    affine = (from_moving @ matrix @ to_fixed)[:-1].to(fixed)[None]
    nowhere = fixed.new_zeros(1, ndim, *fixed.shape[2:])
    warped = kernels.warp(moving, nowhere, affine, padding_mode="border")
    affine = affine.detach()
    # a value counts where none that it is interpolated from lies outside the mask
    mask = (kernels.warp(level.masks[1], nowhere, affine, padding_mode="border") > 0.999).to(fixed)
    mask = mask * kernels.warp(torch.ones_like(moving), nowhere, affine, mode="nearest") * level.masks[0]
    return similarity(name, fixed, warped, mask=mask, window=WINDOW), mask


@torch.no_grad()
def judged(level: Level, matrix: np.ndarray, name: str) -> tuple[float, float]:
    """Similarity, and the share of the smaller image that is compared."""
    value, mask = compared(level, torch.from_numpy(matrix), name)
    voxel = abs(np.linalg.det(level.affines[0][:-1, :-1]))
    there = level.volume(1) / abs(np.linalg.det(matrix[:-1, :-1]))
    share = float(mask.sum() * voxel / min(level.volume(0), there))
    return float(value), min(1.0, share)  # half a voxel at the border counts, too


def climb(
    levels: list[Level],
    model: str,
    begin: np.ndarray,
    name: str,
    iterations: int,
    step: float,
    progress: Progress | None,
) -> np.ndarray:
    """The world affine that Adam finds from ``begin``, first steps being ``step`` millimetres; one stage a level."""
    fixed = levels[0]
    shape = fixed.images[0].shape[2:]
    ends = (np.array(shape) - 1) / 2
    linear, shift = fixed.affines[0][:-1, :-1], fixed.affines[0][:-1, -1]
    # the root mean square distance of a box's points from its centre
    radius = float(np.sqrt(((linear * np.array(shape)) ** 2).sum() / 12))
    mapping = LinearModel(model, begin, linear @ ends + shift, radius)
    parameters = torch.zeros(mapping.count, dtype=torch.float64, requires_grad=True)

    def make_step(level: Level) -> Step:
        def once() -> dict[str, Tensor]:
            value, _ = compared(level, mapping.matrix(parameters), name)
            return {"loss": -value, "similarity": value.detach()}

        return once

    minimise(
        [make_step(level) for level in levels],
        [{"params": [parameters], "lr": step, "betas": BETAS}],
        iterations=iterations,
        final_lr=FINAL_LR,
        progress=progress,
        name=f"{model} start",
    )
    return mapping.matrix(parameters.detach()).numpy()


def search(
    levels: list[Level],
    model: str,
    beginnings: dict[str, np.ndarray],
    name: str,
    progress: Progress | None = None,
) -> tuple[np.ndarray, dict[str, object]]:
    """The best world affine of a model from several beginnings, and a record of how it was found.

    From every beginning a rigid map climbs on the coarsest level; the best then climbs on all levels with the model's
    own freedom. Never worse, by the similarity on the finest level, than the beginning that it comes from.

    Raises:
        InputError: no overlap anywhere, or a map that no pair of images in the same units can need.
    """
    coarse, fine = levels[0], levels[-1]
    found = []
    for label, begin in beginnings.items():
        if judged(coarse, begin, name)[1] < LEAST_OVERLAP:
            continue
        rigid = climb([coarse], "rigid", begin, name, COARSE_ITERATIONS, STEP * coarse.spacing, progress)
        value, overlap = judged(coarse, rigid, name)
        if overlap >= LEAST_OVERLAP:
            found.append((value, label, rigid))
    if not found:
        raise InputError(
            f"{model} start: the images do not overlap, seen from {', '.join(beginnings)}; check their headers "
            "and the direction of an initial transform (fixed to moving)"
        )
    _, label, rigid = max(found, key=lambda one: one[0])
    matrix = climb(levels, model, rigid, name, ITERATIONS, FINER_STEP * coarse.spacing, progress)
    begin = beginnings[label]
    before, after = judged(fine, begin, name), judged(fine, matrix, name)
    if after[0] < before[0]:
        matrix, after = begin, before
    check_plausible(model, matrix @ np.linalg.inv(begin), after[1])
    record: dict[str, object] = {
        "model": model,
        "begin": label,
        "similarity": name,
        "before": before[0],
        "after": after[0],
        "overlap": after[1],
    }
    return matrix, record


def check_plausible(model: str, change: np.ndarray, overlap: float) -> None:
    """InputError where the images were pushed apart, or stretched beyond belief."""
    stretches = np.linalg.svd(change[:-1, :-1], compute_uv=False)
    if overlap < LEAST_OVERLAP:
        what = f"it leaves {overlap:.1%} of the smaller image in common"
    elif max(stretches.max(), 1 / stretches.min()) > MOST_STRETCH:
        what = f"it stretches by {stretches.min():.2f} to {stretches.max():.2f}"
    else:
        return
    raise InputError(
        f"{model} start found nothing plausible: {what}; give an initial transform or masks, "
        "or take start center or moments"
    )
