"""Who else reads each format: the tool that it is made for, or that tool's few lines. Nothing here uses our readers.

A judge takes a file and the pair, and gives the moving image on the fixed grid and the places of the pair's points. A
planter changes the sign of one axis of the file's content.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch

from neuralreg.images import Image
from tests.formats.known import FLIP, Known
from tests.geometry import itk_image, itk_transform

map_coordinates = pytest.importorskip(
    "scipy.ndimage", reason="the judge of voxel displacements"
).map_coordinates
Judged = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A format, a file name, who judges it, who plants a wrong sign along an axis, and the options of writing."""

    format: str
    file: str
    judge: Callable[[Path, Known], Judged]
    plant: Callable[[Path, int], None]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "-".join([self.format, self.file, *(str(v) for v in self.options.values())])


def judged_by_itk(transform: Any, pair: Known) -> Judged:
    import SimpleITK as sitk

    onto = itk_image(Image(torch.zeros(pair.fixed.shape), pair.fixed.affine))
    warped = sitk.Resample(itk_image(pair.image()), onto, transform, sitk.sitkLinear, 0.0)
    points = [transform.TransformPoint(p) for p in pair.points() * FLIP]
    return sitk.GetArrayFromImage(warped).T, np.array(points) * FLIP


def itk_field(path: Path, pair: Known) -> Judged:
    return judged_by_itk(itk_transform(path), pair)


def itk_file(path: Path, pair: Known) -> Judged:
    import SimpleITK as sitk

    return judged_by_itk(sitk.ReadTransform(str(path)), pair)


def ants_pair(path: Path, pair: Known) -> Judged:
    """As antsApplyTransforms -t 1Warp.nii.gz -t 0GenericAffine.mat stacks them."""
    import SimpleITK as sitk

    affine = sitk.ReadTransform(str(path).replace("1Warp.nii.gz", "0GenericAffine.mat"))
    return judged_by_itk(sitk.CompositeTransform([affine, itk_transform(path)]), pair)


def in_voxels(displacement: np.ndarray, pair: Known) -> Judged:
    """Learn2Reg's and VoxelMorph's use of d (3, X, Y, Z): moving[identity + d]."""
    identity = np.indices(pair.fixed.shape)
    warped = map_coordinates(pair.image().data.numpy(), identity + displacement, order=1)
    voxels = pair.fixed.world_to_voxel(pair.points()).T
    there = voxels + np.stack([map_coordinates(d, voxels, order=1) for d in displacement])
    return warped, pair.moving.voxel_to_world(there.T)


def channels_last(path: Path, pair: Known) -> Judged:
    return in_voxels(np.moveaxis(stored(path, "arr_0"), -1, 0), pair)


def channels_first(path: Path, pair: Known) -> Judged:
    return in_voxels(stored(path, "vol"), pair)


def stored(path: Path, key: str) -> np.ndarray:
    if path.suffix == ".npz":
        return np.load(path)[key]
    return nibabel.load(path).get_fdata()


def sampling_grid(path: Path, pair: Known) -> Judged:
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        grid, corners = content["grid"], content["align_corners"]
    else:
        arrays = np.load(path)
        grid, corners = torch.from_numpy(arrays["grid"]), bool(arrays["align_corners"])
    image = pair.image().data[None, None]
    warped = torch.nn.functional.grid_sample(image, grid, align_corners=corners)[0, 0].numpy()
    # where a voxel goes: what the grid reads from an image of the moving voxels' own indices
    index = torch.from_numpy(np.indices(pair.moving.shape).astype(np.float32))[None]
    there = torch.nn.functional.grid_sample(index, grid, padding_mode="border", align_corners=corners)[
        0
    ].numpy()
    voxels = pair.fixed.world_to_voxel(pair.points()).T
    places = np.stack([map_coordinates(t, voxels, order=1) for t in there])
    return warped, pair.moving.voxel_to_world(places.T)


