"""Data sets as they lie on disk: an npz, a folder of NIfTI files, a table of pairs, Learn2Reg's json."""

from __future__ import annotations

import csv
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.images import read_geometry
from neuralreg.training.data import Source, Subject, Subjects, Window, subject_from
from neuralreg.writing import brief, suffix_of

IMAGE, LABEL = "_img.nii.gz", "_label.nii.gz"


@dataclass(frozen=True, eq=False)
class Collection:
    """Subjects with what their layout says about pairs, by place.

    ``members`` may be paired freely; ``pairs`` (fixed, moving), where the layout lists them, are all that is trained
    on. ``validation`` are pairs that the layout holds out. ``atlas`` is moved onto every member and is none itself.
    """

    subjects: Subjects
    members: Sequence[int]
    pairs: Sequence[tuple[int, int]] | None = None
    validation: Sequence[tuple[int, int]] | None = None
    atlas: int | None = None


def everyone(sources: Sequence[Source], keep: float) -> Collection:
    """All subjects by name, any two of them a pair."""
    subjects = Subjects(sorted(sources, key=lambda source: source.name), keep)
    return Collection(subjects, range(len(subjects)))


def read_collection(
    path: str | os.PathLike[str], layout: str = "auto", window: Window | None = None, keep: float = 4000
) -> Collection:
    """The data set at ``path``.

    Args:
        layout: "auto" tells npz, csv, json and folder by the path: ``.npz``, ``.csv``, ``.json``, a folder of
            ``*_img.nii.gz``. The published data sets of `neuralreg.training.published` must be named.
        window: intensities (low, high) that become 0 and 1; by default what the layout publishes, or the 0 and 0.999
            quantiles of every image.
        keep: megabytes of subjects that stay in memory once read.

    Headers are read at once, voxels with the first use. Array axes are taken as they are stored: subjects must share
    orientation and have been aligned before as the method needs it.

    Raises:
        InputError: no such path, an unknown layout, files that are missing or that do not fit the layout.
    """
    from neuralreg.training.published import LAYOUTS as PUBLISHED

    path = Path(path)
    if not path.exists():
        raise InputError(f"data {path} does not exist; check the path")
    readers: dict[str, Callable[[Path, Window | None, float], Collection]] = {
        "npz": read_npz, "csv": read_csv, "learn2reg": read_learn2reg, "folder": read_folder, **PUBLISHED
    }  # fmt: skip
    if layout == "auto":
        suffixes = {".npz": "npz", ".csv": "csv", ".json": "learn2reg"}
        layout = "folder" if path.is_dir() else suffixes.get(suffix_of(path), "")
        if not layout:
            raise InputError(
                f"data {path}: cannot tell its layout; name it by --layout {', '.join(sorted(readers))}"
            )
    if layout not in readers:
        raise InputError(f"there is no layout {layout!r}; choose from auto, {', '.join(sorted(readers))}")
    return readers[layout](path, window, keep)


def read_subjects(
    path: str | os.PathLike[str], layout: str = "auto", window: Window | None = None, keep: float = 4000
) -> Subjects:
    """The subjects of `read_collection`."""
    return read_collection(path, layout, window, keep).subjects


def file_source(
    name: str,
    image: Path,
    labels: Path | None,
    window: Window | None,
    read: Callable[..., Subject] = subject_from,
) -> Source:
    """A subject of image files; both headers are read now."""
    shape = read_geometry(image, role=f"image of subject {name}").shape
    if labels is not None:
        other = read_geometry(labels, role=f"label map of subject {name}").shape
        if other != shape:
            raise InputError(
                f"subject {name}: the label map {labels} has another shape than the image {image}"
            )
    return Source(name, partial(read, name, image, labels, window=window), shape)


