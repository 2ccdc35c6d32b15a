"""How good a registration is: overlap, distance between landmarks, regularity of the map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError

_PLANES = 32  # planes of the first axis that the Jacobian is taken of at once


def dice(a: Any, b: Any, labels: Iterable[int] | None = None) -> dict[int, float]:
    """Dice overlap 2 |A and B| / (|A| + |B|) of every label of two label maps on one grid.

    a, b: integer tensors or arrays (*sp), or images of labels. labels: the ids that count; by default all in
    either map but 0. A label that is in neither map has no Dice: nan.
    """
    a, b = _labels(a), _labels(b)
    if a.shape != b.shape:
        raise InputError(f"Dice needs two label maps of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    counts = [_count(x) for x in (a, b, a[a == b])]
    if labels is None:
        labels = sorted((counts[0].keys() | counts[1].keys()) - {0})
    sizes = {int(label): [count.get(int(label), 0) for count in counts] for label in labels}
    return {k: 2 * both / (na + nb) if na + nb else float("nan") for k, (na, nb, both) in sizes.items()}


def _labels(x: Any) -> Tensor:
    data = x if isinstance(x, Tensor) else torch.as_tensor(x if isinstance(x, np.ndarray) else x.data)
    if data.is_floating_point():
        raise InputError("Dice needs integer label maps; read them with neuralreg.images.read_labels")
    return data


def _count(x: Tensor) -> dict[int, int]:
    """Label -> number of voxels."""
    if not x.numel():
        return {}
    low, high = int(x.min()), int(x.max())
    if high - low > 1 << 22:
        values, counts = torch.unique(x, return_counts=True)
        return dict(zip(values.tolist(), counts.tolist(), strict=True))
    counts = torch.bincount((x.flatten() - low).to(torch.int32))
    return {k + low: n for k, n in enumerate(counts.tolist()) if n}


def mean_dice(scores: dict[int, float]) -> float:
    """The mean over the labels that have a Dice; nan where none has."""
    known = [score for score in scores.values() if score == score]
    return float(np.mean(known)) if known else float("nan")


def determinant(displacement: Tensor, scheme: str = "central") -> Tensor:
    """det(I + du/dx) (*sp) of a displacement (ndim, *sp) in voxels, by lattice differences.

    It is that of the physical map as well, up to the determinant of an affine that comes before or after.
    """
    return torch.cat(list(determinants(displacement, scheme)))


def determinants(displacement: Tensor, scheme: str = "central") -> Iterator[Tensor]:
    """`determinant` slab by slab along the first axis, each computed with the planes beside it."""
    from neuralreg import kernels

    n = displacement.shape[1]
    for first in range(0, n, _PLANES):
        last = min(first + _PLANES, n)
        before, after = max(first - 1, 0), min(last + 1, n)
        part = displacement[None, :, before:after]
        yield kernels.jacobian_determinant(part, scheme=scheme)[0, first - before : last - before]


def regularity(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> dict[str, float]:
    """Folds and smoothness of a displacement (ndim, *sp) in voxels, everywhere or in ``mask`` (*sp).

    Returns folds, the number of voxels with det <= 0, and folds_percent, their percentage; sdlogj, the standard
    deviation of log det over the voxels with det > 0; min_determinant. nan (and no folds) where no voxel counts.
    Central differences miss folds that alternate from voxel to voxel; "forward" or "backward" as ``scheme`` see those.
    Works slab by slab.
    """
    sums, lowest = np.zeros(4), float("inf")
    for k, det in enumerate(determinants(displacement.detach(), scheme)):
        if mask is not None:
            det = det[(mask[k * _PLANES : k * _PLANES + len(det)] != 0).to(det.device)]
        if not det.numel():
            continue
        sums += determinant_sums(det)
        lowest = min(lowest, float(det.min()))
    return {**regularity_of(*sums.tolist()), "min_determinant": lowest if sums[0] else float("nan")}


def determinant_sums(det: Tensor) -> tuple[int, int, float, float]:
    """Of determinants: their number, the number of folds, sum and sum of squares of log det where det > 0."""
    good = det[det > 0].double().log()
    return det.numel(), det.numel() - good.numel(), float(good.sum()), float(good.square().sum())


def regularity_of(voxels: float, folds: float, total: float, squares: float) -> dict[str, float]:
    """folds, folds_percent and sdlogj of added `determinant_sums`; nan (and no folds) where no voxel counts."""
    if not voxels:
        return {"folds": 0, **dict.fromkeys(("folds_percent", "sdlogj"), float("nan"))}
    count = voxels - folds
    deviation = np.sqrt(max(0.0, squares / count - (total / count) ** 2)) if count else float("nan")
    return {"folds": int(folds), "folds_percent": float(100 * folds / voxels), "sdlogj": float(deviation)}


def folds_percent(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> float:
    """The percentage of voxels with det <= 0; arguments as for `regularity`."""
    return regularity(displacement, mask, scheme)["folds_percent"]


def sdlogj(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> float:
    """The standard deviation of log det where det > 0; arguments as for `regularity`."""
    return regularity(displacement, mask, scheme)["sdlogj"]


def sdlogj_learn2reg(displacement: Tensor, mask: Tensor | None = None) -> float:
    """SDlogJ as Learn2Reg's evaluation has it: the standard deviation of log(clip(det + 3, 1e-9, 1e9)), whatever folds.

    ``displacement`` (3, *sp) in voxels, central differences, without the two outermost layers of voxels; nan where
    nothing is left. Because of the 3 it is about a quarter of `sdlogj` near the identity: for Learn2Reg's tables alone.
    """
    inner = (slice(2, -2),) * len(displacement)
    values = (determinant(displacement.detach().double())[inner] + 3).clamp(1e-9, 1e9).log()
    if mask is not None:
        values = values[mask[inner] != 0]
    return float(values.std(correction=0)) if values.numel() else float("nan")


def non_diffeomorphic_volume(displacement: Tensor, mask: Tensor | None = None) -> float:
    """NDV: the volume that a displacement (ndim, *sp) in voxels turns inside out (Liu et al., IJCV 2024), in voxels.

    A cell has its corners at 2^ndim neighbouring lattice points. A cube divides in two ways into five tetrahedra
    (four at alternate corners, and the one between them), a square in two ways into two triangles. Each of these
    10 (4 in 2-D) is mapped by its vertices; its signed volume is det / ndim!, where at a corner det is the
    Jacobian's determinant by forward or backward differences, one of the 8 (4) combinations. The result is half
    the sum over all cells and simplices of max(0, -det / ndim!): half, because both divisions fill the cell. In
    2-D it is an area, in pixels.

    0 says that no simplex is turned over, which no single scheme of `regularity` can. With ``mask`` (*sp) only
    cells with all corners in it count. NaN in the displacement gives nan. Works slab by slab.
    """
    u = displacement.detach()
    total = 0.0
    for first in range(0, u.shape[1] - 1, _PLANES):
        part = slice(first, min(first + _PLANES + 1, u.shape[1]))
        slab = u[:, part].to(torch.promote_types(u.dtype, torch.float32))
        folded = torch.zeros([], dtype=slab.dtype, device=slab.device)
        for det in _simplices(slab):
            folded = folded + (-det).relu() / (2 * math.factorial(len(u)))
        if mask is not None:
            inside = (mask[part] != 0)[None].to(folded.device)
            corners = itertools.product((0, 1), repeat=len(u))
            every = torch.stack([_corner(inside, corner)[0] for corner in corners]).all(0)
            folded = folded.where(every, 0.0)
        total += float(folded.double().sum())
    return total


def _corner(x: Tensor, which: Sequence[int | None]) -> Tensor:
    """The values of x (c, *sp) at one corner of every cell; along an axis of None they are there once a cell."""
    slices = {0: slice(None, -1), 1: slice(1, None), None: slice(None)}
    index = (slice(None), *(slices[side] for side in which))
    return x[index]


def _simplices(u: Tensor) -> Iterator[Tensor]:
    """ndim! times the signed volumes of every cell's mapped simplices, simplex by simplex, each over all cells."""
    ndim = len(u)
    identity = torch.eye(ndim, dtype=u.dtype, device=u.device).view(ndim, ndim, *[1] * ndim)
    edges = [u.diff(dim=k + 1) + identity[k] for k in range(ndim)]

    def edge(k: int, *corner: int) -> Tensor:
        """The mapped edge along axis k that begins or ends at a corner."""
        return _corner(edges[k], (*corner[:k], None, *corner[k + 1 :]))

    for corner in itertools.product((0, 1), repeat=ndim):
        yield _determinant([edge(k, *corner) for k in range(ndim)])
    if ndim == 3:
        # Between the corners: from one tip over two edges to each of the others. From (1, 1, 1) all go backwards,
        # which changes the sign of the determinant twice over: the map's, and the still tetrahedron's.
        for a in (0, 1):
            b = 1 - a
            yield _determinant(
                [
                    edge(1, a, a, a) + edge(2, a, b, a),
                    edge(0, a, a, a) + edge(2, b, a, a),
                    edge(0, a, a, a) + edge(1, b, a, a),
                ]
            )


def _determinant(columns: list[Tensor]) -> Tensor:
    """Of the matrices with these columns (ndim, ...)."""
    if len(columns) == 2:
        (a, b), (c, d) = columns
        return a * d - b * c
    a, b, c = columns
    return (
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )


def tre(points_a: Any, points_b: Any) -> dict[str, Any]:
    """Distances between corresponding points (n, ndim): mean, median, sd, max and per_point (list).

    The target registration error when one set is mapped landmarks and the other their true places.
    """
    a, b = (np.asarray(p, dtype=np.float64) for p in (points_a, points_b))
    if a.shape != b.shape or a.ndim != 2:
        raise InputError(f"landmarks must come in pairs, got {a.shape} and {b.shape}")
    if not len(a):
        raise InputError("there are no landmarks")
    distance = np.linalg.norm(a - b, axis=1)
    return {
        "mean": float(distance.mean()),
        "median": float(np.median(distance)),
        "sd": float(distance.std(ddof=1)) if len(a) > 1 else 0.0,
        "max": float(distance.max()),
        "per_point": distance.tolist(),
    }
