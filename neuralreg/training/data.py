"""Subjects, pairs and batches: what a trainee is trained on, whatever the files looked like."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.images import check_registrable, read_image, read_labels, scale_intensity
from neuralreg.reading import by

MB = 1 << 20
SLACK = 0.5  # published images end at 1, a few interpolated ones a little beyond
Window = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Subject:
    """One image: ``image`` (1, *sp) float32 in [0, 1], ``labels`` (*sp) int64 or None, ``spacing`` in millimetres."""

    name: str
    image: Tensor
    labels: Tensor | None
    spacing: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """Pairs to be registered: images (B, 1, *sp) float32 in [0, 1], label maps (B, 1, *sp) int64 or None."""

    fixed: Tensor
    moving: Tensor
    fixed_labels: Tensor | None = None
    moving_labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """A subject that has not been read: its name, what reads it, and its shape where a header tells it."""

    name: str
    read: Callable[[], Subject]
    shape: tuple[int, ...] | None = None


def subject_from(
    name: str,
    image: Any,
    labels: Any = None,
    *,
    window: Window | None = None,
    scaled: bool = False,
    spacing: Sequence[float] | None = None,
) -> Subject:
    """Reads a subject from what `read_image` and `read_labels` take: paths, arrays (*sp) or tensors.

    ``window`` becomes [0, 1], else the image's 0 and 0.999 quantiles, as in `neuralreg register`. ``scaled``: the
    image is in [0, 1] already and is clipped; far beyond it is an error. ``spacing`` overrides the header's.

    Raises:
        InputError: what cannot be read, voxels that are not finite, a constant image, labels of another shape.
    """
    role = f"image of subject {name}"
    volume = read_image(image, role=role)
    check_registrable(volume, role)
    if scaled:
        low, high = (float(v) for v in torch.aminmax(volume.data))
        if low < -SLACK or high > 1 + SLACK:
            raise InputError(
                f"{role}: expected intensities in [0, 1], found {low:g} to {high:g}; give a --window LO,HI"
            )
    data = volume.data.clamp(0, 1) if scaled else scale_intensity(volume, window=window)[0]
    found = None if labels is None else read_labels(labels, role=f"label map of subject {name}").data
    if found is not None and found.shape != data.shape:
        raise InputError(
            f"subject {name}: the label map has shape {by(tuple(found.shape))}, the image "
            f"{by(tuple(data.shape))}; both must lie on one grid"
        )
    millimetres = volume.geometry.spacing if spacing is None else tuple(float(s) for s in spacing)
    return Subject(name, data[None], None if found is None else found.long(), millimetres)


class Subjects(Sequence[Subject]):
    """The subjects of a data set in the order given, read when first asked for.

    All share one shape, which is checked at once where headers tell it and at the first reading otherwise. What has
    been read is kept until ``keep`` megabytes are full (image float32, labels in the smallest integer type that holds
    them); what does not fit is read anew each time. The files are never written.

    Raises:
        InputError: no subjects, a name that occurs twice, or another shape than the first subject's.
    """

    def __init__(self, sources: Sequence[Source], keep: float = 4000) -> None:
        self.sources, self.names = list(sources), [source.name for source in sources]
        if not self.sources:
            raise InputError("the data set holds no subjects")
        if len(set(self.names)) < len(self.names):
            twice = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"the data set names two subjects {twice!r}; give every subject its own name")
        self._room = keep * MB
        self._kept: dict[int, Subject] = {}
        self._shape = self.sources[0].shape
        for source in self.sources:
            if source.shape is not None:
                self._check(source.name, source.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (*sp) of every subject."""
        if self._shape is None:
            self[0]
        assert self._shape is not None
        return self._shape

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        subject = self.stored(range(len(self))[index])
        return subject if subject.labels is None else replace(subject, labels=subject.labels.long())

    def stored(self, place: int) -> Subject:
        """A subject as it is kept, its labels in the smallest integer type that holds them."""
        if place in self._kept:
            return self._kept[place]
        subject = self.sources[place].read()
        self._check(subject.name, tuple(subject.image.shape[1:]))
        if subject.labels is not None:
            subject = replace(subject, labels=narrow(subject.labels))
        size = subject.image.nbytes + (0 if subject.labels is None else subject.labels.nbytes)
        if size <= self._room:
            self._room -= size
            self._kept[place] = subject
        return subject

    def __iter__(self) -> Iterator[Subject]:
        return (self[k] for k in range(len(self)))

    def read_ahead(self, places: Sequence[int], watch: Callable[[int, int], object] | None = None) -> None:
        """Reads these subjects as long as they can be kept, so that what is wrong with them shows at once."""
        for done, place in enumerate(places):
            self.stored(place)
            if place not in self._kept:
                return
            if watch:
                watch(done + 1, len(places))

    def index_of(self, name: str) -> int:
        """The place of a subject by its name."""
        if name not in self.names:
            raise InputError(f"there is no subject {name!r} in the data set")
        return self.names.index(name)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if self._shape is None:
            self._shape = shape
        if shape != self._shape:
            raise InputError(
                f"subject {name} has shape {by(shape)}, others of the data set {by(self._shape)}; resample or pad "
                f"all images to one shape"
            )


