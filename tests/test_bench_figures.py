"""What the figures show: the largest cube that fits is marked, and times that other work lengthens are not taken."""

from __future__ import annotations

import pytest

from neuralreg.bench import figures

pytest.importorskip("matplotlib")


def cube(edge: int, contender: str = "neuralreg nir fast", **more: str) -> dict[str, str]:
    row = {"contender": contender, "size": str(edge), "extra_mb": str(edge), "cpu_ms": "1.0", "points": ""}
    return row | more


def crosses(panel) -> list[tuple[float, float]]:
    return [
        (x, y)
        for line in panel.lines
        if line.get_marker() == "X"
        for x, y in zip(*line.get_data(), strict=True)
    ]


def test_the_largest_cube_that_fits_is_marked():
    stopped = {**cube(64), "failed": "no memory", "beyond_limit": "True"}
    rows = [cube(n) for n in (24, 48, 32)] + [cube(n, "torch dense-field, refine") for n in (24, 32)]
    picture = figures.memory_scaling(rows, figures.beyond_limit([*rows, stopped]))
    assert crosses(picture.axes[0]) == [(48.0, 48.0)]
    assert crosses(figures.memory_scaling(rows).axes[0]) == []


def test_rows_without_cpu_time_are_in_the_panels_of_memory_alone():
    memory, _, time = figures.memory_scaling([cube(24), cube(32, cpu_ms=""), cube(48)]).axes
    assert [list(panel.lines[0].get_xdata()) for panel in (memory, time)] == [[24, 32, 48], [24, 48]]


@pytest.mark.parametrize(("second", "width", "words"), [("5.0", 5.0, "CPU"), ("", 2.0, "milliseconds")])
def test_parts_are_of_cpu_time_where_all_rows_have_it(second, width, words):
    rows = [
        {"case": name, "contender": "neuralreg", "part": "field", "median_ms": "2.0", "cpu_ms": cpu}
        for name, cpu in (("nir a", "5.0"), ("nir b", second))
    ]
    (axes,) = figures.iteration(rows).axes
    assert [bar.get_width() for bar in axes.patches if bar.get_width()] == [width, width]
    assert axes.get_xlabel().startswith(words)