def read_npz(path: Path, window: Window | None, keep: float) -> Collection:
    """``images`` (n, *sp), and where they are there ``labels`` (n, *sp), ``names`` (n,), ``spacing`` (ndim,).

    The arrays stay in memory in their own type.
    """

    @cache
    def arrays() -> dict[str, np.ndarray]:
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in ("images", "labels", "names", "spacing") if key in file}
        except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(
                f"data {path} is damaged, or not an npz of plain arrays ({brief(error)})"
            ) from None

    found = arrays()
    if "images" not in found:
        raise InputError(f"data {path} holds no array 'images'")
    images = found["images"]
    if images.ndim not in (3, 4):
        raise InputError(
            f"data {path}: 'images' has {images.ndim} axes; give (n, *sp) with 2 or 3 axes of space"
        )
    if "labels" in found and found["labels"].shape != images.shape:
        raise InputError(f"data {path}: 'labels' has shape {found['labels'].shape}, 'images' {images.shape}")
    if len(found.get("names", images)) != len(images):
        raise InputError(f"data {path}: 'names' has {len(found['names'])} entries, 'images' {len(images)}")
    spacing = found.get("spacing", np.ones(images.ndim - 1))
    if spacing.shape != (images.ndim - 1,):
        raise InputError(f"data {path}: 'spacing' has shape {spacing.shape}; give one number an axis")
    names = [
        str(n) for n in found.get("names", [f"{k:0{len(str(len(images)))}d}" for k in range(len(images))])
    ]

    def read(place: int) -> Subject:
        labels = arrays()["labels"][place] if "labels" in found else None
        return subject_from(
            names[place], arrays()["images"][place], labels, window=window, spacing=spacing.tolist()
        )

    return everyone([Source(n, partial(read, k), images.shape[1:]) for k, n in enumerate(names)], keep)


def read_folder(path: Path, window: Window | None, keep: float) -> Collection:
    """``NAME_img.nii.gz`` with, where it is there, ``NAME_label.nii.gz``."""
    images = sorted(path.glob(f"*{IMAGE}")) if path.is_dir() else []
    if not images:
        raise InputError(f"data {path}: no folder with files *{IMAGE}")
    return everyone(
        [file_source(name_of(image), image, label_beside(image), window) for image in images], keep
    )