def x5_by_hand(path: Path, pair: Known) -> Judged:
    """The HDF5 content as the draft describes it: RAS vectors on the fixed grid, then the affine."""
    h5py = pytest.importorskip("h5py", reason="X5 files need h5py (extra x5)")
    with h5py.File(path) as file:
        assert file.attrs["Format"] == "X5"
        vectors = np.asarray(file["TransformGroup/0/Transform"])
        affine = (
            np.asarray(file["TransformGroup/1/Transform"]) if "1" in file["TransformGroup"] else np.eye(4)
        )
        mapping = np.asarray(file["TransformGroup/0/Domain/Mapping"])
    np.testing.assert_allclose(mapping, pair.fixed.affine)

    def places(points: np.ndarray) -> np.ndarray:
        voxels = pair.fixed.world_to_voxel(points).T
        moves = [map_coordinates(vectors[..., k], voxels, order=1, mode="nearest") for k in range(3)]
        moved = points + np.stack(moves, -1)
        return moved @ affine[:3, :3].T + affine[:3, 3]

    world = pair.fixed.voxel_to_world(np.indices(pair.fixed.shape).reshape(3, -1).T)
    voxels = pair.moving.world_to_voxel(places(world)).T
    warped = map_coordinates(pair.image().data.numpy(), voxels, order=1).reshape(pair.fixed.shape)
    return warped, places(pair.points())


def flip_nifti(path: Path, axis: int, first: bool = False) -> None:
    image = nibabel.load(path)
    values = image.get_fdata(dtype=np.float32).copy()
    values[axis if first else (..., axis)] *= -1
    nibabel.save(nibabel.Nifti1Image(values, image.affine, image.header), path)


def flip_arrays(path: Path, axis: int, key: str, first: bool = False) -> None:
    arrays = dict(np.load(path))
    arrays[key][axis if first else (..., axis)] *= -1
    np.savez_compressed(path, **arrays)


def flip_stored(key: str, first: bool) -> Callable[[Path, int], None]:
    def flip(path: Path, axis: int) -> None:
        if path.suffix == ".npz":
            flip_arrays(path, axis, key, first)
        else:
            flip_nifti(path, axis, first)

    return flip


def flip_grid(path: Path, axis: int) -> None:
    content = torch.load(path, weights_only=True)
    content["grid"][..., axis] *= -1
    torch.save(content, path)


def flip_composite(path: Path, axis: int) -> None:
    import SimpleITK as sitk

    composite = sitk.ReadTransform(str(path)).Downcast()
    parts = [composite.GetNthTransform(i).Downcast() for i in range(composite.GetNumberOfTransforms())]
    image = parts[-1].GetDisplacementField()
    values = sitk.GetArrayFromImage(image)
    values[..., axis] *= -1
    flipped = sitk.GetImageFromArray(values, isVector=True)
    flipped.CopyInformation(image)
    sitk.WriteTransform(
        sitk.CompositeTransform([*parts[:-1], sitk.DisplacementFieldTransform(flipped)]), str(path)
    )


def flip_x5(path: Path, axis: int) -> None:
    h5py = pytest.importorskip("h5py", reason="X5 files need h5py (extra x5)")
    with h5py.File(path, "r+") as file:
        vectors = file["TransformGroup/0/Transform"]
        vectors[..., axis] = -vectors[..., axis]


VOXELS = {
    "learn2reg": (channels_last, flip_stored("arr_0", False)),
    "voxelmorph": (channels_first, flip_stored("vol", True)),
}
CASES = [
    Case("itk-nifti", "t.nii.gz", itk_field, flip_nifti),
    Case("itk-h5", "t.h5", itk_file, flip_composite),
    Case("itk-h5", "t.hdf5", itk_file, flip_composite),
    Case("ants", "t1Warp.nii.gz", ants_pair, flip_nifti),
    *(Case(name, f"t{suffix}", *how) for name, how in VOXELS.items() for suffix in (".nii.gz", ".npz")),
    Case("torch-grid", "t.pt", sampling_grid, flip_grid, {"align_corners": True}),
    Case("torch-grid", "t.pt", sampling_grid, flip_grid, {"align_corners": False}),
    Case("torch-grid", "t.npz", sampling_grid, flip_stored("grid", False)),
    Case("x5", "t.x5", x5_by_hand, flip_x5),
]  # fmt: skip
