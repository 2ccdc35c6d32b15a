"""Published data sets as users have them on disk, with the preprocessing that was published with them.

Nothing is downloaded. TransMorph distributes IXI and OASIS as pickles of numpy arrays; pickles are code, so they are
read by an unpickler that knows numpy arrays and nothing else.
"""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.errors import InputError
from neuralreg.training.data import Source, Subject, Subjects, Window, atlas_pairs, subject_from
from neuralreg.training.layouts import Collection, everyone, file_source, read_learn2reg
from neuralreg.writing import brief

# The 30 structures that TransMorph and OFG evaluate on IXI, as FreeSurfer's ids.
IXI_LABELS = (
    2, 3, 4, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 28, 31,
    41, 42, 43, 46, 47, 49, 50, 51, 52, 53, 54, 60, 63,
)  # fmt: skip
OASIS_LABELS = tuple(range(1, 36))
# LPBA40 without cerebellum (181), brain stem (182) and background: the 54 that are evaluated.
LPBA_LABELS = (
    *range(21, 35), *range(41, 51), *range(61, 69), *range(81, 93), 101, 102, 121, 122, *range(161, 167)
)  # fmt: skip
ABDOMEN_WINDOW = (-500.0, 500.0)
VOLUMES = (".nii.gz", ".nii", ".img.gz", ".img")

_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how old protocols spell bytes
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}