def name_of(image: Path) -> str:
    """A subject's name by its image file."""
    name = image.name
    for suffix in (IMAGE, ".nii.gz", ".nii", ".img.gz", ".img", ".hdr"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return image.stem


def label_beside(image: Path) -> Path | None:
    """The ``_label`` file of an ``_img`` file, where there is one."""
    label = image.with_name(image.name.replace(IMAGE, LABEL))
    return label if label != image and label.exists() else None


def read_csv(path: Path, window: Window | None, keep: float) -> Collection:
    """Columns fixed, moving and perhaps fixed_label, moving_label; paths are relative to the table."""
    listing = Listing(path.parent, window)
    pairs = [
        (
            listing.add(row["fixed"], row.get("fixed_label")),
            listing.add(row["moving"], row.get("moving_label")),
        )
        for row in pair_table(path, ("fixed_label", "moving_label"))
    ]
    return listing.collection(keep, pairs=pairs)


def pair_table(path: Path, others: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a csv with the columns fixed and moving, and any of ``others``; both are filled in every row."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            table = csv.DictReader(file)
            rows, columns = list(table), set(table.fieldnames or ())
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"data {path} is not a table ({brief(error)})") from None
    if not {"fixed", "moving"} <= columns:
        raise InputError(
            f"data {path}: the first line must name the columns fixed,moving[,{','.join(others)}]"
        )
    unknown = columns - {"fixed", "moving", *others}
    if unknown:
        raise InputError(f"data {path}: unknown columns {', '.join(sorted(str(name) for name in unknown))}")
    for line, row in enumerate(rows, 2):
        if None in row:
            raise InputError(f"data {path}: line {line} has more cells than the first line names")
        if not row["fixed"] or not row["moving"]:
            raise InputError(f"data {path}: line {line} names no pair")
    return rows


class Listing:
    """Subjects gathered file by file; one that is named again is the same subject."""

    def __init__(
        self, folder: Path, window: Window | None, read: Callable[..., Subject] = subject_from
    ) -> None:
        self.folder, self.window, self.read = folder, window, read
        self.files: dict[str, tuple[Path, Path | None]] = {}

    def add(self, image: str, label: str | None = None) -> str:
        """Notes an image with its label map; its name is the path without suffix."""
        file = self.folder / image.strip()
        name = os.path.normpath(Path(image.strip()).parent / name_of(file))
        labels = self.folder / label.strip() if label and label.strip() else None
        before = self.files.get(name)
        if before is not None and labels is not None and before[1] not in (None, labels):
            raise InputError(f"image {file} has two label maps, {before[1]} and {labels}")
        self.files[name] = (file, labels or (before[1] if before else None))
        return name

    def collection(
        self,
        keep: float,
        members: Sequence[str] | None = None,
        pairs: Sequence[tuple[str, str]] | None = None,
        validation: Sequence[tuple[str, str]] | None = None,
    ) -> Collection:
        """The subjects by name; members, pairs and validation pairs by their names."""
        sources = [file_source(name, *files, self.window, self.read) for name, files in self.files.items()]
        whole = everyone(sources, keep)
        place = {name: k for k, name in enumerate(whole.subjects.names)}

        def places(named: Sequence[tuple[str, str]] | None) -> list[tuple[int, int]] | None:
            return None if named is None else [(place[fixed], place[moving]) for fixed, moving in named]

        chosen = whole.members if members is None else sorted(place[name] for name in members)
        return replace(whole, members=chosen, pairs=places(pairs), validation=places(validation))


def read_learn2reg(
    path: Path, window: Window | None, keep: float, read: Callable[..., Subject] = subject_from
) -> Collection:
    """Learn2Reg's ``*_dataset.json``, or a folder that holds one.

    Trained on are its ``training_paired_images``, or else any two of its ``training`` images; validated on its
    ``registration_val`` pairs, whose images are left out of the training. Label maps are those that ``training`` names,
    or that lie in ``labelsTr`` under the image's name. Test images, masks and keypoints are not read.
    """
    path, content = learn2reg_content(path)
    try:
        training = [{"image": e} if isinstance(e, str) else e for e in content.get("training", [])]
        images = [(str(entry["image"]), entry.get("label")) for entry in training]
    except (TypeError, KeyError, AttributeError) as error:
        raise InputError(f"data {path} is not a data set of Learn2Reg ({brief(error)})") from None
    paired, held = (
        learn2reg_pairs(path, content, key) for key in ("training_paired_images", "registration_val")
    )
    listing = Listing(path.parent, window, read)

    def add(image: str, label: Any = None) -> str:
        return listing.add(image, label if isinstance(label, str) else learn2reg_label(path, image))

    members = [add(image, label) for image, label in images]
    validation = [(add(fixed), add(moving)) for fixed, moving in held]
    pairs = [(add(fixed), add(moving)) for fixed, moving in paired]
    out = {name for pair in validation for name in pair}
    return listing.collection(
        keep,
        [name for name in members if name not in out],
        [pair for pair in pairs if out.isdisjoint(pair)] if pairs else None,
        validation or None,
    )


def learn2reg_content(path: Path) -> tuple[Path, dict[str, Any]]:
    """The ``*_dataset.json`` at ``path``, or the only one in the folder ``path``, and what it holds."""
    if path.is_dir():
        found = sorted(path.glob("*dataset.json"))
        if len(found) != 1:
            raise InputError(f"data {path}: expected one *dataset.json in it, found {len(found)}")
        path = found[0]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"data {path} is not a data set of Learn2Reg ({brief(error)})") from None
    if not isinstance(content, dict):
        raise InputError(f"data {path} is not a data set of Learn2Reg (it holds no object)")
    return path, content


def learn2reg_pairs(path: Path, content: dict[str, Any], key: str) -> list[tuple[str, str]]:
    """The pairs (fixed, moving) that a data set lists under ``key``, as written; none without it."""
    try:
        return [(str(entry["fixed"]), str(entry["moving"])) for entry in content.get(key, [])]
    except (TypeError, KeyError) as error:
        raise InputError(
            f"data {path} is not a data set of Learn2Reg ({key}: {type(error).__name__} {brief(error)})"
        ) from None


def learn2reg_label(path: Path, image: str) -> str | None:
    """The label map that lies in ``labelsTr`` (or the like) under an image's name, where there is one."""
    guess = image.replace("imagesT", "labelsT")
    return guess if guess != image and (path.parent / guess).exists() else None
