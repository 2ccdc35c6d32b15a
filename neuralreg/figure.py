"""One picture that tells whether a registration can be trusted.

A row for each plane through the centre of the fixed grid (axial, coronal, sagittal; a 2-D image has one):
fixed image, moving image where it starts, warped image, the differences before and after on one scale, the
moving grid as the transform draws it over the warped image, and the logarithm of the Jacobian determinant
with folds marked. Below, the loss over the iterations and the numbers of the summary.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from neuralreg.errors import InputError
from neuralreg.planes import DIFFERENCE_MAP, FOLD, GRID, JACOBIAN_MAP, Plane, limits, planes_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from neuralreg.registration import Registration

TITLES = (
    "fixed",
    "moving (start)",
    "warped",
    "difference before",
    "difference after",
    "warped grid",
    "log Jacobian",
)
# Inches. 14 inches shown at README width, about 900 pixels, make a 12 point letter 11 pixels high.
_WIDTH, _LEFT, _GAP, _TOP, _BARS, _HISTORY, _BELOW = 14.0, 0.36, 0.07, 0.36, 0.62, 1.75, 0.55
_LOSS = "#1f5fa8"


def require_matplotlib() -> None:
    """InputError where the figure could not be drawn; costs a look, not an import."""
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError(
            "the figure needs matplotlib, which is not installed; pip install 'neuralreg[report]'"
        )


def registration_figure(registration: Registration, path: str | os.PathLike[str]) -> None:
    """Draw the quality-control picture of a registration as a PNG, written whole or not at all.

    Left is the subject's left, and up is the front or the head, as the header says; one scale in millimetres
    holds for all planes. Intensities of each image are shown from its 0.5th to its 99.5th percentile, and
    differences are taken between images so scaled. The grid is the moving image's lines of equal coordinate,
    seen from the fixed image. The determinant is that of the deformation without the initial transform, by
    central differences; its logarithm is drawn for det > 0, and voxels with det <= 0 are marked as folds.

    Raises InputError without matplotlib or where ``path`` cannot be written. Besides the registration's own
    images it allocates four volumes of the fixed grid.
    """
    require_matplotlib()
    from neuralreg.images import atomic_path, check_writable

    check_writable(path, suffixes=(".png",), role="figure")
    figure = _draw(planes_of(registration), registration)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def _draw(slices: list[Plane], registration: Registration) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    column = (_WIDTH - _LEFT - _GAP * len(TITLES)) / len(TITLES)
    widest = max(plane.extent[0] for plane in slices)
    heights = [column * plane.extent[1] / widest for plane in slices]
    height = _TOP + sum(heights) + _GAP * len(slices) + _BARS + _HISTORY + _BELOW
    figure = Figure(figsize=(_WIDTH, height), dpi=150, facecolor="white")
    FigureCanvasAgg(figure)

    def axes(left: float, bottom: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / _WIDTH, bottom / height, width / _WIDTH, tall / height))

    difference, jacobian = limits(slices)
    top = height - _TOP
    for plane, tall in zip(slices, heights, strict=True):
        top -= tall
        row = [axes(_LEFT + index * (column + _GAP), top, column, tall) for index in range(len(TITLES))]
        if plane is slices[0]:
            for panel, title in zip(row, TITLES, strict=True):
                panel.set_title(title, fontsize=12, pad=5)
        at = 0.4 * _LEFT / _WIDTH, (top + tall / 2) / height
        figure.text(*at, plane.name, fontsize=12, rotation=90, ha="center", va="center")
        shown = _draw_plane(row, plane, difference, jacobian)
        top -= _GAP
    for mappable, first, last, label in (
        (shown[0], 3, 4, "moving or warped minus fixed"),
        (shown[1], 6, 6, "log det J"),
    ):
        left = _LEFT + first * (column + _GAP)
        bar = axes(left + 0.1 * column, top - 0.1, (last - first) * (column + _GAP) + 0.8 * column, 0.09)
        figure.colorbar(mappable, cax=bar, orientation="horizontal").set_label(label, fontsize=10, labelpad=1)
        bar.tick_params(labelsize=10, length=2, pad=1)
    if any(plane.folds.any() for plane in slices):
        at = (_LEFT + 7 * column + 6 * _GAP) / _WIDTH, (top - 0.44) / height
        figure.text(*at, "■ folds", color=FOLD, fontsize=10, ha="right", va="center")
    third = 4 * (column + _GAP)
    _draw_history(axes(_LEFT + 0.4, _BELOW, third - 0.6, _HISTORY), registration.history)
    _write_numbers(
        axes(_LEFT + third, _BELOW - 0.2, _WIDTH - _LEFT - third - 0.1, _HISTORY + 0.3), registration
    )
    return figure


def _draw_plane(row: list[Axes], plane: Plane, difference: float, jacobian: float) -> tuple[Any, Any]:
    """Fill one row; returns what the two colour bars belong to."""
    extent = (0.0, plane.extent[0], 0.0, plane.extent[1])
    style: dict[str, Any] = {"origin": "lower", "extent": extent, "aspect": "equal"}

    def show(panel: Axes, values: np.ndarray, **options: Any) -> Any:
        panel.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
        panel.spines[:].set_visible(False)
        return panel.imshow(values.T, **{"interpolation": "bilinear", **style, **options})

    for panel, values in zip(row[:3], (plane.fixed, plane.start, plane.warped), strict=True):
        show(panel, values, cmap="gray", vmin=0, vmax=1)
    for panel, values in zip(row[3:5], (plane.start, plane.warped), strict=True):
        bar = show(panel, values - plane.fixed, cmap=DIFFERENCE_MAP, vmin=-difference, vmax=difference)

    show(row[5], plane.warped, cmap="gray", vmin=0, vmax=1.4)
    centres, lines = plane.grid()
    for coordinate, levels in lines:
        row[5].contour(*centres, coordinate.T, levels=levels, colors=GRID, linewidths=0.6)

    log_bar = show(row[6], plane.logarithm, cmap=JACOBIAN_MAP, vmin=-jacobian, vmax=jacobian)
    right, up = ((np.argwhere(plane.folds) + 0.5) * plane.spacing).T
    row[6].scatter(right, up, s=7, marker="s", color=FOLD, linewidths=0)
    return bar, log_bar


def _draw_history(panel: Axes, history: list[dict[str, Any]]) -> None:
    loss = np.array([entry["loss"] for entry in history], dtype=float)
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_xlabel("iteration", fontsize=11, labelpad=1)
    panel.set_ylabel("loss", fontsize=11)
    panel.tick_params(labelsize=10)
    if not loss.size:
        return
    steps = np.arange(1, loss.size + 1)
    width = max(1, loss.size // 25)
    scale = np.array([entry.get("scale", 1) for entry in history])
    for stage, part in enumerate(np.split(steps, np.flatnonzero(np.diff(scale)) + 1)):
        values = loss[part - 1]
        padded = np.pad(values, (width // 2, (width - 1) // 2), mode="edge")
        smooth = np.convolve(padded, np.full(width, 1 / width), "valid")
        labels = ("_", "_") if stage else ("each iteration", f"mean of {width}")
        panel.plot(part, values, color=_LOSS, alpha=0.35, linewidth=1, label=labels[0])
        panel.plot(part, smooth, color=_LOSS, linewidth=2, label=labels[1])
        if stage:
            panel.axvline(part[0] - 0.5, color="0.8", linewidth=1, zorder=0)
    panel.set_xlim(1, max(2, loss.size))
    if width > 1:
        panel.legend(fontsize=10, frameon=False, loc="upper right")


def _write_numbers(panel: Axes, registration: Registration) -> None:
    from neuralreg.outputs import summary_rows

    panel.set_axis_off()
    rows = summary_rows(registration)
    step = 1 / max(len(rows), 7)
    for index, (name, value) in enumerate(rows):
        panel.text(0.0, 1 - (index + 0.7) * step, name, fontsize=12, color="0.35")
        panel.text(0.34, 1 - (index + 0.7) * step, value, fontsize=12)
