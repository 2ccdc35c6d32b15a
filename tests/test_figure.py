"""The quality-control picture: what it shows, which way round, and that folds and sizes do not break it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")

from neuralreg.errors import InputError
from neuralreg.figure import registration_figure
from neuralreg.images import Image
from neuralreg.planes import planes_of
from neuralreg.transforms import Transform
from tests.pictured import registration


def pixels(path: Path) -> np.ndarray:
    from matplotlib.image import imread

    return imread(path)[..., :3]


@pytest.mark.parametrize("shape", [(20, 24, 16), (30, 22), (20, 24, 1)])
@pytest.mark.parametrize("length", [0, 1, 60])
def test_draws(shape: tuple[int, ...], length: int, tmp_path: Path) -> None:
    shift = torch.zeros(len(shape), *shape)
    shift[0] = 2
    spacing = [1.0, 1.5, 3.0][: len(shape)]
    registration_figure(registration(shift, np.diag([*spacing, 1.0]), length), tmp_path / "q.png")
    picture = pixels(tmp_path / "q.png")
    assert picture.shape[1] == 2100
    assert picture.std() > 0.05, "not an empty page"
    assert [path.name for path in tmp_path.iterdir()] == ["q.png"]


def test_folds_are_marked(tmp_path: Path) -> None:
    shape = (20, 24, 16)
    folded = torch.zeros(3, *shape)
    folded[0, 9:12] = torch.tensor([3.0, 0.0, -3.0]).view(3, 1, 1)
    green = []
    for name, u in (("plain", torch.zeros(3, *shape)), ("folded", folded)):
        registration_figure(registration(u, np.eye(4)), tmp_path / f"{name}.png")
        picture = pixels(tmp_path / f"{name}.png")
        green.append(int((np.abs(picture - [0, 200 / 255, 0]) < 0.02).all(-1).sum()))
    assert green[0] == 0
    assert green[1] > 100


def test_folded_everywhere(tmp_path: Path) -> None:
    index = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in (12, 12)], indexing="ij"))
    mirrored = torch.stack([-2 * index[0], torch.zeros(12, 12)])
    registration_figure(registration(mirrored, np.eye(3)), tmp_path / "q.png")


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, -1, 1), (1, -1, -1)])
def test_planes_are_those_of_the_head(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """Every plane runs to the right, the front and the top, however the file is stored."""
    shape = (10, 11, 12)  # right, front, up
    world = sum(np.meshgrid(*[np.arange(n, dtype=np.float32) for n in shape], indexing="ij"))
    affine = np.eye(4)
    affine[:3, :3] = 0
    for array_axis, world_axis in enumerate(order):
        affine[world_axis, array_axis] = signs[world_axis] * (1 + world_axis)
    stored = world[tuple(slice(None, None, sign) for sign in signs)].transpose(order)
    image = Image(torch.from_numpy(np.ascontiguousarray(stored)), affine)
    u = torch.zeros(3, *image.shape)
    u[order.index(2)] = float(signs[2])  # one voxel up in the world
    transform = Transform(u, image.geometry, image.geometry)
    planes = planes_of(SimpleNamespace(transform=transform, fixed=image, moving=image, warped=image))
    assert [plane.name for plane in planes] == ["axial", "coronal", "sagittal"]
    assert [plane.fixed.shape for plane in planes] == [(10, 11), (10, 12), (11, 12)]
    assert [plane.spacing for plane in planes] == [(1, 2), (1, 3), (2, 3)]
    coronal = planes[1]
    assert np.allclose(coronal.position[1], np.arange(12) * 3 + 3)
    assert np.allclose(coronal.position[0], np.arange(10)[:, None])
    for plane in planes:
        assert (np.diff(plane.fixed, axis=0) > 0).all()
        assert (np.diff(plane.fixed, axis=1) > 0).all()


def test_bad_path_and_no_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = registration(torch.zeros(2, 12, 12), np.eye(3))
    with pytest.raises(InputError, match="does not exist"):
        registration_figure(subject, tmp_path / "nowhere" / "q.png")
    with pytest.raises(InputError, match=r"\.png"):
        registration_figure(subject, tmp_path / "q.jpg")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install"):
        registration_figure(subject, tmp_path / "q.png")
