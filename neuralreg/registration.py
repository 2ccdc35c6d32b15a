"""``register``: from two images to a transform, its inverse, the warped image and a summary."""

from __future__ import annotations

import importlib
import os
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.affines import voxel_affine
from neuralreg.composition import before, behind, read_prior, seen_through
from neuralreg.device import pick_device, settings
from neuralreg.errors import InputError
from neuralreg.fit import Progress
from neuralreg.images import Image
from neuralreg.inputs import read_inputs
from neuralreg.kernels.backends import native, registry
from neuralreg.machine import cpu_name, package_version
from neuralreg.memory import MB, Holding, most_points, peak_bytes
from neuralreg.metrics import folds_percent, sdlogj
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.precision import check_precision
from neuralreg.saved_field import save_field
from neuralreg.start.choose import SIMILARITY, check_start, find_start, read_initial
from neuralreg.transforms import SpatialMap, Transform, inverse_consistency

METHODS = {
    "nir": "neuralreg.methods.nir",
    "ncf": "neuralreg.methods.ncf",
    "nephi": "neuralreg.methods.nephi",
    "ofg": "neuralreg.methods.ofg",
}
DEFAULT_PRESET = "fast"


@dataclass(frozen=True)
class Registration:
    """What :func:`register` found.

    Attributes:
        transform: maps fixed physical points to moving physical points.
        inverse: maps moving physical points to fixed ones, on the moving grid: the method's own backward map where it
            has one, else the transform's, inverted by iteration. None where it was not asked for.
        warped: the moving image on the fixed grid, in the moving image's intensities.
        fixed, moving: the images as read.
        field: the fitted network; ``field(x)`` is the displacement in coordinates of [-1, 1].
        history: one dict an iteration: iteration, loss, similarity, regulariser, scale (how often the images were
            shrunk; losses of one scale compare), and the parts of the loss that the method names.
        summary: settings, versions, figures; plain types, ready for JSON.
    """

    transform: Transform
    inverse: Transform | None
    warped: Image
    fixed: Image
    moving: Image
    field: Any
    history: list[dict[str, Any]]
    summary: dict[str, Any]

    def save_field(self, path: str | os.PathLike[str]) -> None:
        """Writes the network, its spec and the geometry as a ``torch.save`` file that loads with weights_only.

        Raises:
            InputError: the field is one of two maps, the other being the prior.
        """
        if self.summary.get("prior"):
            raise InputError("a field in front of a prior is half of the map: save the transform instead")
        summary, transform = self.summary, self.transform
        save_field(
            path, self.field, summary["method"], summary["options"], transform.fixed, transform.initial
        )


