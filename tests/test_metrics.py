import numpy as np
import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.images import Image
from neuralreg.landmarks import read_landmarks
from neuralreg.metrics import (
    determinant,
    dice,
    folds_percent,
    mean_dice,
    non_diffeomorphic_volume,
    regularity,
    sdlogj,
    tre,
)
from tests.geometry import smooth_displacement


def test_dice_by_hand():
    a = torch.tensor([0, 1, 1, 1, 2, 2, 5])
    b = torch.tensor([0, 1, 1, 2, 2, 0, 0])
    expected = {1: 2 * 2 / 5, 2: 2 * 1 / 4, 5: 0.0}
    assert dice(a, b) == pytest.approx(expected)
    assert dice(a.numpy(), b.numpy()) == pytest.approx(expected)
    chosen = dice(a, b, labels=[2, 9])
    assert list(chosen) == [2, 9]
    assert np.isnan(chosen[9])
    assert mean_dice(chosen) == 0.5
    assert np.isnan(mean_dice({}))
    big = {-3: 1.0, 2**30: 1.0}
    far = torch.tensor([-3, 2**30, 0])
    assert dice(far, far) == big
    assert dice(Image(a.view(7, 1), np.eye(3)), Image(a.view(7, 1), np.eye(3))) == {1: 1, 2: 1, 5: 1}
    with pytest.raises(InputError, match="one shape"):
        dice(a, b[:3])
    with pytest.raises(InputError, match="integer"):
        dice(a.float(), b.float())


def test_determinant_of_an_affine_map_is_exact():
    matrix = torch.tensor([[0.1, 0.2, 0.0], [0.0, -0.3, 0.1], [0.05, 0.0, 0.2]])
    index = torch.stack(torch.meshgrid(*[torch.arange(n).float() for n in (70, 6, 5)], indexing="ij"))
    u = torch.einsum("ck,kxyz->cxyz", matrix, index)
    expected = float(torch.det(torch.eye(3) + matrix))
    torch.testing.assert_close(determinant(u), torch.full((70, 6, 5), expected), rtol=1e-4, atol=0)
    found = regularity(u)
    assert found["folds_percent"] == 0
    assert found["sdlogj"] == pytest.approx(0, abs=1e-4)
    assert found["min_determinant"] == pytest.approx(expected, rel=1e-4)


def test_slabs_join_without_a_seam():
    from neuralreg import kernels

    u = smooth_displacement((70, 8, 9), 3.0)
    for scheme in ("forward", "backward", "central"):
        whole = kernels.jacobian_determinant(u[None], scheme=scheme)[0]
        torch.testing.assert_close(determinant(u, scheme), whole)


def test_folds_and_sdlogj():
    u = torch.zeros(3, 10, 4, 4)
    u[0, 5:] = -3.0  # det is 1 + (u[i+1] - u[i-1]) / 2 = -0.5 at two planes
    assert folds_percent(u) == pytest.approx(20)
    assert folds_percent(u, scheme="forward") == pytest.approx(10)
    assert regularity(u)["min_determinant"] == pytest.approx(-0.5)
    assert regularity(u)["folds"] == 32
    mask = torch.zeros(10, 4, 4)
    mask[:4] = 1
    assert folds_percent(u, mask) == 0
    assert sdlogj(u, mask) == 0
    v = smooth_displacement((40, 12, 10), 1.0)
    det = determinant(v).double()
    good = det > 0
    assert sdlogj(v) == pytest.approx(float(det[good].log().std(correction=0)), rel=1e-6)
    inside = torch.rand(40, 12, 10) > 0.5
    assert sdlogj(v, inside) == pytest.approx(float(det[good & inside].log().std(correction=0)), rel=1e-6)
    nothing = regularity(v, torch.zeros(40, 12, 10))
    assert nothing.pop("folds") == 0
    assert all(np.isnan(x) for x in nothing.values())
    flat = smooth_displacement((20, 24))
    assert determinant(flat).shape == (20, 24)


def test_ndv_of_maps_known_by_hand():
    assert non_diffeomorphic_volume(torch.zeros(3, 5, 6, 7)) == 0
    assert non_diffeomorphic_volume(torch.zeros(2, 5, 6)) == 0
    # An axis reversed: all of every cell, whichever way it is divided.
    back = -2 * torch.arange(40.0)
    for axis, size in ((0, (40, 3, 4)), (2, (3, 4, 40))):
        u = torch.zeros(3, *size)
        u[axis] = back.view([-1 if k == axis else 1 for k in range(3)])
        assert non_diffeomorphic_volume(u) == pytest.approx(39 * 2 * 3)
        inside = torch.zeros(size)
        inside[:3, :2, :3] = 1
        assert non_diffeomorphic_volume(u, inside) == pytest.approx(2 * 1 * 2)
    # One voxel 1.5 ahead along the first axis. In 2-D it passes its neighbour in two cells, and each turns over two
    # triangles, at the voxel and at the neighbour, of det -0.5 and so area 0.25: half of 4 x 0.25.
    flat = torch.zeros(2, 5, 5)
    flat[0, 2, 2] = 1.5
    assert non_diffeomorphic_volume(flat) == pytest.approx(0.5)
    # In 3-D there are four cells, 8 tetrahedra of det -0.5 and volume 0.5 / 6; the tetrahedra between the corners
    # turn over only from 2 on.
    deep = torch.zeros(3, 5, 5, 5)
    deep[0, 2, 2, 2] = 1.5
    assert non_diffeomorphic_volume(deep) == pytest.approx(8 * 0.5 / 6 / 2)
    deep[0, 2, 2, 2] = 2.5  # now four of them as well, by 0.5 / 6 each
    assert non_diffeomorphic_volume(deep) == pytest.approx((8 * 1.5 + 4 * 0.5) / 6 / 2)
    # The checkerboard that central differences do not see (Liu et al., figure 1): they have det 1 at the voxel.
    assert float(determinant(deep)[2, 2, 2]) == 1
    deep[0, 2, 2, 2] = float("nan")
    assert np.isnan(non_diffeomorphic_volume(deep))


