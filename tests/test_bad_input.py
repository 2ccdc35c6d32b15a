"""Bad input through the command line: one clear line, exit code 2, no file left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from tests.processes import python
from tests.small import SHAPE, blobs, call, pair_folder, register, save

Arguments = list[Any]

# Where NIfTI-1 headers keep the spacing along the axes and the third row of the sform.
PIXDIM, SROW_Z = 76, 312


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a good pair, fixed.nii.gz and moving.nii.gz, and an empty folder out."""
    return pair_folder(tmp_path)


def refused(folder: Path, arguments: Arguments) -> str:
    """Run, check what holds for every bad input, and return the line."""
    before = sorted(folder.rglob("*"))
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert result.stdout == ""
    assert sorted(folder.rglob("*")) == before
    return lines[0]


def patched(path: Path, offset: int, values: list[float]) -> Path:
    """Overwrite float32 numbers of an uncompressed NIfTI's header, which no library would write like that."""
    content = bytearray(path.read_bytes())
    content[offset : offset + 4 * len(values)] = np.array(values, "<f4").tobytes()
    path.write_bytes(content)
    return path


# ------------------------------------------------------------------------------------ one image is bad


def text_file(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.write_text("this is no image")
    return path


def unknown_format(folder: Path) -> Path:
    path = folder / "bad.docx"
    path.write_bytes(b"PK\x03\x04")
    return path


def noise_file(folder: Path) -> Path:
    path = folder / "bad.nii"
    path.write_bytes(np.random.default_rng(0).bytes(4000))
    return path


def empty_file(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.touch()
    return path


def truncated(folder: Path) -> Path:
    path = save(folder / "bad.nii.gz", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))
    path.write_bytes(path.read_bytes()[:5000])
    return path


def truncated_plain(folder: Path) -> Path:
    path = save(folder / "bad.nii", blobs())
    path.write_bytes(path.read_bytes()[:5000])
    return path


def a_folder(folder: Path) -> Path:
    path = folder / "bad.nii.gz"
    path.mkdir()
    return path


def four_d(folder: Path) -> Path:
    return save(folder / "bad.nii.gz", np.stack([blobs(), blobs()], -1))


def vector(folder: Path) -> Path:
    image = nibabel.Nifti1Image(np.zeros((*SHAPE, 1, 3), np.float32), np.eye(4))
    image.header.set_intent("vector")
    nibabel.save(image, folder / "bad.nii.gz")
    return folder / "bad.nii.gz"


def rgb(folder: Path) -> Path:
    colours = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    nibabel.save(nibabel.Nifti1Image(colours, np.eye(4)), folder / "bad.nii.gz")
    return folder / "bad.nii.gz"


def with_voxel(value: float) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        values = blobs()
        values[3, 4, 5] = value
        return save(folder / "bad.nii.gz", values)

    return make


def constant(folder: Path) -> Path:
    return save(folder / "bad.nii.gz", np.full(SHAPE, 7.0, np.float32))


def planar(folder: Path) -> Path:
    return save(folder / "bad.nii.gz", blobs(SHAPE[:2]))


def singular(folder: Path) -> Path:
    return patched(save(folder / "bad.nii", blobs()), SROW_Z, [2.0, 0.0, 0.0, 0.0])


def zero_spacing(folder: Path) -> Path:
    return patched(save(folder / "bad.nii", blobs()), PIXDIM + 8, [0.0])


def missing(folder: Path) -> Path:
    return folder / "bad.nii.gz"


BAD_IMAGES = [
    (missing, "does not exist"),
    (text_file, "not an image"),
    (unknown_format, "not an image"),
    (noise_file, "not an image"),
    (empty_file, "bad.nii.gz"),
    (truncated, "cut short"),
    (truncated_plain, "bad.nii"),
    (a_folder, "bad.nii.gz"),
    (four_d, "4-D"),
    (vector, "vector"),
    (rgb, "vector"),
    (with_voxel(float("nan")), "--nan-to"),
    (with_voxel(float("inf")), "--nan-to"),
    (constant, "constant"),
    (planar, "2-D"),
    (singular, "singular"),
    (zero_spacing, "spacing"),
]


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize(("make", "word"), BAD_IMAGES)
def test_bad_image(images: Path, make: Callable[[Path], Path], word: str, role: str) -> None:
    bad = make(images)
    line = refused(images, register(images, **{role: bad}))
    assert word in line
    assert role in line, "the line must say which of the two images is meant"
    if make is not planar:
        assert bad.name in line or make is constant


# -------------------------------------------------------------------------------------- masks, affines


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize(
    ("mask", "word"),
    [
        (np.zeros(SHAPE, np.uint8), "mask"),
        (np.ones((8, 8, 8), np.uint8), "grid"),
        (None, "does not exist"),
    ],
)
def test_bad_mask(images: Path, mask: np.ndarray | None, word: str, role: str) -> None:
    if mask is not None:
        save(images / "mask.nii.gz", mask)
    line = refused(images, register(images, f"--{role}-mask", images / "mask.nii.gz"))
    assert word in line
    assert f"{role} mask" in line


def test_mask_on_a_shifted_grid(images: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = 10
    save(images / "mask.nii.gz", np.ones(SHAPE, np.uint8), affine)
    assert "grid" in refused(images, register(images, "--fixed-mask", images / "mask.nii.gz"))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("1 0 0 0\n0 1 0 0\n0 0 0 0\n0 0 0 1\n", "singular"),
        ("1 0 0\n0 1 0\n", "4 x 4"),
        ("some words\n", "transform"),
        ("1 0 0 nan\n0 1 0 0\n0 0 1 0\n0 0 0 1\n", "NaN"),
        (None, "does not exist"),
    ],
)
def test_bad_initial_transform(images: Path, text: str | None, word: str) -> None:
    if text is not None:
        (images / "a.txt").write_text(text)
    line = refused(images, register(images, "--initial-transform", images / "a.txt"))
    assert word in line
    assert "initial transform" in line