def narrow(labels: Tensor) -> Tensor:
    """The labels in the smallest integer type that holds them."""
    low, high = (int(v) for v in torch.aminmax(labels))
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if torch.iinfo(dtype).min <= low and high <= torch.iinfo(dtype).max:
            return labels.to(dtype)
    return labels


class AllPairs(Sequence[tuple[int, int]]):
    """Every ordered pair (fixed, moving) of different members, never stored."""

    def __init__(self, members: Sequence[int]) -> None:
        self.members = list(members)

    def __len__(self) -> int:
        return len(self.members) * max(0, len(self.members) - 1)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        fixed, moving = divmod(range(len(self))[index], len(self.members) - 1)
        return self.members[fixed], self.members[moving + (moving >= fixed)]


class Pairs:
    """Ordered pairs (fixed, moving) of the places of subjects: what is drawn in training, or validated on."""

    def __init__(self, subjects: Subjects, pairs: Sequence[tuple[int, int]] | None = None) -> None:
        self.subjects = subjects
        self.pairs = AllPairs(range(len(subjects))) if pairs is None else pairs
        if not len(self.pairs):
            raise InputError("there is no pair to register: give at least two subjects, or an atlas and one")

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def members(self) -> list[int]:
        """The places of all subjects that occur."""
        if isinstance(self.pairs, AllPairs):
            return sorted(self.pairs.members)
        return sorted({place for pair in self.pairs for place in pair})

    def names(self) -> list[tuple[str, str]]:
        """The pairs by name."""
        return [(self.subjects.names[fixed], self.subjects.names[moving]) for fixed, moving in self.pairs]

    def draw(self, seed: int, step: int, count: int) -> list[int]:
        """The places of ``count`` pairs, independent and uniform, that depend on the seed and the step alone."""
        generator = torch.Generator().manual_seed(seed_of(seed, step, "pairs"))
        return torch.randint(len(self), (count,), generator=generator).tolist()

    def batch(self, which: Sequence[int], labels: bool = True) -> Batch:
        """The pairs at these places, copied. A side has ``labels``, if wanted, where all its subjects have them."""
        pairs = [self.pairs[k] for k in which]
        sides = [[self.subjects.stored(pair[side]) for pair in pairs] for side in (0, 1)]
        images = [torch.stack([subject.image for subject in side]) for side in sides]
        maps = [_stack_labels(side) if labels else None for side in sides]
        return Batch(*images, *maps)


def _stack_labels(subjects: Sequence[Subject]) -> Tensor | None:
    maps = [subject.labels for subject in subjects]
    if any(labels is None for labels in maps):
        return None
    return torch.stack([labels[None].long() for labels in maps if labels is not None])


def atlas_pairs(atlas: int, members: Sequence[int]) -> list[tuple[int, int]]:
    """Atlas to subject: the subject is fixed, the atlas moves."""
    return [(member, atlas) for member in members if member != atlas]


def ring(members: Sequence[int], most: int | None = None) -> list[tuple[int, int]]:
    """Each member as fixed with the next as moving, the last with the first; ``most`` of them, evenly chosen."""
    members = list(members)
    pairs = [(a, b) for a, b in zip(members, members[1:] + members[:1], strict=True) if a != b]
    return evenly(pairs, most)


def evenly(pairs: Sequence[tuple[int, int]], most: int | None) -> list[tuple[int, int]]:
    """At most ``most`` of the pairs, at even distances."""
    if most is None or len(pairs) <= most:
        return list(pairs)
    return [pairs[k * len(pairs) // most] for k in range(most)]


def seed_of(seed: int, step: int, purpose: str, *more: int) -> int:
    """A seed for one purpose at one step: streams that do not meet, and that need no state to be resumed."""
    words = [seed, step, int.from_bytes(purpose.encode()[:8], "little"), *more]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
