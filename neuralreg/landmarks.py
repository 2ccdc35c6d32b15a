"""Corresponding points in two images, from a csv."""

from __future__ import annotations

import os

import numpy as np

from neuralreg.errors import InputError
from neuralreg.images import lps_flip
from neuralreg.points import find_columns, numbers, read_table, state_space


def read_landmarks(path: str | os.PathLike[str], space: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and moving landmarks, each (n, ndim), LPS millimetres.

    The csv has a header with fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z (no z in 2-D), in any
    order and beside other columns. ``_ras`` or ``_lps`` at the end of these names states the space; else
    ``space`` must. What the two say may not differ.
    """
    name = f"landmarks {path}"
    header, rows = read_table(path, name)
    wanted = [[f"{which}_{axis}" for which in ("fixed", "moving") for axis in axes] for axes in ("xyz", "xy")]
    columns, stated = find_columns(header, wanted)
    if not columns:
        raise InputError(
            f"{name}: the header must name the columns fixed_x, fixed_y, fixed_z, moving_x, moving_y, "
            f"moving_z (with _ras or _lps behind each, or give --landmarks-space)"
        )
    found = state_space(stated, space, name, "--landmarks-space")
    points = numbers(rows, columns, name)
    ndim = len(columns) // 2
    sign = np.diag(lps_flip(ndim))[:-1] if found == "RAS" else np.ones(ndim)
    return points[:, :ndim] * sign, points[:, ndim:] * sign
