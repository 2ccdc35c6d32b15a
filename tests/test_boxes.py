"""Boxes of voxels: grown to blocks, and around what is read."""

from __future__ import annotations

import numpy as np

from neuralreg.boxes import aligned, image_of, longest_axis, readable


def test_boxes_grow_to_blocks_of_the_grid() -> None:
    grid = (17, 9, 3)
    assert aligned(((5, 11), (8, 9), (1, 2)), grid, 4) == ((4, 12), (4, 9), (0, 3))
    assert aligned(((15, 17), (0, 9), (0, 3)), grid, 2) == ((14, 17), (0, 9), (0, 3))
    assert aligned(((16, 17), (8, 9), (2, 3)), grid, 2) == ((14, 17), (6, 9), (0, 3))
    assert [longest_axis(shape) for shape in ((3, 5, 5), (7, 5, 5), (4, 4))] == [2, 0, 1]


def test_what_is_read_at_mapped_positions() -> None:
    affine = np.array([[0.0, -2.0, 1.0], [1.0, 0.0, 0.5]])
    low, high = image_of(affine, np.array([1.0, 2.0]), np.array([3.0, 4.5]))
    np.testing.assert_allclose([low, high], [[-8.0, 1.5], [-3.0, 3.5]])
    assert readable(np.array([-3.0, 2.5]), np.array([-1.0, 9.0]), (5, 8)) == ((0, 1), (2, 8))
    assert readable(np.array([7.0, 1.0]), np.array([9.0, 1.2]), (5, 8)) == ((4, 5), (1, 3))
