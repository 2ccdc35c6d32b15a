"""Arrays in .npz files."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from neuralreg.errors import InputError
from neuralreg.writing import atomic_path, brief


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Compressed, whole or not at all."""
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def read_npz(path: Path, name: str) -> dict[str, np.ndarray]:
    """All arrays of a file; InputError where it is missing, damaged, or holds Python objects."""
    try:
        with np.load(path, allow_pickle=False) as content:
            return {key: content[key] for key in content.files}
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; check the path") from None
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{name} is not an .npz file, or is damaged ({brief(error)})") from error


def read_array(path: Path, name: str, key: str) -> np.ndarray:
    """The array of that key, or the only one that the file holds, as float32."""
    arrays = read_npz(path, name)
    found = arrays.get(key, next(iter(arrays.values())) if len(arrays) == 1 else None)
    if found is None or found.dtype.kind not in "fiu":
        raise InputError(
            f"{name} holds no array of numbers '{key}'; it has {', '.join(sorted(arrays)) or 'none'}"
        )
    return found.astype(np.float32)
