"""Data sets on disk as subjects and pairs, which pairs are trained and validated on, and augmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.images import scale_intensity
from neuralreg.training.augment import Augmentation, to_voxels
from neuralreg.training.data import AllPairs, Batch, Pairs, Source, Subject, Subjects, evenly, ring, seed_of
from neuralreg.training.layouts import Collection, read_collection, read_subjects
from neuralreg.training.split import split, with_atlas
from tests.small import save
from tests.small_training import SHAPE, pairs_of, volume


def labels(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(100 + seed).integers(0, 3, shape).astype(np.int16)


def memory(
    count: int, shape: tuple[int, ...] = SHAPE, keep: float = 1.0, read: list[int] | None = None
) -> Collection:
    """A data set in memory; ``read`` gathers which subjects were read."""

    def subject(k: int) -> Subject:
        if read is not None:
            read.append(k)
        image = torch.from_numpy(volume(k, shape))[None] / 200
        return Subject(f"s{k}", image, torch.from_numpy(labels(k, shape)).long(), (1.0,) * len(shape))

    subjects = Subjects([Source(f"s{k}", lambda k=k: subject(k), shape) for k in range(count)], keep)
    return Collection(subjects, range(count))


def test_npz(tmp_path: Path) -> None:
    images = np.stack([volume(k) for k in range(3)])
    maps = np.stack([labels(k) for k in range(3)])
    np.savez(tmp_path / "d.npz", images=images, labels=maps, names=["c", "a", "b"], spacing=[1.0, 2.0, 3.0])
    subjects = read_subjects(tmp_path / "d.npz")
    assert subjects.names == ["a", "b", "c"]
    assert subjects.shape == SHAPE
    first = subjects[0]
    assert (first.name, first.spacing) == ("a", (1.0, 2.0, 3.0))
    expected = scale_intensity(torch.from_numpy(images[1]))[0]
    torch.testing.assert_close(first.image, expected[None], rtol=0, atol=0)
    assert first.image.dtype == torch.float32
    assert first.labels is not None
    assert first.labels.dtype == torch.int64
    np.testing.assert_array_equal(first.labels.numpy(), maps[1])
    windowed = read_subjects(tmp_path / "d.npz", window=(50.0, 150.0))[0]
    np.testing.assert_allclose(windowed.image[0], np.clip((images[1] - 50) / 100, 0, 1), atol=1e-6)


def test_folder_with_some_labels(tmp_path: Path) -> None:
    for k, name in enumerate(("x", "y", "z")):
        save(tmp_path / f"{name}_img.nii.gz", volume(k))
        if name != "y":
            save(tmp_path / f"{name}_label.nii.gz", labels(k))
    subjects = read_subjects(tmp_path)
    assert subjects.names == ["x", "y", "z"]
    assert [subject.labels is not None for subject in subjects] == [True, False, True]
    assert subjects[0].spacing == (2.0, 2.0, 2.0)
    batch = Pairs(subjects, [(0, 1), (2, 0)]).batch([0, 1])
    assert batch.fixed.shape == batch.moving.shape == (2, 1, *SHAPE)
    assert batch.moving_labels is None
    assert batch.fixed_labels is not None
    np.testing.assert_array_equal(batch.fixed_labels[1, 0], labels(2))


def test_csv_lists_its_pairs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for k in range(4):
        save(tmp_path / f"in/{k}.nii.gz", volume(k))
        save(tmp_path / f"in/{k}l.nii.gz", labels(k))
    rows = ["in/0.nii.gz,in/1.nii.gz,in/0l.nii.gz,in/1l.nii.gz", "in/1.nii.gz,in/0.nii.gz,,"]
    rows += ["in/2.nii.gz,in/3.nii.gz,in/2l.nii.gz,in/3l.nii.gz"]
    table = tmp_path / "pairs.csv"
    table.write_text("\n".join(["fixed,moving,fixed_label,moving_label", *rows]) + "\n")
    collection = read_collection(table)
    assert collection.subjects.names == ["in/0", "in/1", "in/2", "in/3"]
    assert all(subject.labels is not None for subject in collection.subjects)
    train, held = split(collection)
    assert pairs_of(train) == {("in/0", "in/1"), ("in/1", "in/0")}
    assert pairs_of(held) == {("in/2", "in/3")}


def test_learn2reg(tmp_path: Path) -> None:
    for folder in ("imagesTr", "labelsTr"):
        (tmp_path / folder).mkdir()
    names = [f"OASIS_{k:04d}_0000.nii.gz" for k in range(5)]
    for k, name in enumerate(names):
        save(tmp_path / "imagesTr" / name, volume(k))
        save(tmp_path / "labelsTr" / name, labels(k))
    content: dict[str, Any] = {
        "name": "OASIS",
        "training": [{"image": f"./imagesTr/{n}", "label": f"./labelsTr/{n}"} for n in names],
        "registration_val": [{"fixed": f"./imagesTr/{names[3]}", "moving": f"./imagesTr/{names[4]}"}],
        "test": [{"image": "./imagesTs/none.nii.gz"}],
    }
    path = tmp_path / "OASIS_dataset.json"
    path.write_text(json.dumps(content))
    train, held = split(read_collection(path))
    short = [f"imagesTr/OASIS_{k:04d}_0000" for k in range(5)]
    assert pairs_of(held) == {(short[3], short[4])}
    assert len(train) == 6
    assert not {short[3], short[4]} & {name for pair in train.names() for name in pair}
    content["training_paired_images"] = [
        {"fixed": f"./imagesTr/{names[a]}", "moving": f"./imagesTr/{names[b]}"} for a, b in ((0, 1), (2, 3))
    ]
    path.write_text(json.dumps(content))
    train, _ = split(read_collection(path))
    assert pairs_of(train) == {(short[0], short[1])}
    assert train.subjects[0].labels is not None


def test_atlas_moves_onto_every_subject(tmp_path: Path) -> None:
    for k, name in enumerate(("a", "b", "c", "d")):
        save(tmp_path / f"{name}_img.nii.gz", volume(k))
    (tmp_path / "t").mkdir()
    atlas = save(tmp_path / "t/atlas_img.nii.gz", volume(9))
    save(tmp_path / "t/atlas_label.nii.gz", labels(9))
    train, held = split(with_atlas(read_collection(tmp_path), atlas))
    assert pairs_of(train) == {("a", "atlas"), ("b", "atlas")}
    assert pairs_of(held) == {("c", "atlas"), ("d", "atlas")}
    assert train.batch([0]).moving_labels is not None
    train, held = split(with_atlas(read_collection(tmp_path), "b"), validation=1)
    assert pairs_of(train) == {("a", "b"), ("c", "b")}
    assert pairs_of(held) == {("d", "b")}


def test_split_by_name() -> None:
    train, held = split(memory(12), test=2)
    assert len(train) == 8 * 7
    assert pairs_of(held) == {("s8", "s9"), ("s9", "s8")}
    train, held = split(memory(12), validation=4, most=2)
    assert train.members == list(range(8))
    assert pairs_of(held) == {("s8", "s9"), ("s10", "s11")}
    train, held = split(memory(3), validation=0)
    assert held is None
    assert len(train) == 6
    train, held = split(memory(4), validation=memory(3))
    assert len(train) == 12
    assert pairs_of(held) == {("s0", "s1"), ("s1", "s2"), ("s2", "s0")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"test": 5}, "leaves none"),
        ({"validation": 4}, "makes no pair"),
        ({"validation": 5}, "leave none"),
        ({"validation": 1}, "make no pair"),
        ({"test": -1}, "negative"),
    ],
)
def test_split_says_what_is_missing(arguments: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        split(memory(5), **arguments)  # type: ignore[arg-type]


def test_listed_pairs_that_all_touch_held_out_subjects() -> None:
    collection = memory(4)
    listed = Collection(collection.subjects, range(4), pairs=[(0, 3), (2, 3)])
    with pytest.raises(InputError, match="no pair is left"):
        split(listed)


def test_all_pairs_are_every_ordered_pair_once() -> None:
    pairs = AllPairs([3, 5, 8])
    assert len(pairs) == 6
    assert set(pairs) == {(a, b) for a in (3, 5, 8) for b in (3, 5, 8) if a != b}
    assert len(AllPairs([4])) == 0
    assert ring([1, 2, 3]) == [(1, 2), (2, 3), (3, 1)]
    assert evenly(ring(range(10)), 3) == [(0, 1), (3, 4), (6, 7)]


def test_draws_depend_on_seed_and_step_alone() -> None:
    pairs = Pairs(memory(6).subjects)
    first = pairs.draw(0, 1, 400)
    torch.manual_seed(99)
    assert pairs.draw(0, 1, 400) == first
    assert pairs.draw(0, 2, 400) != first
    assert pairs.draw(1, 1, 400) != first
    assert set(first) == set(range(30)), "400 draws miss none of 30 pairs but with probability 4e-5"
    seeds = {seed_of(a, b, c) for a in range(5) for b in range(5) for c in ("pairs", "points")}
    assert len(seeds) == 50


def test_subjects_are_kept_while_there_is_room() -> None:
    read: list[int] = []
    one = (120 * 4 + 120) / 2**20  # float32 image, uint8 labels
    subjects = memory(3, keep=1.5 * one, read=read).subjects
    for _ in range(2):
        for subject in subjects:
            assert subject.labels is not None
            np.testing.assert_array_equal(subject.labels, labels(int(subject.name[1])))
    assert read == [0, 1, 2, 1, 2]
    read.clear()
    memory(3, keep=1.5 * one, read=read).subjects.read_ahead([0, 1, 2])
    assert read == [0, 1]


def test_one_shape_for_all(tmp_path: Path) -> None:
    save(tmp_path / "a_img.nii.gz", volume(0))
    save(tmp_path / "b_img.nii.gz", volume(1, (6, 5, 5)))
    with pytest.raises(InputError, match=r"subject b has shape 6 x 5 x 5, others of the data set 6 x 5 x 4"):
        read_subjects(tmp_path)
    lazy = Subjects([Source(f"s{n}", lambda n=n: memory(1, (4, n)).subjects[0]) for n in (3, 4)])
    assert lazy[0].image.shape == (1, 4, 3)
    with pytest.raises(InputError, match="4 x 4"):
        lazy[1]


def test_real_data(data_folder: Path) -> None:
    """The same two subjects, from the npz and from NIfTI files that hold them without padding."""
    folder = data_folder / "hippocampus_mr_msd"
    train, held = split(read_collection(folder / "hippocampus.npz"), test=20)
    assert (len(train.members), len(train), len(held or ())) == (32, 32 * 31, 8)
    subject = train.subjects[0]
    assert subject.image.shape == (1, 48, 64, 48)
    assert subject.labels is not None
    assert set(subject.labels.unique().tolist()) == {0, 1, 2}
    files = read_subjects(folder)
    assert files.names == ["hippocampus_008", "hippocampus_014"]
    assert files[0].labels is not None


def write_bad(folder: Path, what: str) -> tuple[Path, dict[str, Any]]:
    """A data set with one thing wrong."""
    good = {"images": np.stack([volume(0), volume(1)])}
    spoilt: dict[str, Callable[[], Any]] = {
        "nothing": lambda: None,
        "npz": lambda: (folder / "d.npz").write_bytes(b"PK\x03\x04 not really"),
        "no images": lambda: np.savez(folder / "d.npz", pictures=good["images"]),
        "objects": lambda: np.savez(folder / "d.npz", images=np.array([{}, {}], dtype=object)),
        "labels": lambda: np.savez(folder / "d.npz", **good, labels=np.zeros((2, 3, 3, 3), np.uint8)),
        "names": lambda: np.savez(folder / "d.npz", **good, names=["a"]),
        "twice": lambda: np.savez(folder / "d.npz", **good, names=["a", "a"]),
        "nan": lambda: np.savez(folder / "d.npz", images=good["images"] * np.nan),
        "constant": lambda: np.savez(folder / "d.npz", images=good["images"] * 0),
        "csv": lambda: (folder / "d.csv").write_text("a,b\n1,2\n"),
        "csv row": lambda: (folder / "d.csv").write_text("fixed,moving\na.nii.gz,\n"),
        "csv file": lambda: (folder / "d.csv").write_text("fixed,moving\na.nii.gz,b.nii.gz\n"),
        "json": lambda: (folder / "d.json").write_text("{"),
        "json keys": lambda: (folder / "d.json").write_text('{"training": [{"label": "x"}]}'),
        "other": lambda: (folder / "d.xyz").write_text(""),
    }
    spoilt[what]()
    found = [path for path in folder.iterdir() if path.name.startswith("d.")]
    return (found[0] if found else folder), {}


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("nothing", "no folder with files"),
        ("npz", "damaged"),
        ("no images", "no array 'images'"),
        ("objects", "plain arrays"),
        ("labels", "'labels' has shape"),
        ("names", "'names' has 1"),
        ("twice", "two subjects 'a'"),
        ("nan", "NaN or infinite"),
        ("constant", "constant"),
        ("csv", "must name the columns"),
        ("csv row", "line 2 names no pair"),
        ("csv file", "does not exist"),
        ("json", "not a data set of Learn2Reg"),
        ("json keys", "not a data set of Learn2Reg"),
        ("other", "cannot tell its layout"),
    ],
)
def test_bad_data_in_one_line(tmp_path: Path, what: str, words: str) -> None:
    path, _ = write_bad(tmp_path, what)
    with pytest.raises(InputError, match=words):
        list(read_subjects(path))


def test_affine_in_voxels() -> None:
    """Against the definition: to [-1, 1], the map, and back to voxels."""
    shape = (5, 9, 3)
    affine = torch.eye(3, 4) + 0.1 * torch.randn(3, 4)
    half = (torch.tensor(shape) - 1) / 2
    voxels = torch.rand(20, 3) * 4
    x = voxels / half - 1
    expected = half * (x @ affine[:, :3].T + affine[:, 3] + 1)
    found = to_voxels(affine, shape)
    torch.testing.assert_close(voxels @ found[:, :3].T + found[:, 3], expected)
    assert torch.isfinite(to_voxels(affine, (5, 9, 1))).all()


@pytest.mark.parametrize("shape", [(6, 6, 4), (5, 5)])
def test_augmentation_turns_both_images_alike(shape: tuple[int, ...]) -> None:
    pairs = Pairs(memory(3, shape).subjects, [(0, 1), (2, 2)])
    batch = pairs.batch([0, 1])
    seen = set()
    for step in range(12):
        turned = Augmentation(noise=0.0)(batch, 0, step, [0, 1])
        assert torch.equal(turned.fixed[1], turned.moving[1])
        for before, after in zip(vars(batch).values(), vars(turned).values(), strict=True):
            assert after.dtype == before.dtype
            torch.testing.assert_close(
                before.flatten(1).sort(1)[0], after.flatten(1).sort(1)[0], atol=1e-5, rtol=0
            )
        seen.add(tuple(turned.fixed[0].flatten().tolist()))
    assert len(seen) > 4
    first, again = (Augmentation()(batch, 0, 3, [0, 1]) for _ in range(2))
    assert torch.equal(first.moving, again.moving)
    assert not torch.equal(first.fixed[1], first.moving[1]), "the affine noise is each image's own"
    alone = Augmentation()(pairs.batch([1]), 0, 3, [1])
    assert torch.equal(alone.fixed[0], first.fixed[1]), "a rank's share is augmented as in the whole batch"
    assert Augmentation()(Batch(batch.fixed, batch.moving), 0, 3, [0, 1]).fixed_labels is None
