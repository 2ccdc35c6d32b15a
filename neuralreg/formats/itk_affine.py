"""An affine alone: ITK's text (.tfm, .txt) and Matlab (.mat) transform files, LPS millimetres, fixed to moving points.

Reading takes what `neuralreg.affines.read_affine` takes, plain 4 x 4 matrices among it. Matlab files need SimpleITK.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from neuralreg.affines import ITK_HEADER, read_affine
from neuralreg.formats.sitk import simpleitk, sitk_affine, write_sitk
from neuralreg.images import Geometry
from neuralreg.maps import Affine
from neuralreg.reading import lps_flip
from neuralreg.writing import atomic_path, suffix_of


def write(path: Path, transform: Affine, moving: Geometry | None = None) -> None:
    if suffix_of(path) == ".mat":
        write_sitk(path, sitk_affine(simpleitk(f"transform {path}"), transform.matrix))
        return
    d = transform.ndim
    lps = lps_flip(d) @ transform.matrix @ lps_flip(d)
    numbers = [*lps[:-1, :-1].ravel(), *lps[:-1, -1]]
    text = (
        f"{ITK_HEADER} V1.0\n#Transform 0\nTransform: AffineTransform_double_{d}_{d}\n"
        f"Parameters: {' '.join(repr(float(x)) for x in numbers)}\n"
        f"FixedParameters: {' '.join(['0'] * d)}\n"
    )
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read(path: Path, name: str, reference: Geometry | None = None, moving: Geometry | None = None) -> Affine:
    return Affine(np.asarray(read_affine(path, name.removesuffix(f" {path}"))))
