"""What a fit asks of a map: the same of scattered points as of a lattice."""

from __future__ import annotations

import torch

from neuralreg.losses import mean_over
from neuralreg.objective import analytic_regularity, lattice_regularity, one_step_beyond
from neuralreg.samplers import axis_coordinates, lattice_coordinates


def test_bending_of_scattered_points_is_that_of_a_lattice():
    """A map of second order has the same second differences everywhere, so that a draw of axes is an average."""
    grid = (15, 12, 9)
    curves = torch.randn(3, 3, 3)
    curves = (curves + curves.transpose(1, 2)) / 50
    half = torch.tensor([(n - 1) / 2 for n in grid])

    def voxels(x):
        return x * half

    def displacement(x):  # in field coordinates
        return torch.einsum("nk,ikl,nl->ni", voxels(x), curves, voxels(x)) / 2 / half

    def jacobian(x):
        return torch.einsum("ikl,nl->nik", curves, voxels(x)) * half / half[:, None]

    lattice = lattice_coordinates([axis_coordinates(torch.arange(float(n)), n) for n in grid])
    dense = (displacement(lattice) * half).T.reshape(1, 3, *grid)
    weights = {"folding": 0.0, "bending": 2.0}
    expected = lattice_regularity(dense, **weights)
    torch.testing.assert_close(
        lattice_regularity(dense, **weights, mean=lambda values: mean_over(values)),
        expected,
        rtol=1e-3,
        atol=0,
    )
    torch.manual_seed(0)
    x = torch.rand(20_000, 3) * 2 - 1
    found = analytic_regularity(jacobian(x), grid, **weights, beyond=jacobian(one_step_beyond(x, grid)))
    torch.testing.assert_close(
        found, expected, rtol=0.02, atol=0
    )  # three values, each drawn 20,000 / 3 times
    assert expected > 0.01
    assert analytic_regularity(jacobian(x), grid, **weights, beyond=jacobian(x)) == 0


def test_a_step_beyond_stays_inside():
    x = torch.tensor([[1.0, -1.0, 0.0]]).repeat(50, 1)
    beyond = one_step_beyond(x, (9, 5, 1), scale=2)
    assert beyond.abs().max() <= 1
    moved = (beyond - x).abs()
    assert set(moved[:, 0].tolist()) == {0.0, 0.5}
    assert set(moved[:, 1].tolist()) == {0.0, 1.0}
    assert not moved[:, 2].any()
