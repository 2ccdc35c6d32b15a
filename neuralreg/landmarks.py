"""Corresponding points in two images, from a csv."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np

from neuralreg.errors import InputError
from neuralreg.images import lps_flip
from neuralreg.writing import brief

SPACES = ("RAS", "LPS")


def read_landmarks(path: str | os.PathLike[str], space: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Fixed and moving landmarks, each (n, ndim), LPS millimetres.

    The csv has a header with fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z (no z in 2-D), in any
    order and beside other columns. ``_ras`` or ``_lps`` at the end of these names states the space; else
    ``space`` must. What the two say may not differ.
    """
    path = Path(path)
    name = f"landmarks {path}"
    if space is not None and space.upper() not in SPACES:
        raise InputError(f"unknown space '{space}' of landmarks; use RAS or LPS")
    if not path.is_file():
        raise InputError(f"{name} does not exist; check the path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} cannot be read as csv ({brief(error)})") from error
    columns, stated = _columns(rows[0] if rows else [], name)
    if stated and space and stated != space.upper():
        raise InputError(
            f"{name}: its header says {stated}, the option says {space.upper()}; leave the option out"
        )
    found = stated or (space or "").upper()
    if not found:
        raise InputError(f"{name}: nothing says whether its points are RAS or LPS; give --landmarks-space")
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows[1:]]).reshape(-1, len(columns))
    except (ValueError, IndexError) as error:
        raise InputError(f"{name}: a row does not hold {len(columns)} numbers ({brief(error)})") from error
    if not len(points):
        raise InputError(f"{name} holds no points")
    if not np.isfinite(points).all():
        raise InputError(f"{name} holds points that are NaN or infinite")
    ndim = len(columns) // 2
    sign = np.diag(lps_flip(ndim))[:-1] if found == "RAS" else np.ones(ndim)
    return points[:, :ndim] * sign, points[:, ndim:] * sign


def _columns(header: list[str], name: str) -> tuple[list[int], str]:
    """Column numbers of fixed x y (z), moving x y (z), and the space that the names state ("" if none)."""
    names = [cell.strip().lower() for cell in header]
    for suffix in ("_ras", "_lps", ""):
        for axes in ("xyz", "xy"):
            wanted = [f"{which}_{axis}{suffix}" for which in ("fixed", "moving") for axis in axes]
            if all(w in names for w in wanted):
                return [names.index(w) for w in wanted], suffix[1:].upper()
    raise InputError(
        f"{name}: the header must name the columns fixed_x, fixed_y, fixed_z, moving_x, moving_y, "
        f"moving_z (with _ras or _lps behind each, or give --landmarks-space)"
    )
