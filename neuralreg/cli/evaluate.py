"""`neuralreg evaluate`: overlap, landmark distances and regularity of a transform, as a table and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


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
    from neuralreg.evaluation import distances, overlap, smoothness
    from neuralreg.images import atomic_path, check_writable
    from neuralreg.transforms import load_transform

    _check_arguments(fixed_labels, moving_labels, warped_labels, transform, landmarks, mask)
    if labels is not None and labels_json is not None:
        raise InputError("--labels and --labels-json both name the labels that count; give one of them")
    if out is not None:
        check_writable(out, suffixes=(".json",), role="--out")
    wanted = parse_labels(labels) if labels is not None else None
    if labels_json is not None:
        wanted = read_labels_json(labels_json)
    loaded = None if transform is None else load_transform(transform)
    result: dict[str, Any] = {}
    if fixed_labels is not None:
        result |= overlap(fixed_labels, moving_labels, warped_labels, loaded, wanted)
    if landmarks is not None:
        result |= distances(landmarks, landmarks_space, loaded)
    if loaded is not None:
        result |= smoothness(loaded, mask)
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


def parse_labels(text: str) -> list[int]:
    from neuralreg.errors import InputError

    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise InputError(f"--labels: '{text}' is no list of integers; give them as 2,3,4") from None


def read_labels_json(path: Path) -> list[int]:
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
