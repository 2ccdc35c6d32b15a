"""One self-contained page that tells whether a registration can be trusted: no network, no script, one file.

Pictures are PNG with a palette at the resolution of the voxels, embedded; curves and grids are SVG; flicker is CSS.
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.images import Image
from neuralreg.outputs import Result, finite, summary_rows
from neuralreg.planes import DIFFERENCE_MAP, FOLD, GRID, JACOBIAN_MAP, Plane, limits, planes_of

if TYPE_CHECKING:
    from neuralreg.transforms import Transform

LONGEST = 480  # pixels of a picture's longer side; larger planes are thinned
_CURVE = 400  # points of a curve
_WIDE, _TALL = 300.0, 110.0  # of a curve, in the units of its SVG


@dataclass(frozen=True)
class Picture:
    """An embedded image of a plane: ``source`` is a data URI, ``width`` and ``height`` are millimetres."""

    plane: str
    source: str
    width: float
    height: float
    lines: str = ""  # an SVG path over it, in millimetres


@dataclass(frozen=True)
class Curve:
    """A quantity over the iterations: ``pieces`` are SVG point lists, one a scale of the images."""

    name: str
    pieces: list[str]
    low: str
    high: str
    last: int


def require_report() -> None:
    """InputError where no page could be made; costs a look, not an import."""
    missing = [name for name in ("jinja2", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"the page needs {' and '.join(missing)}, not installed here; pip install 'neuralreg[report]'"
        )


def registration_report(
    registration: Result, path: str | os.PathLike[str], command: str | None = None
) -> None:
    """Writes the page of a registration, whole or not at all.

    It shows planes through the centre of the fixed grid as `neuralreg.planes` takes them: a flicker between fixed and
    warped, differences before and after, a checkerboard, the warped grid, log det J with folds marked; the curves of
    the history; and the whole summary. ``command`` is what made it.

    Raises:
        InputError: jinja2 or matplotlib is missing, or the path cannot be written.
    """
    from neuralreg.writing import atomic_path, check_writable

    require_report()
    check_writable(path, suffixes=(".html",), role="report")
    with atomic_path(path) as temporary:
        temporary.write_text(report_text(registration, command), encoding="utf-8")


@dataclass(frozen=True)
class Shown:
    """A `Result` put together from files."""

    transform: Transform
    fixed: Image
    moving: Image
    warped: Image
    summary: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)


def shown(
    fixed: str | os.PathLike[str],
    moving: str | os.PathLike[str],
    transform: str | os.PathLike[str],
    summary: str | os.PathLike[str] | None = None,
) -> Shown:
    """A registration by its files: images, transform, and where there is one the summary.json of the run.

    Figures of the transform are computed where no summary has them.

    Raises:
        InputError: files that cannot be read or that do not fit together.
    """
    from neuralreg.evaluation import at_start, smoothness, ssim
    from neuralreg.images import check_pair, read_image, scale_intensity
    from neuralreg.registration import describe
    from neuralreg.transforms import load_transform

    target, source = read_image(fixed, role="fixed image"), read_image(moving, role="moving image")
    check_pair(target.geometry, source.geometry)
    found = load_transform(transform)
    if found.ndim != target.ndim:
        raise InputError(f"transform {transform} is {found.ndim}-D, the images are {target.ndim}-D")
    found = found.dense(target.geometry)
    warped = found.warp(source)
    if summary is None:
        scaled, (own, _) = scale_intensity(target)[0], scale_intensity(source)
        moved = Image(own, source.affine)
        content: dict[str, Any] = {
            "transform": str(transform),
            "inputs": {"fixed": describe(str(fixed), target), "moving": describe(str(moving), source)},
            **smoothness(found),
            "ssim_before": ssim(scaled, at_start(moved, target.geometry, "linear").data),
            "ssim": ssim(scaled, found.warp(moved).data),
        }
    else:
        content = read_summary(summary)
    return Shown(found, target, source, warped, content)


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A summary.json; InputError where it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"summary {os.fspath(path)} cannot be read: {error.strerror}") from None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise InputError(f"summary {os.fspath(path)} is no summary of `neuralreg register`")
    return content


def report_text(registration: Result, command: str | None = None) -> str:
    """The page as text."""
    planes = planes_of(registration)
    difference, jacobian = limits(planes)
    summary = finite(registration.summary)
    inputs = summary.get("inputs", {})
    names = {role: Path(inputs[role]["source"]).name for role in ("fixed", "moving") if role in inputs}
    return render(
        "report.html.j2",
        title=" to ".join(names[role] for role in ("moving", "fixed")) if len(names) == 2 else "registration",
        command=command,
        headline=summary_rows(registration),
        evaluation=[(name, value) for name, value in flat(summary.get("evaluation", {})) if is_figure(value)],
        stacks=[
            {role: _gray(plane, getattr(plane, role)) for role in ("fixed", "start", "warped")}
            for plane in planes
        ],
        differences=[
            [_coloured(p, getattr(p, role) - p.fixed, DIFFERENCE_MAP, difference) for p in planes]
            for role in ("start", "warped")
        ],
        checkerboards=[_gray(plane, checkerboard(plane)) for plane in planes],
        grids=[_gray(plane, plane.warped / 1.4, grid_path(plane)) for plane in planes],
        jacobians=[_coloured(p, p.logarithm, JACOBIAN_MAP, jacobian, p.folds) for p in planes],
        folds=sum(int(plane.folds.sum()) for plane in planes),
        bars={"difference": (_ramp(DIFFERENCE_MAP), difference), "jacobian": (_ramp(JACOBIAN_MAP), jacobian)},
        fold_colour=FOLD,
        grid_colour=GRID,
        curves=list(curves(registration.history)),
        size=(_WIDE, _TALL),
        settings=[(name, value) for name, value in flat(summary) if not name.startswith("evaluation.")],
    )


def render(template: str, **values: Any) -> str:
    """A template of neuralreg/templates, everything that is put into it escaped."""
    from importlib.metadata import version

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(version=version("neuralreg"), **values)


# ------------------------------------------------------------------------------------------------ pictures


def _gray(plane: Plane, values: np.ndarray, lines: str = "") -> Picture:
    indices = np.rint(np.clip(values, 0, 1) * 255)
    palette = np.repeat(np.arange(256)[:, None], 3, 1)
    return _picture(plane, indices, palette, lines)


def _coloured(
    plane: Plane, values: np.ndarray, name: str, limit: float, marked: np.ndarray | None = None
) -> Picture:
    """Values from -limit to limit in a colour map of 255 steps; ``marked`` pixels get the colour of folds."""
    indices = np.rint((np.clip(values / limit, -1, 1) + 1) * 127)
    palette = np.concatenate([_colours(name, 255), [_hex(FOLD)]])
    return _picture(plane, indices if marked is None else np.where(marked, 255, indices), palette)


def _picture(plane: Plane, indices: np.ndarray, palette: np.ndarray, lines: str = "") -> Picture:
    from PIL import Image as Pillow

    step = -(-max(indices.shape) // LONGEST)
    image = Pillow.fromarray(np.ascontiguousarray(indices[::step, ::step].T[::-1].astype(np.uint8)))
    image.putpalette(palette.astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return Picture(plane.name, source, *plane.extent, lines)


def _colours(name: str, count: int) -> np.ndarray:
    from matplotlib import colormaps

    return np.rint(colormaps[name](np.linspace(0, 1, count))[:, :3] * 255)


def _hex(colour: str) -> list[int]:
    return [int(colour[k : k + 2], 16) for k in (1, 3, 5)]


def _ramp(name: str) -> str:
    """A colour map as the stops of a CSS gradient."""
    return ", ".join(f"rgb({r:.0f} {g:.0f} {b:.0f})" for r, g, b in _colours(name, 11))


def checkerboard(plane: Plane) -> np.ndarray:
    """Squares of the fixed and the warped image by turns, eight along the longer side."""
    side = max(plane.extent) / 8
    right, up = (
        ((np.arange(n) + 0.5) * step // side).astype(int)
        for n, step in zip(plane.fixed.shape, plane.spacing, strict=True)
    )
    return np.where((right[:, None] + up[None, :]) % 2 == 0, plane.fixed, plane.warped)


def grid_path(plane: Plane) -> str:
    """The warped grid as an SVG path in millimetres from the upper left corner."""
    from contourpy import contour_generator

    (right, up), coordinates = plane.grid()
    height = plane.extent[1]
    parts = []
    for values, levels in coordinates:
        contours = contour_generator(right, up, values.T)
        for level in levels:
            for line in contours.lines(level):
                points = " ".join(f"{x:.1f} {height - y:.1f}" for x, y in np.asarray(line))
                parts.append(f"M{points}")
    return "".join(parts)


# ------------------------------------------------------------------------------------------------- figures


def curves(history: Sequence[Mapping[str, Any]]) -> Iterator[Curve]:
    """A curve for every number that the iterations report, loss and similarity first; scales are not connected."""
    if not history:
        return
    first = ("loss", "similarity")
    rest = [name for name in history[0] if name not in (*first, "iteration", "scale")]
    scale = np.array([entry.get("scale", 1) for entry in history])
    for name in (*first, *rest):
        values = np.array([_number(entry.get(name)) for entry in history])
        known = values[np.isfinite(values)]
        if not known.size or (name in rest and known.min() == known.max()):
            continue
        low, high = float(known.min()), float(known.max())
        x = np.arange(len(values)) / max(1, len(values) - 1) * _WIDE
        y = _TALL * (1 - (values - low) / ((high - low) or 1.0))
        pieces = []
        for part in np.split(np.arange(len(values)), np.flatnonzero(np.diff(scale)) + 1):
            part = part[np.isfinite(y[part])]
            part = part[:: -(-len(part) // _CURVE) or 1]
            pieces.append(" ".join(f"{x[k]:.1f},{y[k]:.1f}" for k in part))
        yield Curve(name, [p for p in pieces if p], f"{low:.4g}", f"{high:.4g}", len(values))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings by dotted names; lists are leaves."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def is_figure(value: Any) -> bool:
    """Whether a value is one number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