def test_ndv_is_the_signed_volume_of_both_divisions():
    u = smooth_displacement((9, 10, 8), 1.0)
    assert non_diffeomorphic_volume(u) == 0  # no folds
    u = 3 * torch.randn(3, 4, 5, 6, dtype=torch.float64)
    x = np.stack(np.meshgrid(*map(np.arange, (4, 5, 6)), indexing="ij"), -1) + u.permute(1, 2, 3, 0).numpy()
    total = 0.0
    for cell in np.ndindex(3, 4, 5):
        corners = {c: x[tuple(np.add(cell, c))] for c in np.ndindex(2, 2, 2)}
        for parity in (0, 1):
            tips = [c for c in corners if sum(c) % 2 == parity]
            # five tetrahedra: at each corner of the other parity with its three neighbours, and the tips
            tetrahedra = [[c, *[t for t in tips if np.abs(np.subtract(c, t)).sum() == 1]] for c in corners]
            tetrahedra = [t for t in tetrahedra if len(t) == 4] + [tips]
            for t in tetrahedra:
                still = np.linalg.det(np.subtract(t[1:], t[0]))
                moved = np.linalg.det(np.stack([corners[c] - corners[t[0]] for c in t[1:]]))
                total += max(0.0, -moved * np.sign(still) / 6) / 2
    assert non_diffeomorphic_volume(u) == pytest.approx(total)
    assert total > 100


def test_tre():
    a = np.zeros((3, 3))
    b = np.array([[3.0, 4, 0], [0, 0, 1], [0, 0, 0]])
    found = tre(a, b)
    assert found["per_point"] == [5, 1, 0]
    assert (found["mean"], found["median"], found["max"]) == (2, 1, 5)
    assert found["sd"] == pytest.approx(np.std([5, 1, 0], ddof=1))
    with pytest.raises(InputError, match="pairs"):
        tre(a, b[:2])
    with pytest.raises(InputError, match="no landmarks"):
        tre(a[:0], b[:0])


def test_landmarks(tmp_path):
    path = tmp_path / "l.csv"
    path.write_text(
        "id,moving_x_ras,moving_y_ras,moving_z_ras,fixed_x_ras,fixed_y_ras,fixed_z_ras\n1,4,5,6,1,2,3\n\n"
    )
    fixed, moving = read_landmarks(path)
    assert fixed.tolist() == [[-1, -2, 3]]
    assert moving.tolist() == [[-4, -5, 6]]
    with pytest.raises(InputError, match="header says RAS, the option says LPS"):
        read_landmarks(path, "lps")
    path.write_text("fixed_x,fixed_y,moving_x,moving_y\n1,2,3,4\n")
    assert read_landmarks(path, "LPS")[1].tolist() == [[3, 4]]
    with pytest.raises(InputError, match="--landmarks-space"):
        read_landmarks(path)
    for text, words in {
        "": "must name the columns",
        "a,b\n1,2\n": "must name the columns",
        "fixed_x,fixed_y,moving_x,moving_y\n": "no points",
        "fixed_x,fixed_y,moving_x,moving_y\n1,2,3\n": "does not hold 4 numbers",
        "fixed_x,fixed_y,moving_x,moving_y\n1,2,3,x\n": "does not hold 4 numbers",
        "fixed_x,fixed_y,moving_x,moving_y\n1,2,3,nan\n": "NaN",
    }.items():
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_landmarks(path, "RAS")
    with pytest.raises(InputError, match="unknown space"):
        read_landmarks(path, "xyz")
    with pytest.raises(InputError, match="does not exist"):
        read_landmarks(tmp_path / "missing.csv")


def test_figures_are_plain_numbers() -> None:
    """They go into checkpoints and JSON files, which know no numpy numbers."""
    found = regularity(torch.zeros(2, 5, 6))
    assert {name: type(value) for name, value in found.items()} == {
        "folds": int,
        **dict.fromkeys(("folds_percent", "sdlogj", "min_determinant"), float),
    }
