"""The figures of Learn2Reg's evaluation (github.com/MDL-UzL/L2R, evaluation/evaluation.py).

What its tables hold differs from what the names say elsewhere, and is kept: HD95 is in voxels (spacing one), TRE
interpolates the displacement by cubic splines and multiplies by the moving image's spacing, labels are read by the
nearest voxel with 0 outside, and SDlogJ is that of `neuralreg.metrics.sdlogj_learn2reg`. One figure is not kept: its
num_foldings counts after 3 has been added and the values have been clipped to be positive, so it is 0 for every field.
Here ``folds`` counts det <= 0 over the same voxels.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.errors import InputError
from neuralreg.images import read_labels, read_mask
from neuralreg.metrics import determinant, dice, sdlogj_learn2reg
from neuralreg.reading import by, open_nibabel, voxels_of
from neuralreg.surface import require_surface_distance, surface_distances
from neuralreg.writing import brief

METRICS = ("sdlogj", "dice", "hd95", "tre")
_NAME = re.compile(r"_(\d{4})_(\d{4})\.nii\.gz$")


@dataclass(frozen=True)
class Case:
    """One pair of a configuration: image files relative to the data, subjects and modalities as their names say."""

    fixed: str
    moving: str
    subjects: tuple[str, str]
    modalities: tuple[str, str]

    @property
    def name(self) -> str:
        (fixed, moving), (first, second) = self.subjects, self.modalities
        return f"{fixed}_{first}<--{moving}_{second}"

    @property
    def alike(self) -> bool:
        """Whether files of this pair leave the modality out."""
        return self.modalities[0] == self.modalities[1] or self.modalities == ("0000", "0001")

    def field(self, folder: Path) -> Path:
        """The displacement file of the pair."""
        (fixed, moving), (first, second) = self.subjects, self.modalities
        names = [f"disp_{fixed}_{first}_{moving}_{second}"]
        if self.alike:
            names.insert(0, f"disp_{fixed}_{moving}")
        for name in names:
            for suffix in (".npz", ".nii.gz"):
                if (folder / (name + suffix)).is_file():
                    return folder / (name + suffix)
        raise InputError(f"{folder} holds no displacement {names[0]}.nii.gz or .npz for the pair {self.name}")


def evaluate_learn2reg(
    config: str | os.PathLike[str], fields: str | os.PathLike[str], data: str | os.PathLike[str] | None = None
) -> dict[str, Any]:
    """What Learn2Reg's script writes, with ``folds`` in the place of num_foldings.

    Args:
        config: its evaluation_config.json.
        fields: folder of ``disp_FFFF_MMMM.nii.gz`` or ``.npz`` (array arr_0), (X, Y, Z, 3) in fixed voxels.
        data: folder of the data set, with imagesTr, labelsTr and the like; by default that of ``config``.

    Returns:
        name, aggregates (metric -> mean, std, and 30: the third decile, of SDlogJ and TRE the seventh), cases (pair ->
        metric -> mean, detailed) and implementation.

    Raises:
        InputError: a configuration that cannot be read, files that are missing or of another shape.
    """
    config, fields = Path(config), Path(fields)
    if importlib.util.find_spec("scipy") is None:
        raise InputError("Learn2Reg's figures need scipy; pip install 'neuralreg[evaluate]'")
    content, cases = read_config(config)
    if not fields.is_dir():
        raise InputError(f"displacements {fields}: no such folder")
    paths = [case.field(fields) for case in cases]  # what is missing shows before any work
    methods = content["evaluation_methods"]
    surface = any(method["metric"] == "hd95" for method in methods) and require_surface_distance()
    folder = config.parent if data is None else Path(data)
    results = {}
    for case, path in zip(cases, paths, strict=True):
        displacement = read_field(path, content["expected_shape"])
        masked = bool(content.get("masked_evaluation", False))
        results[case.name] = dict(figures(case, displacement, folder, methods, masked))
    table: dict[str, list[float]] = {}
    for found in results.values():
        for name, entry in found.items():
            table.setdefault(name, []).append(entry["mean"])
    worse = {m["name"]: 0.7 if m["metric"] in ("sdlogj", "tre") else 0.3 for m in methods}
    aggregates = {
        name: {
            "mean": float(np.mean(values)),
            "std": float(np.std(values)),
            "30": float(np.quantile(values, worse.get(name, 0.7))),
        }
        for name, values in table.items()
    }
    return {
        "name": content["task_name"],
        "aggregates": aggregates,
        "cases": results,
        "implementation": {
            "hd95": f"{surface}, in voxels" if surface else None,
            "folds": "det <= 0 of central differences without the two outermost layers; Learn2Reg's num_foldings "
            "is 0 for every field and is left out",
        },
    }


def read_config(path: Path) -> tuple[dict[str, Any], list[Case]]:
    """A configuration and its pairs, checked."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        pairs = [(str(pair["fixed"]), str(pair["moving"])) for pair in content["eval_pairs"]]
        content["task_name"], [int(n) for n in content["expected_shape"]]
        if len({method["name"] for method in content["evaluation_methods"]} - {"folds"}) < len(
            content["evaluation_methods"]
        ):
            raise InputError(f"{path}: every evaluation method needs a name of its own, other than folds")
        for method in content["evaluation_methods"]:
            needed = {"dice": "labels", "hd95": "labels", "tre": "dest"}.get(method["metric"], "name")
            method["name"], method[needed]
            if method["metric"] not in METRICS:
                raise InputError(
                    f"{path}: metric '{method['metric']}' is not known; known are {', '.join(METRICS)}"
                )
    except OSError as error:
        raise InputError(f"configuration {path} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is no evaluation_config.json of Learn2Reg ({type(error).__name__}: {brief(error)})"
        ) from None
    cases = []
    for files in pairs:
        found = [_NAME.search(file) for file in files]
        if None in found:
            raise InputError(
                f"{path}: images of a pair must end in _SSSS_MMMM.nii.gz, got {' and '.join(files)}"
            )
        words = [match.groups() for match in found if match]
        cases.append(Case(*files, (words[0][0], words[1][0]), (words[0][1], words[1][1])))
    if not cases:
        raise InputError(f"{path} lists no pairs")
    return content, cases