# ----------------------------------------------------------------------------------- flags and options


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "magic"], ["magic", "nir"]),
        (["--preset", "slow"], ["slow", "fast", "paper-displacement"]),
        (["--option", "speed=3"], ["speed", "stride", "lr"]),
        (["--option", "stride=two"], ["stride", "two"]),
        (["--option", "stride=-1"], ["stride"]),
        (["--option", "stride"], ["NAME=VALUE"]),
        (["--option", "iterations=5"], ["--iterations"]),
        (["--option", "lr=1", "--option", "lr=2"], ["lr", "twice"]),
        (["--option", "lncc_window=99"], ["window", "99"]),
        (["--iterations", "0"], ["iterations"]),
        (["--iterations", "many"], ["--iterations", "integer"]),
        (["--threads", "0"], ["threads"]),
        (["--device", "abacus"], ["abacus", "cpu"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--window", "3"], ["--window", "LO,HI"]),
        (["--window", "5,5"], ["--window"]),
        (["--quantiles", "0.1,1.5"], ["quantiles"]),
        (["--quantiles", "a,b"], ["--quantiles", "LO,HI"]),
        (["--frobnicate"], ["--frobnicate", "--help"]),
        (["surplus"], ["surplus"]),
        (["--seed"], ["--seed"]),
    ],
)
def test_bad_flag(images: Path, flags: list[str], words: list[str]) -> None:
    line = refused(images, register(images, *flags))
    for word in words:
        assert word in line


@pytest.mark.parametrize("arguments", [["register"], ["register", "--fixed", "f.nii.gz"], ["regster"]])
def test_usage(tmp_path: Path, arguments: list[str]) -> None:
    assert "--help" in refused(tmp_path, arguments)


# --------------------------------------------------------------------------------------------- outputs


def test_nothing_to_write(images: Path) -> None:
    arguments = register(images)[:-4]
    assert "--transform-out" in refused(images, arguments)


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--warped-out", "nowhere/w.nii.gz"),
        ("--warped-out", "fixed.nii.gz/w.nii.gz"),
        ("--warped-out", "w.mha"),
        ("--warped-out", "out"),
        ("--inverse-out", "i.txt"),
        ("--field-out", "f.bin"),
        ("--figure-out", "q.gif"),
        ("--figure-out", "nowhere/q.png"),
        ("--warped-out", "moving.nii.gz"),
        ("--warped-out", "out/t.nii.gz"),
    ],
)
def test_bad_output_is_found_before_the_work(images: Path, flag: str, name: str, monkeypatch: Any) -> None:
    import neuralreg

    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("the registration has started")

    monkeypatch.setattr(neuralreg, "register", work, raising=False)
    line = refused(images, register(images, flag, images / name))
    assert flag in line
    assert str(images / name) in line


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write(images: Path) -> None:
    locked = images / "locked"
    locked.mkdir(mode=0o500)
    assert "cannot be written" in refused(images, register(images, "--warped-out", locked / "w.nii.gz"))


def test_no_right_to_write_is_told(images: Path, monkeypatch: Any) -> None:
    """The same for root, who is allowed everything: the operating system's answer is replaced."""
    monkeypatch.setattr(os, "access", lambda path, mode, **options: not mode & os.W_OK)
    assert "cannot be written" in refused(images, register(images, "--warped-out", images / "w.nii.gz"))


def test_figure_without_matplotlib(images: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    line = refused(images, register(images, "--figure-out", images / "q.png"))
    assert "matplotlib" in line
    assert "pip install" in line


# ---------------------------------------------------------------------- memory, interrupt, a full disk


@pytest.mark.parametrize("name", ["triton", "abacus"])
def test_backend_that_cannot_serve(images: Path, name: str) -> None:
    done = python("-m", "neuralreg", *register(images), NEURALREG_BACKEND=name)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert name in done.stderr
    assert not any((images / "out").iterdir())


def test_out_of_memory_is_told(images: Path, monkeypatch: Any) -> None:
    import torch

    import neuralreg

    for error in (
        MemoryError(),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ):

        def work(*args: Any, _error: BaseException = error, **options: Any) -> None:
            raise _error

        monkeypatch.setattr(neuralreg, "register", work, raising=False)
        line = refused(images, register(images))
        assert "out of memory" in line
        assert "stride" in line
