"""Rigid and affine maps by a few numbers, all in millimetres."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor

MODELS = ("rigid", "affine")


class LinearModel:
    """Maps x -> begin(c + exp(G(p)) (x - c)) of world points, 0 being ``begin`` itself.

    G(p) is a sum of generators: shifts along every axis, rotations in every plane and, for "affine", stretches and
    shears. All are scaled so that a parameter is about the millimetres by which points at ``radius`` from the centre c
    move: one step size then suits all. An exponential never mirrors, and without stretches it is a rotation.
    """

    def __init__(self, model: str, begin: np.ndarray, centre: np.ndarray, radius: float) -> None:
        ndim = len(centre)
        generators = []
        for axis in range(ndim):
            generators.append(_entry(ndim, axis, ndim, 1.0))
        for a, b in itertools.combinations(range(ndim), 2):
            generators.append((_entry(ndim, a, b, 1.0) - _entry(ndim, b, a, 1.0)) / radius)
        if model == "affine":
            for a, b in itertools.combinations_with_replacement(range(ndim), 2):
                both = _entry(ndim, a, b, 0.5) + _entry(ndim, b, a, 0.5)
                generators.append(both / radius)
        self.generators = torch.from_numpy(np.stack(generators))
        there, back = np.eye(ndim + 1), np.eye(ndim + 1)
        there[:-1, -1], back[:-1, -1] = centre, -centre
        self.left, self.right = torch.from_numpy(begin @ there), torch.from_numpy(back)

    @property
    def count(self) -> int:
        """How many parameters there are."""
        return len(self.generators)

    def matrix(self, parameters: Tensor) -> Tensor:
        """(ndim + 1, ndim + 1) float64 of ``count`` float64 parameters, differentiable."""
        inner = torch.matrix_exp(torch.einsum("k,kij->ij", parameters, self.generators))
        return self.left @ inner @ self.right


def _entry(ndim: int, row: int, column: int, value: float) -> np.ndarray:
    matrix = np.zeros((ndim + 1, ndim + 1))
    matrix[row, column] = value
    return matrix
