"""Which pairs are trained on, which are validated on, and which are kept from both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuralreg.errors import InputError
from neuralreg.reading import by
from neuralreg.training.data import AllPairs, Pairs, Subjects, Window, atlas_pairs, evenly, ring
from neuralreg.training.layouts import Collection, file_source, label_beside

MOST = 20


def split(
    collection: Collection,
    validation: int | Collection | None = None,
    test: int = 0,
    most: int = MOST,
) -> tuple[Pairs, Pairs | None]:
    """The pairs of the training and of the validation.

    Of the subjects by name the last ``test`` are left out of everything, and the ``validation`` before them are
    validated on: by default the pairs that the layout holds out, else max(2, a fifth) of the subjects. A collection is
    validated on as a whole; 0 means no validation. At most ``most`` pairs are validated on: those that the layout
    lists, each subject with the next one, or the atlas with each.

    Raises:
        InputError: too few subjects for this, or a validation set of another shape.
    """
    if test < 0 or (isinstance(validation, int) and validation < 0) or most < 1:
        raise InputError("--test and --validation cannot be negative, --validation-pairs is at least 1")
    members = [place for place in collection.members if place != collection.atlas]
    if test >= len(members):
        raise InputError(f"--test {test} leaves none of the {len(members)} subjects")
    members = members[: len(members) - test]
    if isinstance(validation, Collection):
        if validation.subjects.shape != collection.subjects.shape:
            raise InputError(
                f"the validation set has shape {by(validation.subjects.shape)}, the training set "
                f"{by(collection.subjects.shape)}; both must have one shape"
            )
        held = evenly(_pairs(validation, validation.members, rotate=True), most)
        return _training(collection, members), Pairs(validation.subjects, held)
    if validation is None and collection.validation:
        return _training(collection, members), Pairs(collection.subjects, evenly(collection.validation, most))
    count = max(2, len(members) // 5) if validation is None else validation
    if count == 0:
        return _training(collection, members), None
    if count >= len(members):
        raise InputError(f"{count} of {len(members)} subjects for validation leave none to train on")
    training, out = members[:-count], members[-count:]
    held = evenly(_pairs(collection, out, rotate=True), most)
    if not held:
        hint = "name at least 2 subjects, or a validation set by --validation PATH"
        raise InputError(f"the {count} subjects held out for validation make no pair; {hint}")
    return _training(collection, training), Pairs(collection.subjects, held)


def _training(collection: Collection, members: Sequence[int]) -> Pairs:
    if collection.pairs is None and collection.atlas is None and len(members) < 2:
        raise InputError(f"{len(members)} subject to train on makes no pair; give more subjects or an atlas")
    pairs = _pairs(collection, members, rotate=False)
    if not len(pairs):
        raise InputError(
            "no pair is left to train on: every listed pair has a subject that is held out; name a "
            "validation set by --validation PATH, or none by --validation 0"
        )
    return Pairs(collection.subjects, pairs)


def _pairs(collection: Collection, members: Sequence[int], rotate: bool) -> Sequence[tuple[int, int]]:
    """All pairs of these members; with ``rotate`` each member with the next one only, where any two may pair."""
    if collection.pairs is not None:
        inside = set(members)
        return [pair for pair in collection.pairs if inside.issuperset(pair)]
    if collection.atlas is not None:
        return atlas_pairs(collection.atlas, members)
    if rotate:
        return ring(members)
    return AllPairs(members)


def with_atlas(
    collection: Collection,
    atlas: str | os.PathLike[str],
    labels: str | os.PathLike[str] | None = None,
    window: Window | None = None,
    keep: float = 4000,
) -> Collection:
    """Atlas to subject: ``atlas`` is the name of a subject, or an image file with perhaps a file of ``labels``.

    Raises:
        InputError: neither, a layout that lists its own pairs, or an atlas of another shape.
    """
    if collection.pairs is not None:
        raise InputError("--atlas: this data set lists its own pairs; an atlas would not be used")
    name = os.fspath(atlas)
    subjects = collection.subjects
    if name in subjects.names:
        if labels is not None:
            raise InputError(f"--atlas-labels: {name} is a subject of the data set and brings its own")
        place = subjects.index_of(name)
    else:
        file = Path(name)
        found = Path(labels) if labels is not None else label_beside(file)
        source = replace(file_source("atlas", file, found, window), name="atlas")
        subjects = Subjects([*subjects.sources, source], keep)
        place = len(subjects) - 1
    members = [member for member in collection.members if member != place]
    out = {member for pair in collection.validation or () for member in pair} - {place}
    validation = atlas_pairs(place, sorted(out)) if out else None
    return Collection(subjects, members, None, validation, place)
