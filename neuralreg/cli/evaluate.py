"""`neuralreg evaluate`: overlap, landmark distances and regularity of a transform, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from neuralreg.transforms import Transform


def command(
    fixed_labels: Annotated[Path | None, typer.Option(help="Label map of the fixed image.")] = None,
    moving_labels: Annotated[
        Path | None,
        typer.Option(
            help="Label map of the moving image: compared as it lies and, with --transform, warped."
        ),
    ] = None,
    warped_labels: Annotated[
        Path | None, typer.Option(help="Label map that lies on the fixed grid already.")
    ] = None,
    transform: Annotated[
        Path | None, typer.Option(help="Transform, fixed to moving, as `neuralreg register` writes it.")
    ] = None,
    labels: Annotated[
        str | None, typer.Option(metavar="2,3,4", help="The labels that count; all but 0 by default.")
    ] = None,
    labels_json: Annotated[
        Path | None,
        typer.Option(help="JSON file of the labels that count: a list, or an object with one in it."),
    ] = None,
    landmarks: Annotated[
        Path | None, typer.Option(help="csv with columns fixed_x, fixed_y, fixed_z, moving_x, ... in mm.")
    ] = None,
    landmarks_space: Annotated[
        str | None,
        typer.Option(
            metavar="RAS|LPS", help="Space of the landmarks, if no _ras or _lps ends the column names."
        ),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Count folds and SDlogJ inside this mask of the fixed grid.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this .json file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of the tables.")] = False,
) -> None:
    """Dice per label, distances between landmarks (TRE), folds and smoothness of a registration."""
    from neuralreg.errors import InputError
    from neuralreg.images import atomic_path, check_writable
    from neuralreg.transforms import load_transform

    _check_arguments(fixed_labels, moving_labels, warped_labels, transform, landmarks, mask)
    if labels is not None and labels_json is not None:
        raise InputError("--labels and --labels-json both name the labels that count; give one of them")
    if out is not None:
        check_writable(out, suffixes=(".json",), role="--out")
    wanted = _parse_labels(labels) if labels is not None else None
    if labels_json is not None:
        wanted = _read_labels_json(labels_json)
    loaded = None if transform is None else load_transform(transform).dense()
    result: dict[str, Any] = {}
    if fixed_labels is not None:
        result |= _overlap(fixed_labels, moving_labels, warped_labels, loaded, wanted)
    if landmarks is not None:
        result |= _distances(landmarks, landmarks_space, loaded)
    if loaded is not None:
        result |= _smoothness(loaded, mask)
    result["inputs"] = {
        name: str(path)
        for name, path in {
            "fixed_labels": fixed_labels,
            "moving_labels": moving_labels,
            "warped_labels": warped_labels,
            "transform": transform,
            "landmarks": landmarks,
            "mask": mask,
        }.items()
        if path is not None
    }
    from neuralreg.outputs import json_text

    text = json_text(result)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if json:
        print(text, end="")
    else:
        _show(result)


def _check_arguments(
    fixed_labels: Path | None,
    moving_labels: Path | None,
    warped_labels: Path | None,
    transform: Path | None,
    landmarks: Path | None,
    mask: Path | None,
) -> None:
    """InputError for combinations that leave nothing to evaluate or an argument without use."""
    from neuralreg.errors import InputError

    others = moving_labels is not None or warped_labels is not None
    if fixed_labels is None and others:
        raise InputError("--moving-labels and --warped-labels are compared with --fixed-labels; give it too")
    if fixed_labels is not None and not others:
        raise InputError(
            "--fixed-labels has nothing to compare with; give --moving-labels or --warped-labels"
        )
    if mask is not None and transform is None:
        raise InputError("--mask limits folds and SDlogJ, which are the transform's; give --transform too")
    if fixed_labels is None and landmarks is None and transform is None:
        raise InputError(
            "nothing to evaluate: give --transform, --landmarks, or --fixed-labels with --moving-labels or "
            "--warped-labels"
        )


def _parse_labels(text: str) -> list[int]:
    from neuralreg.errors import InputError

    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"--labels: '{text}' is no list of integers; give them as 2,3,4") from None


def _read_labels_json(path: Path) -> list[int]:
    """A list of integers, or the only list of integers among an object's values."""
    import json

    from neuralreg.errors import InputError

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"--labels-json: {path} cannot be read as JSON ({error})") from error
    candidates = [content] if isinstance(content, list) else list(getattr(content, "values", list)())
    lists = [x for x in candidates if isinstance(x, list) and x and all(type(i) is int for i in x)]
    if len(lists) != 1:
        raise InputError(f"--labels-json: {path} must hold one list of integers, or an object with one in it")
    return lists[0]