def register(
    fixed: Any,
    moving: Any,
    method: str = "nir",
    preset: str | None = None,
    *,
    weights: str | os.PathLike[str] | None = None,
    refine: int | None = None,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    initial_transform: Any = None,
    start: str = "none",
    start_similarity: str = SIMILARITY,
    center: bool = False,
    prior: str | os.PathLike[str] | SpatialMap | None = None,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] | None = None,
    nan_to: float | None = None,
    iterations: int | None = None,
    time_budget: float | None = None,
    max_memory: float | None = None,
    precision: str | None = None,
    seed: int = 0,
    deterministic: bool = False,
    device: str = "auto",
    threads: int | None = None,
    inverse: bool = True,
    progress: Progress | None = None,
    **options: Any,
) -> Registration:
    """Registers ``moving`` to ``fixed``: finds the moving point of every fixed point.

    Args:
        fixed, moving: paths, nibabel or SimpleITK images, tensors or :class:`~neuralreg.images.Image`. Shape, spacing,
            orientation and origin may differ.
        method: "nir", "ncf", "nephi" or "ofg", which needs weights.
        preset: the method's settings by name; None is "fast", which each has; an unknown one lists them. Weights bring
            their own settings and take none.
        weights: file of a trained network (best.pt of `neuralreg train`), which then predicts the map; for methods
            that are trained. Without it "nephi" fits the pair alone.
        refine: steps that a prediction is refined by; default 0.
        fixed_mask, moving_mask: images on the grid of their image; windows centred outside are left out of the
            similarity.
        initial_transform: from fixed to moving physical points: a file of any format that `load_transform` reads, such
            a transform, or a 4x4 array in RAS world coordinates. What is more than an affine becomes the prior.
        start: "none", "center", "moments", "rigid" or "affine": the affine that stands before the field, as
            :func:`neuralreg.align` finds it; "rigid" and "affine" begin at an initial transform.
        start_similarity: what start "rigid" and "affine" climb.
        center: the same as start "center".
        prior: a transform, or its file, that comes behind the new map: the moving image is read through it on the fixed
            grid, and that image is registered. The result is both, one behind the other.
        window: intensities (low, high) that become 0 and 1, for both images (CT).
        quantiles: without a window, the quantiles that become 0 and 1; default (0, 0.999).
        nan_to: value that replaces NaN and infinity in the voxels; None makes them an error.
        iterations: overrides the preset's.
        time_budget: seconds that the fit may take; where the clock runs ahead of the iterations, its stages and
            learning rate follow the clock. Reading, the start, evaluating and writing come on top.
        max_memory: megabytes of resident memory that the process may reach; iterations then look at fewer points
            (wider strides, fewer patches). An error says so where the images alone need more.
        precision: "fp32", or "bf16" where a GPU or CPU multiplies the layers' factors so; the map that was fitted is
            always asked in float32. None is the method's own. All methods but "ofg", whose map is no field.
        seed: of every random choice.
        deterministic: let torch use deterministic algorithms alone; on the CPU nothing changes by it.
        device: "auto", "cpu", "cuda", "cuda:0", ...
        threads: CPU threads; None keeps torch's setting.
        inverse: find the inverse, too, and how well the two undo each other; a tenth of a fast registration's time.
        progress: called with (iteration, total, loss, stage).
        **options: the method's own options by name; ``similarity`` is one of every method.

    Raises:
        InputError: something about the input, told in one line.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    module = method_module(method)
    target = pick_device(device)
    if iterations is not None:
        options["iterations"] = iterations
    if precision is not None:
        options["precision"] = precision
    chosen, trainee = choose(module, method, preset, weights, refine, options, time_budget)
    check_precision(chosen, target)
    if time_budget is not None and not time_budget > 0:
        raise InputError(f"time_budget must be more than 0 seconds, got {time_budget}")
    with settings(threads, deterministic):
        if center and start not in ("none", "center"):
            raise InputError(f"center is start center: leave it out beside start {start}")
        start = "center" if center else start
        check_start(start, start_similarity)
        if prior is not None and (initial_transform is not None or start != "none"):
            raise InputError(
                "prior is where the registration starts: give no initial_transform, start or center beside it"
            )
        inputs = read_inputs(
            fixed, moving, fixed_mask, moving_mask, window=window, quantiles=quantiles, nan_to=nan_to
        )
        fixed_image, moving_image = inputs.images
        given, behind_field = read_initial(initial_transform, *(image.geometry for image in inputs.images))
        if behind_field is not None:
            if start != "none":
                raise InputError(
                    f"initial transform {initial_transform} is more than an affine, and start {start} refines affines: "
                    "leave the start out"
                )
            prior = behind_field
        earlier = None if prior is None else read_prior(prior, fixed_image.ndim)
        found = find_start(start, inputs, given, start_similarity, target, progress)
        initial = found.matrix
        masks, scaled = list(inputs.masks), [image.data for image in inputs.scaled]
        scaling = inputs.scaling
        del inputs
        affine = voxel_affine(fixed_image.geometry, moving_image.geometry, initial)
        moving_grid = moving_image.geometry
        if earlier is not None:  # from here on the moving image is the one that the prior shows
            place = moving_image.affine, fixed_image.geometry
            scaled[1] = seen_through(earlier, scaled[1], *place, "linear")
            if masks[1] is not None:
                masks[1] = seen_through(earlier, masks[1].float(), *place, "nearest") > 0
            affine, moving_grid = np.eye(fixed_image.ndim, fixed_image.ndim + 1), fixed_image.geometry
        pair = Pair(
            scaled[0][None, None].to(target),
            scaled[1][None, None].to(target),
            torch.from_numpy(affine).float().to(target),
            None if masks[0] is None else masks[0][None, None].float().to(target),
            None if masks[1] is None else masks[1][None, None].float().to(target),
        )
        del scaled
        if max_memory is not None:
            holding = module.holding(chosen) if hasattr(module, "holding") else Holding()
            chosen = module.with_at_most(chosen, pair.grid, most_points(max_memory, pair, holding))
        if trainee is None:
            field, history = module.fit(pair, chosen, seed=seed, progress=progress, seconds=time_budget)
        else:
            field, history = module.fit_trained(
                trainee, pair, chosen, refine=refine or 0, seed=seed, progress=progress, seconds=time_budget
            )
        displacement = module.dense_displacement(field, pair.grid, progress).cpu()
        transform = Transform(displacement, fixed_image.geometry, moving_grid, initial)
        undone = None
        if inverse and two_way(module):
            backward = module.dense_inverse(field, pair, progress).cpu()
            undone = Transform(backward, moving_grid, fixed_image.geometry, np.linalg.inv(initial))
        elif inverse:
            undone = transform.inverse(moving_grid)
        del pair
        if earlier is not None:
            transform = behind(transform, earlier, moving_image.geometry)
            undone = None if undone is None else before(undone, earlier, transform)
            displacement = transform.displacement
        warped = transform.warp(moving_image)
        consistency = None if undone is None else inverse_consistency(transform, undone)
        summary = {
            "method": method,
            "preset": None if trainee is not None else preset or DEFAULT_PRESET,
            "weights": None if weights is None else str(weights),
            "options": asdict(chosen),
            "seed": seed,
            "parameters": sum(p.numel() for p in field.parameters()),
            "iterations": len(history),
            "time_budget": time_budget,
            "max_memory": max_memory,
            "deterministic": deterministic,
            "similarity": history[-1]["similarity"] if history else None,
            "loss": history[-1]["loss"] if history else None,
            "folds_percent": folds_percent(displacement),
            "sdlogj": sdlogj(displacement, None if masks[0] is None else masks[0]),
            "inverse_consistency_mm": None if consistency is None else consistency["mean_mm"],
            "inverse_consistency": consistency,
            "intensity": scaling,
            "initial_transform": found.name,
            "start": found.record,
            "prior": None if earlier is None else str(prior) if isinstance(prior, (str, Path)) else "given",
            "initial_matrix_ras": np.asarray(initial).tolist(),
            "inputs": {"fixed": describe(fixed, fixed_image), "moving": describe(moving, moving_image)},
            "wall_seconds": time.perf_counter() - wall,
            "cpu_seconds": time.process_time() - cpu,
            "peak_memory_mb": peak_bytes() / MB,
            **environment(target),
        }
    return Registration(transform, undone, warped, fixed_image, moving_image, field, history, summary)


def method_module(method: str) -> Any:
    """The module of a method by name."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r}; choose from {', '.join(sorted(METHODS))}")
    return importlib.import_module(METHODS[method])


