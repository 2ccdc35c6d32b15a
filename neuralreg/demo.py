"""Registration of real anatomy against a truth that is known exactly.

The MNI152 T1 template that ships in the nilearn wheel is the fixed image F. A smooth diffeomorphism g takes
points of the moving image to points of the fixed image, and the moving image is the template pulled through
it,

    M(y) = b(y) F(g(y)) + noise        b a smooth bias field, noise as in magnitude MR images

so that the moving voxel y shows exactly what the fixed image has at the point g(y): (g(y), y) are
corresponding points without any inversion of g. A registration, which maps fixed points to moving points,
should take g(y) to y; its target registration error is |transform(g(y)) - y| in millimetres, over the voxels
y for which g(y) lies in the brain.

g is the flow of a stationary velocity field (Arsigny et al. 2006, scaling and squaring); the velocity is a
cubic B-spline with random coefficients on a lattice that is fixed in millimetres, so the same seed is the
same deformation at every resolution.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from neuralreg.errors import InputError

if TYPE_CHECKING:
    from neuralreg.cli.terminal import Progress
    from neuralreg.images import Image
    from neuralreg.registration import Registration

TISSUES = ("CSF", "grey matter", "white matter")
# A coarse grid: fewer points an iteration, and a field without the levels that such a grid cannot tell apart.
QUICK_RESOLUTION, QUICK_ITERATIONS = 4, 100
QUICK_OPTIONS = {"stride": 2, "levels": 4, "base": 3, "finest": 12, "table_range": 0.01, "lr": 0.01}


@dataclass(frozen=True)
class Template:
    """MNI152 on one grid: the T1 image scaled to at most 1, and the probabilities of TISSUES, (3, *sp)."""

    t1: Image
    tissues: Tensor


@dataclass(frozen=True)
class Case:
    """A pair with its truth: ``truth`` (3, *sp) is g(y) - y in voxels at each voxel y of the moving grid."""

    fixed: Image
    moving: Image
    fixed_labels: Image
    moving_labels: Image
    truth: Tensor

    @property
    def max_displacement_mm(self) -> float:
        spacing = torch.tensor(self.fixed.spacing).view(3, 1, 1, 1)
        return float((self.truth * spacing).square().sum(0).max().sqrt())


def load_template(resolution: int = 2) -> Template:
    """The MNI152 template of the nilearn wheel at ``resolution`` mm (1 or more), without a download.

    InputError where nilearn is not installed.
    """
    if importlib.util.find_spec("nilearn") is None:
        raise InputError(
            "the demo needs the template in nilearn, which is not installed; pip install 'neuralreg[demo]'"
        )
    from nilearn import datasets

    from neuralreg.images import read_image

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # nilearn tells of its own changes, which are no concern of the user here
        t1, grey, white, brain = (
            read_image(load(resolution=resolution), role="template")
            for load in (
                datasets.load_mni152_template,
                datasets.load_mni152_gm_template,
                datasets.load_mni152_wm_template,
                datasets.load_mni152_brain_mask,
            )
        )
    fluid = (brain.data.clamp(0, 1) - grey.data - white.data).clamp_min(0)
    return Template(t1, torch.stack([fluid, grey.data.clamp(0, 1), white.data.clamp(0, 1)]))


def make_case(
    template: Template,
    seed: int = 0,
    *,
    displacement_mm: float = 9.0,
    lattice_mm: float = 24.0,
    bias: float = 0.2,
    noise: float = 0.02,
) -> Case:
    """Deform the template by a random diffeomorphism and spoil its intensities.

    ``displacement_mm`` is the largest velocity, near which the largest displacement lies; ``lattice_mm`` the
    distance of the velocity's spline knots; ``bias`` the largest logarithm of the bias field; ``noise`` the
    standard deviation of the noise in each of the two channels of the magnitude image, the template's
    brightest voxel being 1.
    """
    from neuralreg.images import Image
    from neuralreg.kernels import warp

    fixed = template.t1
    shape, spacing = fixed.shape, fixed.spacing
    random = torch.Generator().manual_seed(seed)
    velocity = smooth_noise(3, shape, spacing, lattice_mm, random)
    velocity *= displacement_mm / velocity.square().sum(0).max().sqrt()
    truth = flow(velocity / torch.tensor(spacing).view(3, 1, 1, 1))
    pulled = warp(torch.cat([fixed.data[None], template.tissues])[None], truth[None])[0]
    shading = smooth_noise(1, shape, spacing, 70.0, random)[0]
    clean = pulled[0] * (shading * (bias / shading.abs().max())).exp()
    real, imaginary = noise * torch.randn(2, *shape, generator=random)
    moving = ((clean + real).square() + imaginary.square()).sqrt() * (pulled[0] > 0.02)
    return Case(
        fixed,
        Image(moving, fixed.affine),
        Image(_labels(template.tissues), fixed.affine),
        Image(_labels(pulled[1:]), fixed.affine),
        truth,
    )


def smooth_noise(
    channels: int,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    lattice_mm: float,
    random: torch.Generator,
) -> Tensor:
    """(channels, *shape): cubic B-splines of independent normal coefficients, knots ``lattice_mm`` apart."""
    knots = [int(np.ceil(300.0 / lattice_mm)) + 4] * len(shape)  # 300 mm at every resolution: the same draws
    values = torch.randn(channels, *knots, generator=random)
    for axis, (size, step, count) in enumerate(zip(shape, spacing, knots, strict=True)):
        if size * step > 300.0:
            raise ValueError(
                f"smooth_noise: axis {axis} is {size * step:g} mm long, at most 300 mm are covered"
            )
        position = torch.arange(size) * (step / lattice_mm) + 1.0
        distance = (position[:, None] - torch.arange(count)).abs()
        near = 2 / 3 - distance**2 + distance**3 / 2
        far = (2 - distance).clamp_min(0) ** 3 / 6
        basis = torch.where(distance < 1, near, far)
        values = torch.movedim(torch.tensordot(values, basis, dims=([axis + 1], [1])), -1, axis + 1)
    return values


def flow(velocity: Tensor, steps: int = 7) -> Tensor:
    """Displacement (3, *sp) in voxels of the time-one flow of a stationary velocity (3, *sp) in voxels."""
    from neuralreg.kernels import warp

    u = velocity[None] / 2**steps
    for _ in range(steps):
        u = u + warp(u, u, padding_mode="border")
    return u[0]


def _labels(tissues: Tensor) -> Tensor:
    """0 outside the brain, else 1 + the most probable tissue; int32 (*sp)."""
    outside = (1 - tissues.sum(0)).clamp_min(0)
    return torch.cat([outside[None], tissues]).argmax(0).to(torch.int32)


def evaluate(case: Case, registration: Registration) -> dict[str, Any]:
    """TRE in mm against the truth and Dice of the tissues, before (identity) and after."""
    from neuralreg.kernels import warp
    from neuralreg.metrics import dice

    voxels = torch.stack(torch.meshgrid(*[torch.arange(n) for n in case.moving.shape], indexing="ij"))
    inside = warp((case.fixed_labels.data > 0).float()[None, None], case.truth[None])[0, 0] > 0.5
    moving_voxels = voxels[:, inside].T.double().numpy()
    fixed_voxels = (voxels + case.truth)[:, inside].T.double().numpy()
    moving_points = case.moving.geometry.voxel_to_world(moving_voxels)
    fixed_points = case.fixed.geometry.voxel_to_world(fixed_voxels)
    found = registration.transform.transform_points(fixed_points, space="RAS")
    warped = registration.transform.warp(case.moving_labels, interpolation="label")
    result: dict[str, Any] = {"points": len(moving_points), "max_displacement_mm": case.max_displacement_mm}
    for when, points, labels in (("before", fixed_points, case.moving_labels), ("after", found, warped)):
        errors = np.linalg.norm(points - moving_points, axis=1)
        scores = dice(case.fixed_labels.data, labels.data, labels=range(1, len(TISSUES) + 1))
        result[f"tre_{when}_mm"] = {"mean": float(errors.mean()), "p95": float(np.percentile(errors, 95))}
        result[f"dice_{when}"] = {name: scores[label] for label, name in enumerate(TISSUES, 1)}
    return result


def run(
    out: str | Path,
    *,
    resolution: int | None = None,
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], list[Path]]:
    """Make the case, register it, evaluate it, and write everything into the folder ``out``, made where it is
    missing.

    ``quick`` takes a coarse template (QUICK_RESOLUTION mm unless ``resolution`` is given), QUICK_ITERATIONS
    iterations and QUICK_OPTIONS, for machines without native kernels. Returns the contents of summary.json
    and the files written.
    """
    import neuralreg
    from neuralreg.figure import registration_figure, require_matplotlib
    from neuralreg.images import write_image
    from neuralreg.outputs import write_json, write_together

    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; give a folder")
    if not out.parent.is_dir():
        raise InputError(f"--out: the folder {out.parent} does not exist; make it first")
    require_matplotlib()
    resolution = resolution or (QUICK_RESOLUTION if quick else 2)
    case = make_case(load_template(resolution), seed)
    registration = neuralreg.register(
        case.fixed,
        case.moving,
        iterations=QUICK_ITERATIONS if quick else None,
        seed=seed,
        device=device,
        threads=threads,
        progress=progress,
        **(QUICK_OPTIONS if quick else {}),
    )
    found = {"resolution_mm": resolution, "quick": quick, "seed": seed, **evaluate(case, registration)}
    summary = {"demo": found, **registration.summary}
    files: dict[str, Callable[[Path], None]] = {
        "fixed.nii.gz": lambda path: write_image(path, case.fixed.data, case.fixed.affine),
        "moving.nii.gz": lambda path: write_image(path, case.moving.data, case.moving.affine),
        "warped.nii.gz": lambda path: write_image(path, registration.warped.data, registration.warped.affine),
        "transform.nii.gz": lambda path: registration.transform.save(path),
        "qc.png": lambda path: registration_figure(registration, path),
        "summary.json": lambda path: write_json(path, summary),
    }
    out.mkdir(exist_ok=True)
    write_together({out / name: write for name, write in files.items()})
    return summary, [out / name for name in files]