def read_field(path: Path, shape: list[int]) -> np.ndarray:
    """A displacement (X, Y, Z, 3) in voxels, of the expected shape."""
    if path.suffix == ".npz":
        try:
            with np.load(path, allow_pickle=False) as file:
                values = file["arr_0"].astype(np.float32, copy=False)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
            raise InputError(f"displacement {path} holds no array arr_0 ({brief(error)})") from None
    else:
        name = f"displacement {path}"
        values = np.asarray(voxels_of(open_nibabel(path, name), name), dtype=np.float64)
    if list(values.shape) != list(shape):
        raise InputError(
            f"displacement {path} has shape {by(values.shape)}, the task expects {by(tuple(shape))}"
        )
    return values


def figures(
    case: Case, displacement: np.ndarray, folder: Path, methods: list[dict[str, Any]], masked: bool
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The figures of one pair by name, each with mean and detailed."""
    wanted = {method["metric"] for method in methods}
    mask = None
    if masked and (file := folder / case.fixed.replace("images", "masks")).exists():
        mask = read_mask(file, role="mask").data
    labels: list[np.ndarray] = []
    if wanted & {"dice", "hd95"}:
        labels = _labels(case, displacement, folder)
    for method in methods:
        name, metric = method["name"], method["metric"]
        if metric == "sdlogj":
            u = torch.from_numpy(np.ascontiguousarray(np.moveaxis(displacement, -1, 0)))
            value = sdlogj_learn2reg(u, mask)
            yield name, {"mean": value, "detailed": value, "masked": mask is not None}
            count = int((determinant(u.double())[2:-2, 2:-2, 2:-2] <= 0).sum())
            yield "folds", {"mean": count, "detailed": count}
        elif metric == "tre":
            errors = _tre(case, displacement, folder, method["dest"])
            yield name, {"mean": float(errors.mean()), "detailed": errors.tolist()}
        else:
            fixed, moving, warped = labels
            # A label that either image lacks has no figure, whatever the field makes of it.
            known = [k for k in method["labels"] if (fixed == k).any() and (moving == k).any()]
            found: Mapping[int, float] = (
                dice(fixed, warped, known)
                if metric == "dice"
                else surface_distances(fixed, warped, known, (1.0, 1.0, 1.0))[0]
            )
            detailed = [found.get(k, float("nan")) for k in method["labels"]]
            yield name, {"mean": float(np.mean(list(found.values()) or [np.nan])), "detailed": detailed}


def _labels(case: Case, displacement: np.ndarray, folder: Path) -> list[np.ndarray]:
    """Fixed, moving and warped label maps."""
    from scipy.ndimage import map_coordinates

    fixed, moving = (
        read_labels(folder / file.replace("images", "labels"), role=f"{role} labels").data.numpy()
        for role, file in (("fixed", case.fixed), ("moving", case.moving))
    )
    if fixed.shape != displacement.shape[:3]:
        raise InputError(
            f"pair {case.name}: the fixed labels have shape {by(fixed.shape)}, the displacement "
            f"{by(displacement.shape[:3])}"
        )
    identity = np.meshgrid(*[np.arange(n) for n in fixed.shape], indexing="ij")
    points = np.stack(identity) + np.moveaxis(displacement, -1, 0)
    return [fixed, moving, map_coordinates(moving, points, order=0)]


def _tre(case: Case, displacement: np.ndarray, folder: Path, place: str) -> np.ndarray:
    """Distances (n,) between mapped fixed landmarks and moving ones, voxel differences times the moving spacing."""
    from scipy.ndimage import map_coordinates

    points = []
    for file in (case.fixed, case.moving):
        path = _landmark_file(case, folder, file, place)
        try:
            points.append(np.loadtxt(path, delimiter=",", ndmin=2))
        except (OSError, ValueError) as error:
            raise InputError(f"landmarks {path} cannot be read ({brief(error)})") from None
    fixed, moving = points
    if fixed.shape != moving.shape or fixed.shape[1] != 3:
        raise InputError(f"pair {case.name}: landmarks of shape {by(fixed.shape)} and {by(moving.shape)}")
    spacing = open_nibabel(folder / case.moving, f"moving image {folder / case.moving}").header.get_zooms()[
        :3
    ]
    moved = np.stack([map_coordinates(displacement[..., k], fixed.T) for k in range(3)], 1)
    distances: np.ndarray = np.linalg.norm((fixed + moved - moving) * np.asarray(spacing), axis=1)
    return distances


def _landmark_file(case: Case, folder: Path, image: str, place: str) -> Path:
    """The csv of an image; of two modalities that differ, in the folder of what corresponds between them.

    That folder has been called keypoints01Tr, and keypoints00000001Tr since.
    """
    names = [place]
    if not case.alike:
        low, high = sorted(case.modalities)
        names = [f"{place}{low}{high}", f"{place}{int(low)}{int(high)}"]
    paths = [folder / image.replace("images", name).replace(".nii.gz", ".csv") for name in names]
    return next((path for path in paths if path.exists()), paths[0])