def two_way(module: Any) -> bool:
    """Whether a method has a backward map of its own."""
    return hasattr(module, "dense_inverse")


def choose(
    module: Any,
    method: str,
    preset: str | None,
    weights: str | os.PathLike[str] | None,
    refine: int | None,
    options: dict[str, Any],
    time_budget: float | None,
) -> tuple[Any, Any]:
    """The method's options, and the trainee of the weights where there are any.

    Raises:
        InputError: arguments that do not go together, or weights of another method.
    """
    if hasattr(module, "compared_by") and "similarity" in options:
        options = options.copy()
        options = module.compared_by(options.pop("similarity")) | options
    if weights is None:
        if refine is not None:
            raise InputError("refine belongs to a prediction: give weights, too")
        if not hasattr(module, "fit"):
            raise InputError(
                f"method {method} predicts: give the weights of a training (neuralreg train {method})"
            )
        return resolve(module.PRESETS, preset or DEFAULT_PRESET, options, method), None
    if not hasattr(module, "fit_trained"):
        raise InputError(f"method {method} is fitted to every pair anew and takes no weights")
    if preset is not None:
        raise InputError(f"weights bring their own settings: leave preset {preset!r} out")
    if "iterations" in options:
        raise InputError("iterations are of a fit without weights; a prediction is refined by refine steps")
    if refine is not None and refine < 0:
        raise InputError(f"refine must be at least 0 steps, got {refine}")
    if time_budget is not None and not refine:
        raise InputError("time_budget limits the refinement of a prediction: give refine, too")
    from neuralreg.training.trainee import load_trainee

    trainee: Any = load_trainee(weights)
    found = trainee.describe()["method"]
    if found != method:
        raise InputError(f"the weights {os.fspath(weights)} are of method {found}, not of {method}")
    return resolve({"weights": trainee.options}, "weights", options, method), trainee


def describe(source: Any, image: Image) -> dict[str, Any]:
    """Name and geometry of an input, for the summary."""
    name = str(source) if isinstance(source, (str, Path)) else type(source).__name__
    return {"source": name, "shape": list(image.shape), "affine_ras": image.affine.tolist()}


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, backend and hardware that a run used."""
    serving = {op: registry.choose(op, device) for op in ("field", "warp", "lncc", "jacobian_loss")}
    return {
        "versions": {
            "neuralreg": package_version("neuralreg"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "backend": serving,
        "cpu_isa": native.cpu_isa() if "cpu" in serving.values() else None,
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        },
    }
