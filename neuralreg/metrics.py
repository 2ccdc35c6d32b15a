"""How good a registration is: overlap, distance between landmarks, regularity of the map."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    return torch.cat(list(_determinants(displacement, scheme)))


def _determinants(displacement: Tensor, scheme: str) -> Iterator[Tensor]:
    """The determinant slab by slab, each computed with the planes beside it."""
    from neuralreg import kernels

    n = displacement.shape[1]
    for first in range(0, n, _PLANES):
        last = min(first + _PLANES, n)
        before, after = max(first - 1, 0), min(last + 1, n)
        part = displacement[None, :, before:after]
        yield kernels.jacobian_determinant(part, scheme=scheme)[0, first - before : last - before]


def regularity(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> dict[str, float]:
    """Folds and smoothness of a displacement (ndim, *sp) in voxels, everywhere or in ``mask`` (*sp).

    Returns folds_percent, the percentage of voxels with det <= 0; sdlogj, the standard deviation of log det
    over the voxels with det > 0; min_determinant. nan where no voxel counts. Central differences miss folds
    that alternate from voxel to voxel; "forward" or "backward" as ``scheme`` see those. Works slab by slab.
    """
    voxels = folds = 0
    total = squares = 0.0
    lowest = float("inf")
    for k, det in enumerate(_determinants(displacement.detach(), scheme)):
        if mask is not None:
            det = det[(mask[k * _PLANES : k * _PLANES + len(det)] != 0).to(det.device)]
        if not det.numel():
            continue
        good = det[det > 0].double().log()
        voxels += det.numel()
        folds += det.numel() - good.numel()
        total += float(good.sum())
        squares += float(good.square().sum())
        lowest = min(lowest, float(det.min()))
    count = voxels - folds
    deviation = np.sqrt(max(0.0, squares / count - (total / count) ** 2)) if count else float("nan")
    if not voxels:
        return dict.fromkeys(("folds_percent", "sdlogj", "min_determinant"), float("nan"))
    return {"folds_percent": 100 * folds / voxels, "sdlogj": float(deviation), "min_determinant": lowest}


def folds_percent(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> float:
    """The percentage of voxels with det <= 0; arguments as for `regularity`."""
    return regularity(displacement, mask, scheme)["folds_percent"]


def sdlogj(displacement: Tensor, mask: Tensor | None = None, scheme: str = "central") -> float:
    """The standard deviation of log det where det > 0; arguments as for `regularity`."""
    return regularity(displacement, mask, scheme)["sdlogj"]


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
