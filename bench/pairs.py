"""The real pairs by name, each with what to register, how to start and what to score.

A name is ``set/fixed-moving``: ``brain1mm/vxm-tut1`` has sub-vxm as the fixed image. The images are read from the
folder of the real data: NEURALREG_DATA, or shared/data beside the checkout.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from neuralreg.affines import voxel_affine
from neuralreg.errors import InputError
from neuralreg.images import Image, lps_flip, read_image, read_labels, read_mask, scale_intensity
from neuralreg.landmarks import read_landmarks
from neuralreg.pair import Pair

CT_WINDOW = (-1000.0, 400.0)  # Hounsfield units from air to bone: lung and soft tissue


@dataclass(frozen=True, eq=False)
class RealPair:
    """Two images and what is known about how they correspond.

    Attributes:
        name: set/fixed-moving.
        fixed, moving: what the tools get; a file is given to them as it lies.
        fixed_labels, moving_labels: label maps, with ``labels``, the ids that count.
        mask: (*fixed grid) bool: where folds and smoothness are counted beside the whole grid.
        fine_labels: label maps of a finer grid in the same space, where there are such, scored as well.
        landmarks: corresponding points (n, 3) of the fixed and the moving image, LPS millimetres.
        initial: affine (ndim+1, ndim+1) from fixed to moving points, RAS millimetres, where a tool has to start.
        window: intensities that become 0 and 1.
    """

    name: str
    fixed: Path | Image
    moving: Path | Image
    fixed_labels: Image
    moving_labels: Image
    labels: tuple[int, ...]
    mask: Tensor
    fine_labels: tuple[Image, Image] | None = None
    landmarks: tuple[np.ndarray, np.ndarray] | None = None
    initial: np.ndarray | None = None
    window: tuple[float, float] | None = None


def prepare(
    fixed: Path | Image,
    moving: Path | Image,
    initial: np.ndarray | None = None,
    window: tuple[float, float] | None = None,
) -> tuple[Pair, Image, Image]:
    """What a fit is given, as `neuralreg.register` prepares it, and both images as read."""
    images = read_image(fixed, role="fixed image"), read_image(moving, role="moving image")
    matrix = np.eye(images[0].ndim + 1) if initial is None else initial
    affine = torch.from_numpy(voxel_affine(images[0].geometry, images[1].geometry, matrix)).float()
    scaled = [scale_intensity(image, window=window)[0][None, None] for image in images]
    return Pair(scaled[0], scaled[1], affine), *images


def data_folder() -> Path:
    """The folder of the real data.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get("NEURALREG_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        raise InputError(
            f"no real data: {folder} does not exist; set NEURALREG_DATA to the folder that holds it"
        )
    return folder


def find_names(words: str) -> list[str]:
    """The names of pairs behind words with commas between: whole sets, or single pairs.

    Raises:
        InputError: a word names neither.
    """
    names: list[str] = []
    for word in filter(None, (part.strip() for part in words.split(","))):
        group, slash, members = word.partition("/")
        if group not in SETS or (slash and members.count("-") != 1):
            raise InputError(
                f"there are no pairs {word!r}; sets are {', '.join(SETS)}, a pair is set/fixed-moving"
            )
        names += [word] if slash else [f"{group}/{f}-{m}" for f, m in SETS[group].members()]
    if not names:
        raise InputError(f"no pair is named; sets are {', '.join(SETS)}")
    return names


def load_pair(name: str) -> RealPair:
    """The pair of a name.

    Raises:
        InputError: no such pair, or no such data.
    """
    (name,) = find_names(name)
    group, _, members = name.partition("/")
    fixed, moving = members.split("-")
    return SETS[group].load(name, fixed, moving)


def _brain(name: str, fixed: str, moving: str) -> RealPair:
    folder = data_folder() / "brain_mr_oasis"
    suffix = "_2mm" if name.startswith("brain2mm") else ""
    labels = tuple(json.loads((folder / "labels.json").read_text())["labels30"])

    def segmentations(suffix: str) -> tuple[Image, Image]:
        first, second = (read_labels(folder / f"sub-{who}_seg{suffix}.nii.gz") for who in (fixed, moving))
        return first, second

    target, source = segmentations(suffix)
    return RealPair(
        name,
        folder / f"sub-{fixed}_t1{suffix}.nii.gz",
        folder / f"sub-{moving}_t1{suffix}.nii.gz",
        target,
        source,
        labels,
        target.data > 0,
        fine_labels=segmentations("") if suffix else None,
    )


def _hippocampus(name: str, fixed: str, moving: str) -> RealPair:
    stack = _stack("hippocampus_mr_msd/hippocampus.npz")
    return _stacked(name, stack, _index(fixed, stack), _index(moving, stack), (1, 2))