class ArraysOnly(pickle.Unpickler):
    """Unpickles numpy arrays in tuples, lists and dicts; anything else raises UnpicklingError."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NUMPY:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not a numpy array")
        return super().find_class(module, name)


def load_arrays(path: Path, count: int) -> list[np.ndarray]:
    """The ``count`` numeric arrays of a pickle; InputError for any other content, of which nothing is run."""
    try:
        with path.open("rb") as file:
            content = ArraysOnly(file, encoding="latin1").load()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except (
        pickle.UnpicklingError,
        EOFError,
        ValueError,
        TypeError,
        AttributeError,
        ImportError,
        IndexError,
    ) as error:
        raise InputError(f"{path} is not a pickle of numpy arrays ({brief(error)})") from None
    arrays = list(content) if isinstance(content, list | tuple) else []
    if len(arrays) != count or any(
        not isinstance(a, np.ndarray) or a.dtype.kind not in "biuf" for a in arrays
    ):
        raise InputError(f"{path} does not hold {count} numeric arrays")
    return [array.squeeze() for array in arrays]


def kept(subject: Subject, labels: tuple[int, ...] | None) -> Subject:
    """The subject with all labels but these set to 0."""
    if labels is None or subject.labels is None:
        return subject
    inside = torch.isin(subject.labels, torch.tensor(labels))
    return Subject(subject.name, subject.image, subject.labels * inside, subject.spacing)


def unit(name: str, image: Any, labels: Any, window: Window | None, ids: tuple[int, ...] | None) -> Subject:
    """A subject whose published intensities lie in [0, 1]; a window scales them anew."""
    return kept(subject_from(name, image, labels, window=window, scaled=window is None), ids)


def quantiles(
    name: str, image: Any, labels: Any, window: Window | None, ids: tuple[int, ...] | None
) -> Subject:
    """A subject in scanner units, scaled as `neuralreg register` does."""
    return kept(subject_from(name, image, labels, window=window), ids)


Reader = Callable[..., Subject]


def pickled(
    path: Path, window: Window | None, ids: tuple[int, ...], read: Reader = unit, name: str = ""
) -> Source:
    """A subject of a pickle (image, labels), by default named after its folder and file."""
    name = name or f"{path.parent.name}/{path.stem}"

    def load() -> Subject:
        image, labels = load_arrays(path, 2)
        return read(name, image, labels, window=window, ids=ids)

    return Source(name, load)


def pickles(folder: Path, *, sample: int | None = None) -> list[Path]:
    """The pickles of a folder by name; ``sample`` of them as OFG's code draws them (Python's generator, seed 42)."""
    paths = sorted(folder.glob("*.pkl"), key=os.fspath)
    if not paths:
        raise InputError(f"data {folder}: no folder with files *.pkl")
    if sample is None:
        return paths
    if len(paths) < sample:
        raise InputError(f"data {folder}: {len(paths)} pickles, OFG draws {sample} of them")
    return sorted(random.Random(42).sample(paths, sample), key=os.fspath)


def read_ixi(path: Path, window: Window | None, keep: float, ofg: bool = False) -> Collection:
    """TransMorph's IXI: ``Train/*.pkl``, ``Val/*.pkl`` and ``atlas.pkl``, (image, labels), 160 x 192 x 224.

    The atlas is moved onto every subject; labels are FreeSurfer's, all but the 30 evaluated ones set to 0. ``Test`` is
    not read. ``ofg``: 200 training and 20 validation subjects, drawn as OFG's code draws them.
    """
    train = pickles(path / "Train", sample=200 if ofg else None)
    held = pickles(path / "Val", sample=20 if ofg else None)
    if not (path / "atlas.pkl").exists():
        raise InputError(f"data {path}: atlas.pkl is missing")
    sources = [pickled(file, window, IXI_LABELS) for file in (*train, *held)]
    sources.append(pickled(path / "atlas.pkl", window, IXI_LABELS, name="atlas"))
    subjects, atlas = Subjects(sources, keep), len(sources) - 1
    validation = range(len(train), atlas)
    return Collection(subjects, range(len(train)), None, atlas_pairs(atlas, validation), atlas)


def read_oasis(path: Path, window: Window | None, keep: float, ofg: bool = False) -> Collection:
    """OASIS, 35 labels, in any of three forms.

    Learn2Reg's folder with its ``OASIS_dataset.json``; neurite's folders with ``aligned_norm.nii.gz`` and
    ``aligned_seg35.nii.gz``; TransMorph's pickles, ``All/*.pkl`` (or ``Train``) of (image, labels) and ``Test/*.pkl``
    (or ``Val``) of validation pairs (moving, fixed, moving labels, fixed labels). ``ofg``: 200 training subjects and 19
    validation pairs of the pickles, drawn as OFG's code draws them.
    """
    train = next((path / name for name in ("All", "Train") if (path / name).is_dir()), None)
    if train is not None and any(train.glob("*.pkl")):
        test = next((path / name for name in ("Test", "Val") if (path / name).is_dir()), path / "Test")
        return _oasis_pickles(train, test, window, keep, ofg)
    if ofg:
        raise InputError(f"data {path}: layout oasis-ofg needs TransMorph's pickles in All and Test")
    read = partial(unit, ids=OASIS_LABELS)
    if any(path.glob("*dataset.json")):
        return read_learn2reg(path, window, keep, read)
    images = sorted(path.glob("*/aligned_norm.nii.gz"))
    if not images:
        raise InputError(
            f"data {path}: no OASIS_dataset.json, no */aligned_norm.nii.gz and no All/*.pkl in it"
        )
    return everyone([_neurite(image, window, read) for image in images], keep)


def _neurite(image: Path, window: Window | None, read: Reader) -> Source:
    labels = image.with_name("aligned_seg35.nii.gz")
    return file_source(image.parent.name, image, labels if labels.exists() else None, window, read)


def _oasis_pickles(train: Path, test: Path, window: Window | None, keep: float, ofg: bool) -> Collection:
    sources = [pickled(file, window, OASIS_LABELS) for file in pickles(train, sample=200 if ofg else None)]
    count, validation = len(sources), []
    for file in pickles(test, sample=19 if ofg else None):
        for side, place in (("fixed", 1), ("moving", 0)):

            def load(file: Path = file, side: str = side, place: int = place) -> Subject:
                arrays = load_arrays(file, 4)
                return unit(f"{file.stem} {side}", arrays[place], arrays[place + 2], window, OASIS_LABELS)

            sources.append(Source(f"{file.stem} {side}", load))
        validation.append((len(sources) - 2, len(sources) - 1))
    return Collection(Subjects(sources, keep), range(count), None, validation)


def read_lpba40(path: Path, window: Window | None, keep: float) -> Collection:
    """LPBA40: ``S01`` is the atlas, moved onto every other subject; 54 labels.

    Either the delineation space as distributed (``SNN/SNN.delineation.skullstripped.*`` with
    ``SNN.delineation.structure.label.*``, also without the folders), or ``*.pkl`` of (image, labels), here or in
    ``Train``.
    """
    files = [*sorted(path.glob("*.pkl")), *sorted((path / "Train").glob("*.pkl"))]
    sources = [pickled(file, window, LPBA_LABELS, quantiles, name=file.stem) for file in files]
    if not files:
        read = partial(quantiles, ids=LPBA_LABELS)
        for image in sorted(
            file for ending in VOLUMES for file in path.rglob(f"*.delineation.skullstripped{ending}")
        ):
            label = image.with_name(image.name.replace("skullstripped", "structure.label"))
            name = image.name.split(".")[0]
            sources.append(file_source(name, image, label if label.exists() else None, window, read))
    if not sources:
        raise InputError(f"data {path}: no *.delineation.skullstripped images and no *.pkl in it")
    whole = everyone(sources, keep)
    atlas = next((k for k, name in enumerate(whole.subjects.names) if name.lower() in ("s01", "s1")), None)
    if atlas is None:
        raise InputError(f"data {path}: the atlas S01 is missing")
    return Collection(whole.subjects, [k for k in whole.members if k != atlas], atlas=atlas)


def read_abdomen(path: Path, window: Window | None, keep: float) -> Collection:
    """Learn2Reg's AbdomenCTCT with its json; 192 x 160 x 256.

    OFG divides Hounsfield units by 500; images here lie in [0, 1], so -500 to 500 HU become 0 to 1 and what lies beyond
    is clipped, which is this project's reading.
    """
    return read_learn2reg(path, window or ABDOMEN_WINDOW, keep)


LAYOUTS: dict[str, Callable[[Path, Window | None, float], Collection]] = {
    "ixi": read_ixi,
    "ixi-ofg": partial(read_ixi, ofg=True),
    "oasis": read_oasis,
    "oasis-ofg": partial(read_oasis, ofg=True),
    "lpba40": read_lpba40,
    "abdomenctct": read_abdomen,
}
