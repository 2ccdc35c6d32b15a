"""`neuralreg evaluate`: the figures of a registration against what is known, as tables and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

# Panels of the help.
LABELS, LEARN2REG = "Labels", "Learn2Reg"


def command(
    fixed_labels: Annotated[
        Path | None, typer.Option(help="Label map of the fixed image.", rich_help_panel=LABELS)
    ] = None,
    moving_labels: Annotated[
        Path | None,
        typer.Option(
            help="Label map of the moving image: compared as it lies and, with --transform, warped.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    warped_labels: Annotated[
        Path | None,
        typer.Option(help="Label map that lies on the fixed grid already.", rich_help_panel=LABELS),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="2,3,4", help="The labels that count; all but 0 by default.", rich_help_panel=LABELS
        ),
    ] = None,
    labels_json: Annotated[
        Path | None,
        typer.Option(
            help="JSON file of the labels that count: a list, or an object with one in it.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    surface: Annotated[
        bool,
        typer.Option(
            "--surface", help="HD95 and ASSD in mm, too (needs surface-distance).", rich_help_panel=LABELS
        ),
    ] = False,
    fixed: Annotated[Path | None, typer.Option(help="Fixed image, for SSIM.")] = None,
    moving: Annotated[
        Path | None,
        typer.Option(
            help="Moving image, for SSIM before and after, and for landmarks snapped to its voxels."
        ),
    ] = None,
    warped: Annotated[
        Path | None, typer.Option(help="Image that lies on the fixed grid already, for SSIM.")
    ] = None,
    transform: Annotated[
        Path | None, typer.Option(help="Transform, fixed to moving, as `neuralreg register` writes it.")
    ] = None,
    inverse: Annotated[
        Path | None,
        typer.Option(help="Its inverse, moving to fixed: how far points come back from themselves."),
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
        Path | None,
        typer.Option(help="Folds, SDlogJ, NDV and consistency inside this mask of the fixed grid."),
    ] = None,
    learn2reg: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG",
            help="evaluation_config.json of a Learn2Reg task: its own figures of the files in --fields.",
            rich_help_panel=LEARN2REG,
        ),
    ] = None,
    fields: Annotated[
        Path | None,
        typer.Option(help="Folder of disp_FFFF_MMMM.nii.gz or .npz.", rich_help_panel=LEARN2REG),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of imagesTr, labelsTr, ...; that of the configuration by default.",
            rich_help_panel=LEARN2REG,
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this .json file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of the tables.")] = False,
) -> None:
    """Overlap and surfaces of labels, landmark distances (TRE), regularity, consistency and SSIM of a registration."""
    from neuralreg.errors import InputError
    from neuralreg.images import check_writable
    from neuralreg.outputs import json_text
    from neuralreg.writing import atomic_path

    files = Files(
        fixed_labels, moving_labels, warped_labels, fixed, moving, warped, transform, inverse, landmarks, mask
    )
    own = {name: value for name, value in vars(files).items() if value is not None}
    if out is not None:
        check_writable(out, suffixes=(".json",), role="--out")
    if learn2reg is not None:
        if own or labels or labels_json or surface or landmarks_space:
            raise InputError(
                "--learn2reg names all files and labels itself; give it --fields and --data alone"
            )
        result = _learn2reg(learn2reg, fields, data)
    else:
        if fields is not None or data is not None:
            raise InputError("--fields and --data belong to --learn2reg; give it, too")
        _check_arguments(files)
        if labels is not None and labels_json is not None:
            raise InputError("--labels and --labels-json both name the labels that count; give one of them")
        if fixed_labels is None and (labels is not None or labels_json is not None or surface):
            raise InputError("--labels, --labels-json and --surface need --fixed-labels")
        wanted = parse_labels(labels) if labels is not None else None
        if labels_json is not None:
            wanted = read_labels_json(labels_json)
        result = _evaluate(files, wanted, surface, landmarks_space)
        result["inputs"] = {name: str(path) for name, path in own.items()}
    text = json_text(result)
    if out is not None:
        with atomic_path(out) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if json:
        print(text, end="")
    elif learn2reg is not None:
        _show_learn2reg(result)
    else:
        _show(result)


@dataclass(frozen=True)
class Files:
    """The files that are evaluated, by role."""

    fixed_labels: Path | None
    moving_labels: Path | None
    warped_labels: Path | None
    fixed: Path | None
    moving: Path | None
    warped: Path | None
    transform: Path | None
    inverse: Path | None
    landmarks: Path | None
    mask: Path | None


def _evaluate(files: Files, labels: list[int] | None, surface: bool, space: str | None) -> dict[str, Any]:
    from neuralreg.evaluation import consistency, distances, overlap, similarity, smoothness
    from neuralreg.images import read_geometry
    from neuralreg.surface import require_surface_distance
    from neuralreg.transforms import load_transform

    if surface:
        require_surface_distance()
    transform = None if files.transform is None else load_transform(files.transform)
    result: dict[str, Any] = {}
    if files.fixed_labels is not None:
        result |= overlap(
            files.fixed_labels, files.moving_labels, files.warped_labels, transform, labels, surface
        )
    if files.landmarks is not None:
        result |= distances(files.landmarks, space, transform, files.moving or files.moving_labels)
    if files.fixed is not None:
        result |= similarity(files.fixed, files.moving, files.warped, transform)
    if transform is None:
        return result
    grid, still = transform.grid, files.fixed_labels or files.fixed
    if grid is None and still is not None:  # an affine lies on none of its own
        grid = read_geometry(still, role="fixed image")
    if grid is not None or not result:
        dense = transform.dense(grid)
        result |= smoothness(dense, files.mask)
        if files.inverse is not None:
            result |= consistency(dense, load_transform(files.inverse).dense(), files.mask)
    return result


def _learn2reg(config: Path, fields: Path | None, data: Path | None) -> dict[str, Any]:
    from neuralreg.errors import InputError
    from neuralreg.learn2reg import evaluate_learn2reg

    if fields is None:
        raise InputError("--learn2reg needs the folder of displacements: give --fields")
    return evaluate_learn2reg(config, fields, data)


def _check_arguments(files: Files) -> None:
    """InputError for combinations that leave nothing to evaluate or an argument without use."""
    from neuralreg.errors import InputError

    for fixed, others, what in (
        ("--fixed-labels", (files.moving_labels, files.warped_labels), "-labels"),
        ("--fixed", (files.moving if files.landmarks is None else None, files.warped), ""),
    ):
        given = getattr(files, fixed[2:].replace("-", "_"))
        names = f"--moving{what} {{}} --warped{what}"
        if given is None and any(other is not None for other in others):
            raise InputError(f"{names.format('and')} are compared with {fixed}; give it too")
        if given is not None and files.moving is None and not any(other is not None for other in others):
            raise InputError(f"{fixed} has nothing to compare with; give {names.format('or')}")
    for path, flag in ((files.mask, "--mask"), (files.inverse, "--inverse")):
        if path is not None and files.transform is None:
            raise InputError(f"{flag} belongs to a transform; give --transform too")
    if all(path is None for path in (files.fixed_labels, files.fixed, files.landmarks, files.transform)):
        raise InputError(
            "nothing to evaluate: give --transform, --landmarks, --fixed with --moving or --warped, or "
            "--fixed-labels with --moving-labels or --warped-labels"
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

    def cell(values: dict[Any, float] | None, key: Any, digits: int) -> str:
        return "" if values is None or key not in values else f"{values[key]:.{digits}f}"

    heads, columns = ["label"], []
    for name, unit, digits in (("Dice", "", 4), ("HD95", "_mm", 3), ("ASSD", "_mm", 3)):
        for when in ("_before", ""):
            values = result.get(f"{name.lower()}{when}{unit}")
            if values is not None:
                heads.append(f"{name} {'before' if when else 'after'}{' (mm)' if unit else ''}")
                mean = result[f"{name.lower()}_mean{when}{unit}"]
                columns.append(({**values, "mean": mean}, digits))
    if columns:
        keys = [*(key for key in columns[0][0] if key != "mean"), "mean"]
        rows = [(str(key), *(cell(values, key, digits) for values, digits in columns)) for key in keys]
        measured = result.get("surface_distance")
        print_table(f"Labels{f', surfaces by {measured}' if measured else ''}", rows, tuple(heads))
    errors = [result.get(name) for name in ("tre_before_mm", "tre_mm", "tre_snapped_mm")]
    if errors[0]:
        names = ("mean", "median", "sd", "max")
        table = [(name, *(cell(values, name, 3) for values in errors)) for name in names]
        count = str(len(errors[0]["per_point"]))
        table.append(("points", *(count if values else "" for values in errors)))
        print_table("TRE (mm)", table, ("", "before", "after", "snapped"))
    figures = [
        (told, f"{result[name]:.{digits}f}")
        for name, told, digits in (
            ("ssim_before", "SSIM before", 4),
            ("ssim", "SSIM after", 4),
            ("folds", "folds (voxels with det <= 0)", 0),
            ("folds_percent", "folds (% of voxels)", 4),
            ("min_determinant", "smallest determinant", 4),
            ("sdlogj", "SDlogJ", 4),
            ("sdlogj_learn2reg", "SDlogJ as Learn2Reg has it (+3, cropped)", 4),
            ("ndv_voxels", "non-diffeomorphic volume (voxels)", 4),
            ("inverse_consistency_mm", "inverse consistency, mean (mm)", 4),
        )
        if name in result
    ]
    if figures:
        print_table("Images and transform", figures)


def _show_learn2reg(result: dict[str, Any]) -> None:
    from neuralreg.cli.terminal import print_table

    names = list(result["aggregates"])
    rows = [
        (case, *(f"{found[name]['mean']:.4f}" for name in names)) for case, found in result["cases"].items()
    ]
    for word in ("mean", "std"):
        rows.append((word, *(f"{result['aggregates'][name][word]:.4f}" for name in names)))
    print_table(f"{result['name']}, as Learn2Reg's evaluation has it", rows, ("pair", *names))
    print(f"folds: {result['implementation']['folds']}")
