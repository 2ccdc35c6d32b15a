"""The figures of the suites, drawn from rows alone: what ``neuralreg bench report --out`` leaves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

from neuralreg.bench.parts import PARTS
from neuralreg.bench.rows import OURS, latest, read_rows
from neuralreg.errors import InputError
from neuralreg.figure import require_matplotlib
from neuralreg.writing import atomic_path

Row = dict[str, str]
WIDTH = 9.0  # inches


def draw_all(folder: Path, out: Path) -> list[Path]:
    """A figure for every suite that has fitting rows in the tables of a folder; the files.

    Tables written before ``neuralreg bench`` had suites are no part of a figure.

    Raises:
        InputError: no row for any figure, or matplotlib is missing.
    """
    require_matplotlib()
    kept = (row for path in sorted(folder.glob("*.csv")) for row in read_rows(path))
    rows: dict[str, list[Row]] = {}
    for row in latest(row for row in kept if row.get("settings") is not None).values():
        rows.setdefault(row["suite"], []).append(row)
    files = []
    out.mkdir(parents=True, exist_ok=True)
    for suite, draw in FIGURES.items():
        mine = rows.get(suite, [])
        sound = [row for row in mine if not row.get("failed")]
        picture = draw(sound) if suite != "memory-scaling" else memory_scaling(sound, beyond_limit(mine))
        if picture is not None:
            files.append(out / f"{suite}.png")
            _save(picture, files[-1])
    if not files:
        raise InputError(f"{folder}: no rows that a figure could be drawn from")
    return files


def kernels(rows: list[Row]) -> Any:
    """How many times our time the others take, a bar a case and contender, on a logarithmic axis."""
    bars = []
    for case in _cases(rows):
        ranked = [row for row in case if row.get("in_tolerance") == "True"]
        ours = [row for row in ranked if row["contender"] == "neuralreg"]
        for row in ranked if ours else []:
            if row["contender"] not in ("neuralreg", *(o["contender"] for o in ours)):
                ratio = float(row["median_ms"]) / float(ours[-1]["median_ms"])
                bars.append((f"{row['case']}: {row['contender']}", ratio))
    if not bars:
        return None
    picture, axes = _axes(len(bars))
    axes.barh([name for name, _ in bars], [ratio for _, ratio in bars], color="tab:gray")
    axes.axvline(1, color="tab:blue")
    axes.set(xscale="log", xlabel="time over neuralreg's (medians, rows in tolerance)")
    axes.tick_params(axis="y", labelsize=6)
    axes.invert_yaxis()
    return picture


def iteration(rows: list[Row]) -> Any:
    """A panel a method, a stacked bar a step and contender, its parts in the order in which they run.

    Of CPU time where all rows have it, which other work on the machine does not lengthen; of wall time otherwise.
    """
    parts = [row for row in rows if row.get("part")]
    if not parts:
        return None
    column, clock = ("cpu_ms", "CPU ") if all(row.get("cpu_ms") for row in parts) else ("median_ms", "")
    bars: dict[str, dict[str, dict[str, float]]] = {}  # by method and step: milliseconds of the parts
    for row in parts:
        steps = bars.setdefault(row["case"].split()[0], {})
        steps.setdefault(f"{row['case']}: {row['contender']}", {})[row["part"]] = float(row[column])
    counts = [len(steps) for steps in bars.values()]
    picture, panels = _pyplot().subplots(
        len(bars),
        figsize=(WIDTH, 1 + 0.24 * sum(counts) + 0.4 * len(bars)),
        layout="constrained",
        squeeze=False,
        height_ratios=counts,
    )
    for axes, steps in zip(panels[:, 0], bars.values(), strict=True):
        left = [0.0] * len(steps)
        for index, part in enumerate(PARTS):
            times = [step.get(part, 0.0) for step in steps.values()]
            axes.barh(list(steps), times, left=left, label=part, color=f"C{index}")
            left = [a + b for a, b in zip(left, times, strict=True)]
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=8)
    panels[-1, 0].set(xlabel=f"{clock}milliseconds an optimiser step (medians of the parts)")
    picture.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize=8)
    return picture


def beyond_limit(rows: list[Row]) -> set[str]:
    """The contenders that the memory allowed has stopped on their way to larger cubes."""
    return {row["contender"] for row in rows if row.get("beyond_limit") and not row.get("points")}


def memory_scaling(rows: list[Row], stopped: Collection[str] = ()) -> Any:
    """Peak memory beyond imports over the cube's edge and over points, and CPU time over the edge.

    A cross marks the largest cube that fits of a contender that was ``stopped`` by its limit. Contenders have one
    colour in all panels, ours solid lines.
    """
    measured = [row for row in rows if row.get("extra_mb")]
    if not measured:
        return None
    pyplot = _pyplot()
    picture, panels = pyplot.subplots(1, 3, figsize=(15, 5), layout="constrained")
    # One colour a contender in all panels, which do not have the same ones
    colours = {
        name: f"C{place}" for place, name in enumerate(dict.fromkeys(row["contender"] for row in measured))
    }
    for axes, over, up in zip(
        panels, ("size", "points", "size"), ("extra_mb", "extra_mb", "cpu_ms"), strict=True
    ):
        mine = [row for row in measured if bool(row.get("points")) == (over == "points") and row.get(up)]
        for name in dict.fromkeys(row["contender"] for row in mine):
            one = sorted((float(row[over]), float(row[up])) for row in mine if row["contender"] == name)
            style = "-" if name.startswith(OURS) else "--"
            axes.plot(
                *zip(*one, strict=True), style, marker="o", markersize=4, color=colours[name], label=name
            )
            if name in stopped and (over, up) == ("size", "extra_mb"):
                axes.plot(*one[-1], "X", markersize=11, color=colours[name])
        axes.set_visible(bool(mine))
        words = {"extra_mb": "peak memory beyond imports (MB)", "cpu_ms": "CPU ms an iteration"}[up]
        axes.set(yscale="log", ylabel=words)
        axes.set(xlabel="edge of the cube (voxels)" if over == "size" else "points an iteration")
        if over == "points":
            axes.set(xscale="log")
    if stopped:
        panels[0].plot(
            [], [], "X", markersize=9, color="gray", label="largest that fits into the memory allowed"
        )
    if panels[0].lines:
        picture.legend(
            *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8
        )
    return picture


def registration(rows: list[Row]) -> Any:
    """Dice, and TRE where there are landmarks, over CPU seconds: a panel a pair, a line a tool."""
    runs = [row for row in rows if row.get("series") and row.get("cpu_s")]
    panels = [
        (pair, score)
        for pair in dict.fromkeys(row["case"] for row in runs)
        for score in ("dice", "tre_mean_mm")
        if sum(bool(row.get(score)) for row in runs if row["case"] == pair) > 1
    ]
    if not panels:
        return None
    pyplot = _pyplot()
    size = (7.5 * len(panels), 5)
    picture, axes = pyplot.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for axis, (pair, score) in zip(axes[0], panels, strict=True):
        mine = [row for row in runs if row["case"] == pair and row.get(score)]
        for name in dict.fromkeys(row["series"] for row in mine):
            points = sorted((float(row["cpu_s"]), float(row[score])) for row in mine if row["series"] == name)
            style = "-" if name.startswith(OURS) else "--"
            axis.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=name)
        start = [
            float(row[score])
            for row in rows
            if row["case"] == pair and not row.get("cpu_s") and row.get(score)
        ]
        for value in start[-1:]:
            axis.axhline(value, color="gray", linestyle=":", label="before")
        words = {"dice": "mean Dice", "tre_mean_mm": "mean TRE (mm)"}[score]
        axis.set(title=pair, xscale="log", xlabel="CPU seconds of the whole process", ylabel=words)
        axis.legend(fontsize=8)
    return picture


def training(rows: list[Row]) -> Any:
    """Dice on unseen pairs over CPU seconds of training: a panel a data set, a line a method."""
    if not rows:
        return None
    cases = list(dict.fromkeys(row["case"] for row in rows))
    picture, axes = _pyplot().subplots(
        1, len(cases), figsize=(7.5 * len(cases), 5), layout="constrained", squeeze=False
    )
    for axis, case in zip(axes[0], cases, strict=True):
        for name in dict.fromkeys(row["contender"] for row in rows if row["case"] == case):
            mine = [row for row in rows if (row["case"], row["contender"]) == (case, name)]
            points = sorted((float(row["cpu_s"]), float(row["dice"])) for row in mine)
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(title=case, xlabel="CPU seconds of training", ylabel="mean Dice of unseen pairs")
        axis.legend(fontsize=8)
    return picture


FIGURES: dict[str, Callable[[list[Row]], Any]] = {
    "kernels": kernels,
    "iteration": iteration,
    "memory-scaling": memory_scaling,
    "registration": registration,
    "training": training,
}


def _cases(rows: list[Row]) -> Iterable[list[Row]]:
    for case in dict.fromkeys(row["case"] for row in rows):
        yield [row for row in rows if row["case"] == case]


def _axes(bars: int) -> Any:
    """A figure that is as high as so many horizontal bars need."""
    return _pyplot().subplots(figsize=(WIDTH, 1 + 0.24 * bars), layout="constrained")


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(picture: Any, path: Path) -> None:
    # Without the library's version in the file, a second run changes nothing.
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120, metadata={"Software": None})
    _pyplot().close(picture)
