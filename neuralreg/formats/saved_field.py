"""The fitted network itself (.pt of `neuralreg register --field-out`): read, and asked at any point."""

from __future__ import annotations

from pathlib import Path

from neuralreg.images import Geometry
from neuralreg.saved_field import SavedField, load_saved_field


def read(
    path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None
) -> SavedField:
    return load_saved_field(path)
