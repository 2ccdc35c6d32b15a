"""The k-th smallest of values that are spread over the ranks, exactly, without bringing them together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from neuralreg.sharded.ranks import Together

HALF = 1 << 16
AT_ONCE = 1 << 20  # values that are counted at once


def order_statistics(ranks: Together, values: np.ndarray, positions: Sequence[int]) -> list[float]:
    """The values at these positions of the sorted whole, 0 the smallest.

    ``values`` (n,) float32 without NaN are this rank's share. The bits of a float, taken as a number, are ordered as
    the floats are: the upper and then the lower half of the bits are found by counting over all ranks.
    """
    found = []
    upper = ranks.counts(_counted(values, None))
    for position in positions:
        first, before = _place(upper, position)
        second, _ = _place(ranks.counts(_counted(values, first)), position - before)
        found.append(_float(first << 16 | second))
    return found


def _counted(values: np.ndarray, upper: int | None) -> torch.Tensor:
    """How many values have each upper half, or each lower half among those with a given upper one."""
    counts = np.zeros(HALF, dtype=np.int64)
    for start in range(0, len(values), AT_ONCE):
        keys = _keys(values[start : start + AT_ONCE])
        high = keys >> 16
        low = high if upper is None else keys[high == upper] & (HALF - 1)
        counts += np.bincount(low, minlength=HALF)
    return torch.from_numpy(counts)


def _place(counts: torch.Tensor, position: int) -> tuple[int, int]:
    """The bin that holds a position, and how many values lie in the bins before it."""
    ends = counts.cumsum(0)
    index = int(torch.searchsorted(ends, torch.tensor(position), right=True))
    return index, int(ends[index] - counts[index])


def _keys(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values + np.float32(0)).view(np.uint32)  # + 0: there is one zero alone
    return np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _float(key: int) -> float:
    bits = key & ~(1 << 31) if key >> 31 else ~key & 0xFFFFFFFF
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])
