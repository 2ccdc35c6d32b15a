"""Published data sets: tiny files of the same form, and pickles that are more than arrays."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralreg.errors import InputError
from neuralreg.training.layouts import read_collection
from neuralreg.training.published import IXI_LABELS, LPBA_LABELS, OASIS_LABELS, load_arrays, pickles
from neuralreg.training.split import split
from tests.small import save
from tests.small_training import SHAPE, pairs_of, volume


def unit(seed: int) -> np.ndarray:
    return volume(seed) / 200


def ids(values: Any, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).choice(np.array(values), SHAPE).astype(np.int16)


def dump(path: Path, *arrays: np.ndarray, protocol: int = 4) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(arrays, protocol=protocol))


def test_counts_of_labels() -> None:
    assert (len(set(IXI_LABELS)), len(set(OASIS_LABELS)), len(set(LPBA_LABELS))) == (30, 35, 54)


def test_ixi(tmp_path: Path) -> None:
    stored = [*range(80), 251, 255]
    for place, name in enumerate(
        ("Train/subject_1", "Train/subject_2", "Val/subject_3", "Test/subject_4", "atlas")
    ):
        dump(tmp_path / f"{name}.pkl", unit(place), ids(stored, place))
    train, held = split(read_collection(tmp_path, "ixi"))
    assert pairs_of(train) == {("Train/subject_1", "atlas"), ("Train/subject_2", "atlas")}
    assert pairs_of(held) == {("Val/subject_3", "atlas")}
    subject = train.subjects[0]
    np.testing.assert_array_equal(subject.image[0], unit(0))
    found = subject.labels
    assert found is not None
    raw = ids(stored, 0)
    np.testing.assert_array_equal(found, np.where(np.isin(raw, IXI_LABELS), raw, 0))
    with pytest.raises(InputError, match="OFG draws 200"):
        read_collection(tmp_path, "ixi-ofg")


def test_ofgs_draw(tmp_path: Path) -> None:
    """The draw is Python's own, of the sorted paths with seed 42: [81, 14, 3] of 100, whatever machine."""
    for k in range(100):
        (tmp_path / f"p{k:03d}.pkl").write_bytes(b"")
    assert [path.stem for path in pickles(tmp_path, sample=3)] == ["p003", "p014", "p081"]


def test_oasis_pickles(tmp_path: Path) -> None:
    for k in (1, 2, 3):
        dump(tmp_path / f"All/p_000{k}.pkl", unit(k), ids(range(36), k))
    dump(tmp_path / "Test/p_0438_0439.pkl", unit(4), unit(5), ids(range(36), 4), ids(range(36), 5))
    train, held = split(read_collection(tmp_path, "oasis"))
    assert len(train) == 6
    assert pairs_of(held) == {("p_0438_0439 fixed", "p_0438_0439 moving")}
    assert held is not None
    batch = held.batch([0])
    np.testing.assert_array_equal(batch.moving[0, 0], unit(4))
    np.testing.assert_array_equal(batch.fixed[0, 0], unit(5))
    assert batch.fixed_labels is not None
    np.testing.assert_array_equal(batch.fixed_labels[0, 0], ids(range(36), 5))


def test_oasis_of_neurite(tmp_path: Path) -> None:
    for k in range(1, 5):
        folder = tmp_path / f"OASIS_OAS1_000{k}_MR1"
        folder.mkdir()
        save(folder / "aligned_norm.nii.gz", unit(k))
        save(folder / "aligned_seg35.nii.gz", ids(range(36), k))
    train, held = split(read_collection(tmp_path, "oasis"))
    assert train.subjects.names[0] == "OASIS_OAS1_0001_MR1"
    assert len(train) == 2
    assert len(held or ()) == 2
    np.testing.assert_allclose(train.subjects[0].image[0], unit(1), atol=1e-6)


def test_intensities_that_are_not_the_published_ones(tmp_path: Path) -> None:
    for name in ("All/a", "All/b", "All/c"):
        dump(tmp_path / f"{name}.pkl", volume(0), ids(range(36)))
    dump(tmp_path / "Test/p.pkl", unit(4), unit(5), ids(range(36), 4), ids(range(36), 5))
    with pytest.raises(InputError, match=r"expected intensities in \[0, 1\]"):
        read_collection(tmp_path, "oasis").subjects[0]
    windowed = read_collection(tmp_path, "oasis", window=(0.0, 200.0)).subjects[0]
    np.testing.assert_allclose(windowed.image[0], unit(0), atol=1e-6)


@pytest.mark.parametrize("form", ["pickles", "delineation space"])
def test_lpba40(tmp_path: Path, form: str) -> None:
    stored = [*LPBA_LABELS, 181, 182]
    for k in range(1, 6):
        if form == "pickles":
            dump(tmp_path / f"Train/S0{k}.pkl", volume(k), ids(stored, k))
        else:
            folder = tmp_path / f"S0{k}"
            folder.mkdir()
            save(folder / f"S0{k}.delineation.skullstripped.nii.gz", volume(k))
            save(folder / f"S0{k}.delineation.structure.label.nii.gz", ids(stored, k))
    train, held = split(read_collection(tmp_path, "lpba40"))
    assert pairs_of(train) == {("S02", "S01"), ("S03", "S01")}
    assert pairs_of(held) == {("S04", "S01"), ("S05", "S01")}
    found = train.subjects[0].labels
    assert found is not None
    assert set(found.unique().tolist()) == {0, *ids(stored, 1).ravel().tolist()} - {181, 182}
    assert float(train.subjects[0].image.max()) == 1


def test_abdomen_window(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    for k in (1, 2):
        save(tmp_path / f"imagesTr/AbdomenCTCT_000{k}_0000.nii.gz", volume(k) * 10 - 1000)
    entries = ", ".join(f'"./imagesTr/AbdomenCTCT_000{k}_0000.nii.gz"' for k in (1, 2))
    (tmp_path / "AbdomenCTCT_dataset.json").write_text(f'{{"training": [{entries}]}}')
    subject = read_collection(tmp_path, "abdomenctct").subjects[0]
    np.testing.assert_allclose(subject.image[0], np.clip((volume(1) * 10 - 500) / 1000, 0, 1), atol=1e-6)
    assert subject.labels is None


class Evil:
    """Pickles as a call: unpickling it with Python's own unpickler makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_pickles_run_nothing(tmp_path: Path) -> None:
    victim = tmp_path / "made"
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps((unit(0), Evil(victim))))
    with pytest.raises(InputError, match="not a numpy array"):
        load_arrays(evil, 2)
    assert not victim.exists()
    pickle.loads(evil.read_bytes())
    assert victim.exists(), "the file would have done it"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_every_protocol(tmp_path: Path, protocol: int) -> None:
    dump(tmp_path / "a.pkl", unit(0), ids([1, 2]), protocol=protocol)
    image, labels = load_arrays(tmp_path / "a.pkl", 2)
    np.testing.assert_array_equal(image, unit(0))
    assert labels.dtype == np.int16


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", pickle.dumps((np.ones(3),)), pickle.dumps([{}, {}]), b"text"]
)
def test_broken_pickles_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pkl"):
        load_arrays(tmp_path / "a.pkl", 2)


@pytest.mark.parametrize("layout", ["ixi", "oasis", "lpba40", "abdomenctct", "nonesuch"])
def test_an_empty_folder_is_none_of_them(tmp_path: Path, layout: str) -> None:
    with pytest.raises(InputError):
        read_collection(tmp_path, layout)