def _slices(name: str, fixed: str, moving: str) -> RealPair:
    stack = _stack("brain2d_oasis_trt20/slices.npz")
    return _stacked(name, stack, _index(fixed, stack), _index(moving, stack), _common_labels())


def _lung_ct(name: str, fixed: str, moving: str) -> RealPair:
    if (fixed, moving) != ("fixed", "moving"):  # the landmarks and the start have a direction
        raise InputError(f"there are no pairs {name!r}; this set has lungct/fixed-moving alone")
    folder = data_folder() / "lung_ct_elastix"
    shift = np.eye(4)
    shift[:3, 3] = json.loads((folder / "prealign.json").read_text())["translation_fixed_to_moving_lps_mm"]
    lungs = [read_mask(folder / f"{role}_lung_mask.nii.gz") for role in (fixed, moving)]
    target, source = (Image(lung.data.to(torch.int32), lung.affine) for lung in lungs)
    return RealPair(
        name,
        folder / f"{fixed}_ct.nii.gz",
        folder / f"{moving}_ct.nii.gz",
        target,
        source,
        (1,),
        lungs[0].data,
        landmarks=read_landmarks(folder / "landmarks.csv"),
        initial=lps_flip(3) @ shift @ lps_flip(3),
        window=CT_WINDOW,
    )


def _lung_mr(name: str, fixed: str, moving: str) -> RealPair:
    folder = data_folder() / "lung_mr_proton"
    return RealPair(
        name,
        folder / f"{fixed}_mr.nii.gz",
        folder / f"{moving}_mr.nii.gz",
        read_labels(folder / f"{fixed}_lobes.nii.gz"),
        read_labels(folder / f"{moving}_lobes.nii.gz"),
        (1, 2, 3, 4, 5),
        read_mask(folder / f"{fixed}_lungs.nii.gz").data,
    )


@functools.cache
def _stack(file: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, each (subjects, *sp), of an npz file."""
    with np.load(data_folder() / file) as content:
        return content["images"], content["labels"]


def _index(word: str, stack: tuple[np.ndarray, np.ndarray]) -> int:
    if not word.isdecimal() or int(word) >= len(stack[0]):
        raise InputError(f"there is no subject {word!r}; give an index below {len(stack[0])}")
    return int(word)


def _stacked(
    name: str, stack: tuple[np.ndarray, np.ndarray], fixed: int, moving: int, labels: tuple[int, ...]
) -> RealPair:
    """Two subjects of a stack, on a grid of one millimetre."""
    images, maps = stack
    affine = np.eye(images[0].ndim + 1)
    target, source = (Image(torch.from_numpy(maps[i].astype(np.int32)), affine) for i in (fixed, moving))
    first, second = (Image(torch.from_numpy(images[i]), affine) for i in (fixed, moving))
    return RealPair(name, first, second, target, source, labels, target.data > 0)


@functools.cache
def _common_labels(least: int = 20) -> tuple[int, ...]:
    """The labels that have more than ``least`` pixels in every slice."""
    _, maps = _stack("brain2d_oasis_trt20/slices.npz")
    kept = []
    for one in maps:
        values, counts = np.unique(one[one > 0], return_counts=True)
        kept.append(set(values[counts > least].tolist()))
    return tuple(sorted(set.intersection(*kept)))


def _random_slices() -> list[tuple[str, str]]:
    """Ten different pairs of two different slices."""
    rng = np.random.default_rng(0)
    found: list[tuple[str, str]] = []
    while len(found) < 10:
        fixed, moving = rng.choice(16, 2, replace=False)
        if (pair := (str(fixed), str(moving))) not in found:
            found.append(pair)
    return found


@dataclass(frozen=True)
class PairSet:
    """How the pairs of a set are called, fixed before moving, and read."""

    members: Callable[[], list[tuple[str, str]]]
    load: Callable[[str, str, str], RealPair]


BRAINS = [("vxm", "tut1"), ("tut1", "tut2"), ("tut2", "vxm")]
HIPPOCAMPI = "16-27 20-8 42-34 51-4 52-57 10-2 44-23 24-43 11-35 30-18"

SETS = {
    "brain1mm": PairSet(lambda: BRAINS, _brain),
    "brain2mm": PairSet(lambda: BRAINS, _brain),
    "hippocampus": PairSet(
        lambda: [(pair.split("-")[0], pair.split("-")[1]) for pair in HIPPOCAMPI.split()], _hippocampus
    ),
    "lungct": PairSet(lambda: [("fixed", "moving")], _lung_ct),
    "lungmr": PairSet(lambda: [("0004", "0006"), ("0004", "0007"), ("0006", "0007")], _lung_mr),
    "brain2d": PairSet(_random_slices, _slices),
}
