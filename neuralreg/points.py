"""Points in csv files: read with whatever else stands in their rows, and written back at their new places."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuralreg.errors import InputError
from neuralreg.writing import atomic_path, brief

SPACES = ("RAS", "LPS")


@dataclass(frozen=True)
class PointTable:
    """``points`` (n, ndim) in millimetres of ``space``, "RAS" or "LPS"; the file's rows and the points' columns."""

    points: np.ndarray
    space: str
    header: list[str]
    rows: list[list[str]]
    columns: list[int]

    def write(self, path: str | os.PathLike[str], points: np.ndarray) -> None:
        """The same table with other points, whole or not at all; numbers to a ten-thousandth of a millimetre."""
        with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(self.header)
            for row, point in zip(self.rows, points, strict=True):
                changed = list(row)
                for column, value in zip(self.columns, point, strict=True):
                    changed[column] = f"{value:.4f}"
                writer.writerow(changed)


def read_points(path: str | os.PathLike[str], space: str | None = None) -> PointTable:
    """Points of a csv with the columns x, y, z (no z in 2-D) beside any others, in millimetres.

    ``_ras`` or ``_lps`` at the end of these names states the space; else ``space`` must. What the two say may not
    differ.
    """
    name = f"points {path}"
    header, rows = read_table(path, name)
    wanted = [["x", "y", "z"], ["x", "y"]]
    columns, stated = find_columns(header, wanted)
    if not columns:
        raise InputError(
            f"{name}: the header must name the columns x, y, z (with _ras or _lps behind each, or give --points-space)"
        )
    found = state_space(stated, space, name, "--points-space")
    return PointTable(numbers(rows, columns, name), found, header, rows, columns)


def read_table(path: str | os.PathLike[str], name: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a csv, empty lines left out; InputError where there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{name} does not exist; check the path")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{name} cannot be read as csv ({brief(error)})") from error
    return (rows[0], rows[1:]) if rows else ([], [])


def find_columns(header: list[str], wanted: list[list[str]]) -> tuple[list[int], str]:
    """Where the first of the ``wanted`` lists of names stands, and the space that the names end with ("" if none)."""
    names = [cell.strip().lower() for cell in header]
    for suffix in ("_ras", "_lps", ""):
        for columns in wanted:
            if all(f"{column}{suffix}" in names for column in columns):
                return [names.index(f"{column}{suffix}") for column in columns], suffix[1:].upper()
    return [], ""


def state_space(stated: str, given: str | None, name: str, flag: str) -> str:
    """The space that a header states or an option gives; InputError where none does, or they differ."""
    if given is not None and given.upper() not in SPACES:
        raise InputError(f"unknown space '{given}' of {name}; use RAS or LPS")
    if stated and given and stated != given.upper():
        raise InputError(
            f"{name}: its header says {stated}, the option says {given.upper()}; leave the option out"
        )
    found = stated or (given or "").upper()
    if not found:
        raise InputError(f"{name}: nothing says whether its points are RAS or LPS; give {flag}")
    return found


def numbers(rows: list[list[str]], columns: list[int], name: str) -> np.ndarray:
    """(n, columns) finite numbers; InputError otherwise."""
    try:
        points = np.array([[float(row[c]) for c in columns] for row in rows]).reshape(-1, len(columns))
    except (ValueError, IndexError) as error:
        raise InputError(f"{name}: a row does not hold {len(columns)} numbers ({brief(error)})") from error
    if not len(points):
        raise InputError(f"{name} holds no points")
    if not np.isfinite(points).all():
        raise InputError(f"{name} holds points that are NaN or infinite")
    return points