def _overlap(
    fixed: Path,
    moving: Path | None,
    warped: Path | None,
    transform: Transform | None,
    wanted: list[int] | None,
) -> dict[str, Any]:
    """Dice before (moving labels as they lie in space) and after (warped here, or given warped)."""
    import numpy as np

    from neuralreg.images import check_same_grid, read_labels
    from neuralreg.metrics import dice, mean_dice
    from neuralreg.transforms import Affine

    target = read_labels(fixed, role="fixed labels")
    scores = {}
    if moving is not None:
        source = read_labels(moving, role="moving labels")
        identity = Affine(np.eye(target.ndim + 1))
        same = source.geometry.same_grid(target.geometry)
        still = source if same else identity.warp(source, target.geometry, "nearest")
        scores["dice_before"] = dice(target, still, wanted)
        if transform is not None and warped is None:
            scores["dice"] = dice(target, transform.warp(source, target.geometry, "nearest"), wanted)
    if warped is not None:
        result = read_labels(warped, role="warped labels")
        check_same_grid(
            result.geometry, target.geometry, role=f"warped labels {warped}", like=f"fixed labels {fixed}"
        )
        scores["dice"] = dice(target, result, wanted)
    means = {name.replace("dice", "dice_mean"): mean_dice(values) for name, values in scores.items()}
    return {**means, **scores}


def _smoothness(transform: Transform, mask: Path | None) -> dict[str, Any]:
    from neuralreg.images import read_mask
    from neuralreg.metrics import non_diffeomorphic_volume, regularity

    chosen = None
    if mask is not None:
        chosen = read_mask(mask, role="mask", like=transform.fixed, like_name="the transform").data
    u = transform.displacement
    return {**regularity(u, chosen), "ndv_voxels": non_diffeomorphic_volume(u, chosen)}


def _distances(path: Path, space: str | None, transform: Transform | None) -> dict[str, Any]:
    """TRE before, |moving - fixed|, and after, |moving - transform(fixed)|."""
    from neuralreg.errors import InputError
    from neuralreg.landmarks import read_landmarks
    from neuralreg.metrics import tre

    fixed, moving = read_landmarks(path, space)
    errors = {"tre_before_mm": tre(fixed, moving)}
    if transform is not None:
        if fixed.shape[1] != transform.ndim:
            raise InputError(f"landmarks {path} are {fixed.shape[1]}-D, the transform is {transform.ndim}-D")
        errors["tre_mm"] = tre(transform.transform_points(fixed, "LPS"), moving)
    means = {name.replace("tre", "tre_mean"): values["mean"] for name, values in errors.items()}
    return {**means, **errors}


def _show(result: dict[str, Any]) -> None:
    """The figures as tables on stdout."""
    from neuralreg.cli.terminal import print_table

    def cells(values: dict[Any, float] | None, key: Any, digits: int) -> str:
        return "" if values is None or key not in values else f"{values[key]:.{digits}f}"

    before, after = result.get("dice_before"), result.get("dice")
    if before or after:
        keys = list(before or after or ())
        rows = [(str(key), cells(before, key, 4), cells(after, key, 4)) for key in keys]
        mean = ("mean", cells(result, "dice_mean_before", 4), cells(result, "dice_mean", 4))
        print_table("Dice", [*rows, mean], ("label", "before", "after"))
    before, after = result.get("tre_before_mm"), result.get("tre_mm")
    if before:
        names = ("mean", "median", "sd", "max")
        rows = [(name, cells(before, name, 3), cells(after, name, 3)) for name in names]
        count = str(len(before["per_point"]))
        rows.append(("points", count, count if after else ""))
        print_table("TRE (mm)", rows, ("", "before", "after"))
    if "folds_percent" in result:
        print_table(
            "Regularity",
            [
                ("folds (% of voxels)", f"{result['folds_percent']:.4f}"),
                ("SDlogJ", f"{result['sdlogj']:.4f}"),
                ("smallest determinant", f"{result['min_determinant']:.4f}"),
                ("non-diffeomorphic volume (voxels)", f"{result['ndv_voxels']:.4f}"),
            ],
        )
