"""Where the mass of an image is, and along which axes it is spread."""

from __future__ import annotations

import itertools

import numpy as np
import torch

from neuralreg.samplers import lattice_coordinates
from neuralreg.start.levels import Level


def centre_and_axes(level: Level, which: int) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (ndim,) and principal axes (ndim, ndim), columns, right-handed, least spread first; RAS mm."""
    mass = (level.images[which] * level.masks[which])[0, 0].cpu().double()
    axes = [torch.arange(n, dtype=torch.float64) for n in mass.shape]
    affine = level.affines[which]
    points = lattice_coordinates(axes).numpy() @ affine[:-1, :-1].T + affine[:-1, -1]
    weight = mass.flatten().numpy()
    weight = weight / weight.sum()
    centre = weight @ points
    spread = (points - centre).T @ (weight[:, None] * (points - centre))
    vectors = np.linalg.eigh(spread)[1]
    vectors[:, 0] *= np.sign(np.linalg.det(vectors))
    return centre, vectors


def moment_alignments(level: Level) -> list[np.ndarray]:
    """The rotations about the centres of mass that lay one image's principal axes on the other's, RAS mm.

    An axis has no direction: four of them in 3-D, two in 2-D.
    """
    (centre, axes), (aim, moving_axes) = (centre_and_axes(level, which) for which in range(2))
    found = []
    for signs in itertools.product((1.0, -1.0), repeat=len(centre)):
        if np.prod(signs) < 0:
            continue
        matrix = np.eye(len(centre) + 1)
        matrix[:-1, :-1] = moving_axes @ np.diag(signs) @ axes.T
        matrix[:-1, -1] = aim - matrix[:-1, :-1] @ centre
        found.append(matrix)
    return found
