"""Writing files whole or not at all, and saying before any work where that will not be possible."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError

IMAGE_SUFFIXES = (".nii", ".nii.gz")


def brief(error: BaseException) -> str:
    """An exception's text on one line, cut to a readable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def suffix_of(path: str | os.PathLike[str]) -> str:
    """The file's suffix in lower case, ``.nii.gz`` counting as one."""
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def check_writable(
    path: str | os.PathLike[str], *, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, role: str = "output"
) -> Path:
    """InputError now, before any work, where ``path`` could not be written; returns it as a Path.

    The folder must exist and be writable, the path not be a folder, the suffix one of ``suffixes``.
    """
    path = Path(path)
    if suffixes and suffix_of(path) not in suffixes:
        raise InputError(f"{role} {path}: unknown suffix '{suffix_of(path)}'; use {' or '.join(suffixes)}")
    if path.is_dir():
        raise InputError(f"{role} {path} is a folder; give a file name")
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{role} {path}: the folder {folder} does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{role} {path}: the folder {folder} cannot be written; choose another one")
    return path


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``, with its suffix, that takes its place when the block ends well.

    When the block raises, KeyboardInterrupt included, nothing is left and an older file at ``path`` stays.
    An OSError (disk full, rights) becomes an InputError.
    """
    path = Path(path)
    suffix = suffix_of(path)
    temporary = path.with_name(f".{path.name[: len(path.name) - len(suffix)]}.{os.getpid()}.tmp{suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {brief(error)}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_image(
    path: str | os.PathLike[str], data: Tensor | np.ndarray, affine: np.ndarray, *, dtype: Any = None
) -> None:
    """Write ``data`` (*sp) with its RAS ``affine`` as .nii or .nii.gz, whole or not at all.

    ``dtype`` (numpy) defaults to that of the data; bool becomes uint8, 64-bit integers int32, half types
    float32. Sform and qform are both set; a qform cannot hold a sheared affine, which then stands in the
    sform alone (nibabel reads that; ITK reads the qform, the nearest grid without shear).
    """
    path = check_writable(path)
    values = _storable(data)
    save_nifti(path, values if dtype is None else values.astype(dtype, copy=False), affine)


def _storable(data: Tensor | np.ndarray) -> np.ndarray:
    if isinstance(data, Tensor):
        data = data.detach().cpu()
        data = data.float() if data.dtype in (torch.float16, torch.bfloat16) else data
        data = data.numpy()
    small = {"bool": np.uint8, "int64": np.int32, "float16": np.float32}.get(data.dtype.name)
    return data if small is None else data.astype(small)


def save_nifti(
    path: str | os.PathLike[str], values: np.ndarray, affine: np.ndarray, *, intent: int | None = None
) -> None:
    """Write an array as it is, atomically; ``affine`` (3 x 3 or 4 x 4, RAS) becomes sform and qform."""

    image = nifti_image(values, affine, intent)
    with atomic_path(path) as temporary:
        save_image(image, temporary)


def save_image(image: Any, path: Path) -> None:
    """Write a nibabel image to .nii or .nii.gz, whichever the name says."""
    if suffix_of(path) != ".nii.gz":
        image.to_filename(path)
        return
    from isal import igzip  # the same format ten times faster than zlib, which took as long as a short fit

    with igzip.open(path, "wb", compresslevel=1) as file:
        image.to_stream(file)


def nifti_image(values: np.ndarray, affine: np.ndarray, intent: int | None = None) -> Any:
    """An array as a nibabel image whose header says all that our files say."""
    import nibabel

    full = np.eye(4)
    d = affine.shape[0] - 1
    full[:d, :d] = affine[:d, :d]
    full[:d, 3] = affine[:d, d]
    image = nibabel.Nifti1Image(values, None)
    image.set_sform(full, code=1)
    image.set_qform(full, code=1, strip_shears=True)
    image.header.set_xyzt_units("mm")
    if intent is not None:
        image.header.set_intent(intent)
    return image
