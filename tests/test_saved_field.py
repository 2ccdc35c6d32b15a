"""Fields read back from their files: at points, on their own grid, on other grids; what is no such file."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from neuralreg import load_transform, register
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image
from neuralreg.saved_field import load_saved_field

AFFINE = np.array([[-1.5, 0, 0, 4.0], [0, 2.0, 0, -3.0], [0, 0, 1.0, 2.0], [0, 0, 0, 1]])
SHIFT = np.array([[1, 0, 0, 0.7], [0, 1, 0, -0.4], [0, 0, 1, 0.2], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A registration of noise, and its field's file."""
    torch.manual_seed(3)
    images = [
        torch.nn.functional.interpolate(
            torch.rand(1, 1, 5, 4, 5), size=(18, 15, 16), mode="trilinear", align_corners=True
        )[0, 0]
        for _ in range(2)
    ]
    path = tmp_path_factory.mktemp("field") / "field.pt"
    result = register(
        *(Image(data, AFFINE) for data in images),
        initial_transform=SHIFT,
        iterations=20,
        levels=2,
        base=3,
        finest=6,
        scales=(1,),
    )
    result.save_field(path)
    return result, path


def test_on_its_own_grid_it_is_the_transform(found):
    result, path = found
    loaded = load_saved_field(path).dense()
    assert result.transform.displacement.abs().max() > 0.3
    torch.testing.assert_close(loaded.displacement, result.transform.displacement, rtol=0, atol=1e-4)
    np.testing.assert_allclose(loaded.initial, SHIFT)
    torch.testing.assert_close(load_transform(path).dense().displacement, loaded.displacement)


@pytest.mark.parametrize("space", ["LPS", "RAS"])
def test_at_voxel_centres_points_move_as_the_transform_moves_them(found, space):
    result, path = found
    index = np.array([[0, 0, 0], [17, 14, 15], [4, 9, 11], [9, 2, 7]])
    points = index @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    if space == "LPS":
        points = points * [-1, -1, 1]
    expected = result.transform.transform_points(points, space)
    np.testing.assert_allclose(load_saved_field(path).transform_points(points, space), expected, atol=1e-3)


def test_on_another_grid_it_is_the_same_map(found):
    _, path = found
    saved = load_saved_field(path)
    turned = np.array([[0, 0.5, 0, -10.0], [0.7, 0, 0, 0.0], [0, 0, -0.9, 12.0], [0, 0, 0, 1]])
    grid = Geometry((9, 11, 8), turned)
    dense = saved.dense(grid)
    index = np.array([[0, 0, 0], [8, 10, 7], [3, 5, 2]])
    points = index @ turned[:3, :3].T + turned[:3, 3]
    np.testing.assert_allclose(
        dense.transform_points(points, "RAS"), saved.transform_points(points, "RAS"), atol=1e-3
    )
    with pytest.raises(InputError, match="2-D"):
        saved.dense(Geometry((4, 4), np.eye(3)))
    assert saved.transform_points(np.zeros((0, 3))).shape == (0, 3)


def test_what_is_no_field_is_told_in_one_line(tmp_path):
    for content, words in ((b"", "not a field"), (b"not torch", "not a field"), (None, "does not exist")):
        path = tmp_path / "other.pt"
        if content is not None:
            path.write_bytes(content)
        elif path.exists():
            path.unlink()
        with pytest.raises(InputError, match=words) as caught:
            load_saved_field(path)
        assert "\n" not in str(caught.value)
    torch.save({"method": "nir"}, tmp_path / "half.pt")
    with pytest.raises(InputError, match="not a field"):
        load_transform(tmp_path / "half.pt")
