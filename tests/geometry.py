"""Helpers of the geometry tests: awkward headers, smooth maps, and SimpleITK as the judge."""

from __future__ import annotations

import numpy as np
import torch

from neuralreg.images import Geometry, Image


def rotation(x: float, y: float, z: float) -> np.ndarray:
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_x @ about_y @ about_z


def grid(shape, spacing, angles=(0.0, 0.0, 0.0), centre=(0.0, 0.0, 0.0), flip=()) -> Geometry:
    """A grid with the given rotation and centre; axes in ``flip`` run backwards."""
    linear = rotation(*angles) @ np.diag(np.array(spacing, dtype=float))
    linear[:, list(flip)] *= -1
    affine = np.eye(4)
    affine[:3, :3] = linear
    affine[:3, 3] = np.array(centre) - linear @ ((np.array(shape) - 1) / 2)
    return Geometry(shape, affine)


# fixed grid, moving grid: both cover the world around (10, -20, 300)
CENTRE = (10.0, -20.0, 300.0)
GRIDS = {
    "plain": (grid((18, 20, 16), (2, 2, 2), centre=CENTRE), grid((18, 20, 16), (2, 2, 2), centre=CENTRE)),
    "anisotropic": (
        grid((24, 18, 12), (1.5, 2, 3.2), centre=CENTRE),
        grid((16, 22, 19), (2.4, 1.8, 2), centre=CENTRE),
    ),
    "oblique": (
        grid((20, 18, 16), (1.8, 2, 2.5), (0.3, -0.2, 0.5), CENTRE),
        grid((19, 21, 17), (2.1, 1.9, 2.3), (-0.25, 0.35, 0.1), CENTRE),
    ),
    "left-handed": (
        grid((20, 18, 16), (1.8, 2, 2.5), (0.2, 0.3, -0.4), CENTRE, flip=(0,)),
        grid((19, 21, 17), (2.1, 1.9, 2.3), (0.1, -0.3, 0.2), CENTRE, flip=(0, 1, 2)),
    ),
}


def initial_affine() -> np.ndarray:
    """A rotation, a scale and a shift about CENTRE, RAS."""
    linear = rotation(0.1, -0.15, 0.2) @ np.diag([1.05, 0.95, 1.1])
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = np.array(CENTRE) - linear @ np.array(CENTRE) + [2.0, -1.5, 3.0]
    return matrix


def world_of(geometry: Geometry) -> np.ndarray:
    """RAS positions (*sp, ndim) of all voxels."""
    index = np.stack(np.meshgrid(*[np.arange(n) for n in geometry.shape], indexing="ij"), -1)
    return geometry.voxel_to_world(index.reshape(-1, geometry.ndim)).reshape(index.shape)


def pattern(world: np.ndarray) -> np.ndarray:
    """A smooth image without symmetry, given at RAS positions: any swapped or negated axis changes it."""
    x = (world - np.array(CENTRE)[: world.shape[-1]]) / 20
    value = np.sin(1.3 * x[..., 0] + 0.4) + 0.8 * np.cos(1.7 * x[..., 1] - 0.9) + 0.3 * x[..., 0] * x[..., 1]
    return value + (0.6 * np.sin(2.1 * x[..., 2] + 1.2) + 0.2 * x[..., 2] if x.shape[-1] == 3 else 0)


def image_on(geometry: Geometry) -> Image:
    return Image(torch.from_numpy(pattern(world_of(geometry)).astype(np.float32)), geometry.affine)


def smooth_displacement(shape: tuple[int, ...], size: float = 1.5) -> torch.Tensor:
    """A smooth displacement (ndim, *shape) in voxels, different along every axis, not zero at the border."""
    index = np.meshgrid(*[np.arange(n) / n for n in shape], indexing="ij")
    total = sum((k + 1) * p for k, p in enumerate(index))
    channels = [np.sin(2.1 * total + 1.1 * k) + 0.4 * (k - 1) for k in range(len(shape))]
    return torch.from_numpy(size * np.stack(channels).astype(np.float32))


def itk_image(image: Image):
    """The SimpleITK image of a 3-D or 2-D Image, made without neuralreg's own writing."""
    import SimpleITK as sitk

    d = image.ndim
    flip = np.diag([-1.0, -1.0, 1.0][:d])
    out = sitk.GetImageFromArray(image.data.numpy().T)
    out.SetSpacing(image.spacing)
    out.SetOrigin(flip @ image.origin)
    out.SetDirection((flip @ image.direction).ravel())
    return out


def itk_transform(path):
    """A displacement field file as ITK reads it."""
    import SimpleITK as sitk

    return sitk.DisplacementFieldTransform(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkVectorFloat64))
