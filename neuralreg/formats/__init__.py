"""Transform files: which formats there are, what each can hold, and reading and writing through any of them.

A format is a file of this folder with some of four functions:

- ``write(path, transform, moving, **options)``: the `Affine`, or the `Transform` on the grid that was asked for, whole
  or not at all; ``moving`` is the moving image's grid, None where it is not known;
- ``read(path, name, reference, moving, **options)``: the `SpatialMap` of a file that messages call ``name``;
- ``recognise(path, name)``: None where the content says that the file is of this format, else why it is not;
- ``require(name)``: InputError where a package is missing that the format needs.

Nothing is imported before a file is read or written.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralreg.errors import InputError
from neuralreg.writing import check_writable, suffix_of

if TYPE_CHECKING:
    from neuralreg.images import Geometry
    from neuralreg.maps import SpatialMap

NIFTI = (".nii", ".nii.gz")


@dataclass(frozen=True)
class Format:
    """One kind of file: its ``name`` and ``suffixes``, the module of this folder, and what it can hold.

    ``writes`` are the suffixes for which it is taken where no name is given; the others need the name.
    """

    name: str
    module: str
    suffixes: tuple[str, ...]
    writes: tuple[str, ...] = ()
    affine: bool = False
    field: bool = True
    options: tuple[str, ...] = ()

    def part(self, function: str) -> Any:
        """A function of the format's module; None where it has no such."""
        return getattr(importlib.import_module(f"neuralreg.formats.{self.module}"), function, None)


FORMATS = (
    Format("itk-nifti", "itk_nifti", NIFTI, NIFTI),
    Format("itk-h5", "itk_h5", (".h5", ".hdf5"), (".h5", ".hdf5"), affine=True),
    Format("itk-affine", "itk_affine", (".tfm", ".txt", ".mat"), (".tfm", ".txt", ".mat"), affine=True, field=False),
    Format("ants", "ants", (".nii.gz", ".mat"), affine=True),
    Format("learn2reg", "learn2reg", (*NIFTI, ".npz")),
    Format("voxelmorph", "voxelmorph", (*NIFTI, ".npz")),
    Format("torch-grid", "torch_grid", (".pt", ".npz"), (".pt",), options=("align_corners",)),
    Format("x5", "x5", (".x5",), (".x5",), affine=True),
    Format("field", "saved_field", (".pt",)),
)  # fmt: skip
# Suffixes that a transform can be written to without naming a format, and those of them that hold a field.
SUFFIXES = tuple(suffix for form in FORMATS for suffix in form.writes)
FIELD_SUFFIXES = tuple(suffix for form in FORMATS if form.field for suffix in form.writes)


def by_name(name: str) -> Format:
    """The format of a name; InputError, with all names, where there is none."""
    for form in FORMATS:
        if form.name == name:
            return form
    raise InputError(f"there is no transform format '{name}'; use {', '.join(form.name for form in FORMATS)}")


def for_writing(path: str | os.PathLike[str], name: str | None = None, role: str = "transform") -> Format:
    """The format that ``path`` would be written in: the one of that name, else the one of its suffix.

    Raises:
        InputError: no such format, one that is not written, several for the suffix, or a path that cannot be written.
    """
    suffix = suffix_of(path)
    if name is None:
        written = [form for form in FORMATS if suffix in form.writes]
        if not written:
            several = [form.name for form in FORMATS if suffix in form.suffixes]
            known = (
                f"--to {', '.join(several)} choose among its formats"
                if several
                else f"use {' or '.join(SUFFIXES)}"
            )
            what = "several formats have the suffix" if several else "unknown suffix"
            raise InputError(f"{role} {path}: {what} '{suffix}'; {known}")
        form = written[0]
    else:
        form = by_name(name)
        if form.part("write") is None:
            raise InputError(f"{role} {path}: format {name} is read, not written; choose another one")
    check_writable(path, suffixes=form.suffixes, role=role)
    require = form.part("require")
    if require is not None:
        require(f"{role} {path}")
    return form


def write(
    transform: SpatialMap,
    path: str | os.PathLike[str],
    name: str | None = None,
    reference: Geometry | None = None,
    moving: Geometry | None = None,
    **options: Any,
) -> None:
    """Write any transform; see `SpatialMap.save`. An affine is written as one where the format has affines.

    Raises:
        InputError: a format or path that will not do, a grid that is missing, an option that the format does not have.
    """
    from neuralreg.maps import Affine

    form = for_writing(path, name)
    known = _known_options(form, options)
    if isinstance(transform, Affine) and form.affine:
        written: Any = transform
    elif not form.field:
        raise InputError(
            f"transform {path}: {form.name} holds an affine alone, and this transform is more; use .h5 or .nii.gz"
        )
    elif isinstance(transform, Affine) and reference is None:
        raise InputError(
            f"transform {path}: {form.name} holds a displacement field; give a reference for its grid"
        )
    else:
        written = transform.dense(reference)
    form.part("write")(Path(path), written, moving or transform.moving, **known)


def read(
    path: str | os.PathLike[str],
    name: str | None = None,
    reference: Geometry | None = None,
    moving: Geometry | None = None,
    role: str = "transform",
    **options: Any,
) -> SpatialMap:
    """Read a transform in the format of that name, or in the one that its content shows; see `load_transform`."""
    path = Path(path)
    called = f"{role} {path}"
    if name is not None:
        form = by_name(name)
        if not path.is_file():
            raise InputError(f"{called} does not exist; check the path")
    else:
        form = _recognised(path, called)
    return form.part("read")(path, called, reference, moving, **_known_options(form, options))


def _recognised(path: Path, called: str) -> Format:
    """The format that says the file is its own; else the only one of the suffix that cannot tell; else InputError."""
    # text of any suffix may be an affine
    candidates = [form for form in FORMATS if suffix_of(path) in form.suffixes] or [by_name("itk-affine")]
    why, silent = "", []
    for form in candidates:
        recognise = form.part("recognise")
        if recognise is None:
            silent.append(form)
            continue
        refused = recognise(path, called)
        if refused is None:
            return form
        why = why or refused
    if len(silent) == 1:
        return silent[0]
    names = ", ".join(form.name for form in silent)
    raise InputError(
        f"{called} {why or 'does not tell its format'}; where you know its format, name it with --from (format= in "
        f"Python): {names}"
    )


def _known_options(form: Format, options: dict[str, Any]) -> dict[str, Any]:
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in form.options:
            raise InputError(f"format {form.name} has no option {key.replace('_', '-')}; leave it out")
    return given
