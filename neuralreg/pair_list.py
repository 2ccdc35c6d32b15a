"""Which pairs a batch registers: a table, a folder of images, or a data set of Learn2Reg. Voxels are not read here."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path

from neuralreg.errors import InputError
from neuralreg.training.data import AllPairs, ring
from neuralreg.training.layouts import (
    IMAGE,
    label_beside,
    learn2reg_content,
    learn2reg_label,
    learn2reg_pairs,
    name_of,
    pair_table,
)
from neuralreg.writing import suffix_of

FOLDER_PAIRS = {
    "ring": ring,
    "all": lambda members: list(AllPairs(members)),
}


@dataclass(frozen=True)
class PairFiles:
    """A pair by its files. ``name`` names its folder in the results and is unique in a list."""

    name: str
    fixed: Path
    moving: Path
    fixed_label: Path | None = None
    moving_label: Path | None = None
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    initial_transform: Path | None = None
    landmarks: Path | None = None

    def inputs(self) -> dict[str, str]:
        """The files that there are, by role, as absolute paths."""
        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}
        return {role: os.path.abspath(path) for role, path in given.items() if path is not None}


ROLES = tuple(field.name for field in fields(PairFiles) if field.name not in ("fixed", "moving"))


def read_pairs(path: str | os.PathLike[str], choice: str | None = None) -> list[PairFiles]:
    """The pairs that ``path`` lists.

    Args:
        path: a .csv with the columns fixed, moving and any of name, fixed_label, moving_label, fixed_mask,
            moving_mask, initial_transform and landmarks, paths relative to the table; or a folder of
            ``NAME_img.nii.gz`` with ``NAME_label.nii.gz`` where there are label maps; or the .json of a Learn2Reg data
            set, or the folder that holds it.
        choice: of a folder "ring" (each image fixed once, the next one moving; the default) or "all" ordered pairs; of
            a json the key that lists them, by default registration_val. A table says itself and takes none.

    Raises:
        InputError: no such path, no pairs, names that cannot be folders or that occur twice.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"pairs {path} do not exist; check the path")
    if suffix_of(path) == ".csv":
        if choice is not None:
            raise InputError(f"pairs {path}: a table names its pairs itself; leave --pairs {choice} out")
        pairs = _of_table(path)
    elif path.is_dir() and not any(path.glob("*dataset.json")):
        pairs = _of_folder(path, choice or "ring")
    elif path.is_dir() or suffix_of(path) == ".json":
        pairs = _of_learn2reg(path, choice or "registration_val")
    else:
        raise InputError(
            f"pairs {path}: give a .csv, a folder of images, or the .json of a Learn2Reg data set"
        )
    if not pairs:
        raise InputError(f"pairs {path}: there is no pair in it")
    seen: set[str] = set()
    for pair in pairs:
        if pair.name in seen:
            raise InputError(
                f"pairs {path}: two pairs are called {pair.name}; give each its own in a column 'name'"
            )
        if pair.name.startswith(".") or any(c in pair.name for c in "/\\\0"):
            raise InputError(f"pairs {path}: {pair.name!r} cannot be the name of a folder")
        seen.add(pair.name)
    return pairs


def _of_table(path: Path) -> list[PairFiles]:
    pairs = []
    for row in pair_table(path, ROLES):
        files = {
            role: path.parent / cell.strip()
            for role, cell in row.items()
            if role != "name" and cell and cell.strip()
        }
        name = (row.get("name") or "").strip()
        pairs.append(PairFiles(name or _joined(files["fixed"], files["moving"]), **files))
    return pairs


def _of_folder(path: Path, choice: str) -> list[PairFiles]:
    if choice not in FOLDER_PAIRS:
        raise InputError(f"pairs {path}: --pairs {choice} is not known; use {' or '.join(FOLDER_PAIRS)}")
    images = sorted(path.glob(f"*{IMAGE}"))
    if len(images) < 2:
        raise InputError(f"pairs {path}: found {len(images)} files *{IMAGE}; a pair needs two")
    return [
        PairFiles(
            _joined(images[a], images[b]),
            images[a],
            images[b],
            label_beside(images[a]),
            label_beside(images[b]),
        )
        for a, b in FOLDER_PAIRS[choice](range(len(images)))
    ]


def _of_learn2reg(path: Path, key: str) -> list[PairFiles]:
    path, content = learn2reg_content(path)
    if key not in content:
        lists = sorted(name for name, value in content.items() if isinstance(value, list))
        raise InputError(f"pairs {path}: there is no list '{key}'; --pairs takes one of {', '.join(lists)}")
    pairs = []
    for fixed, moving in learn2reg_pairs(path, content, key):
        labels = [learn2reg_label(path, image) for image in (fixed, moving)]
        files = [path.parent / image for image in (fixed, moving)]
        beside = [None if label is None else path.parent / label for label in labels]
        pairs.append(PairFiles(_joined(*files), *files, *beside))
    return pairs


def _joined(fixed: Path, moving: Path) -> str:
    return f"{name_of(fixed)}_{name_of(moving)}"
