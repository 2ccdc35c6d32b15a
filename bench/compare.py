"""Two tables of measurements side by side: what has become slower or larger, wrong, what is gone and what is new."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from neuralreg.bench.rows import OURS, latest, read_rows
from neuralreg.errors import InputError

# Figures that were taken once have no spread: how much larger, as a factor and in their unit, one has to be to count.
TAKEN_ONCE = {"extra_mb": (1.1, 4.0), "peak_mb": (1.1, 20.0), "cpu_s": (1.5, 2.0)}
# Scores of registrations, and by how much one has to be worse
SCORED = {"dice": -0.005, "tre_mean_mm": 0.1}
SAME = ("hardware", "threads", "torch")

Row = dict[str, str]


@dataclass(frozen=True)
class Finding:
    """``kind``: slower, faster, larger, smaller, worse, better, wrong, failed, missing or new."""

    kind: str
    name: str
    words: str = ""

    @property
    def regression(self) -> bool:
        return self.kind in ("slower", "larger", "worse", "wrong", "failed")


def compare(before: Path, after: Path) -> tuple[list[Finding], list[str]]:
    """What differs beyond the spread between two tables, regressions first; and words on how far they compare.

    A time differs where the middle 60 % of one run's rounds lie beyond those of the other's (p20 of the slower above
    p80 of the faster). TAKEN_ONCE and SCORED are what else is looked at. "wrong": out of tolerance, and it was not.

    Raises:
        InputError: a file is no table of suites, or the tables share no row.
    """
    first, second = _keyed(before), _keyed(after)
    shared = [key for key in first if key in second]
    if not shared:
        raise InputError(
            f"{before} and {after} share no row: suite, case, part, contender, device must agree"
        )
    notes = [
        f"{name} differs: {old} before, {new} after"
        for name in SAME
        for old, new in [tuple(_values(rows.values(), name) for rows in (first, second))]
        if old != new
    ]
    found = [finding for key in shared for finding in _differences(_name(key), first[key], second[key])]
    found += [Finding("missing", _name(key)) for key in first if key not in second]
    for key in second:
        if key not in first:
            wrong = second[key].get("in_tolerance") == "False"
            found.append(Finding("new", _name(key), "out of tolerance" if wrong else ""))
    notes += _drift([(first[key], second[key]) for key in shared if not key[3].startswith(OURS)])
    notes.append(f"{len(shared)} rows compared")
    return sorted(found, key=lambda finding: not finding.regression), notes


def _drift(others: list[tuple[Row, Row]]) -> list[str]:
    """How much the contenders that are not ours have moved: what of a difference may be the machine's."""
    times = [[_number(row, "median_ms") for row in rows] for rows in others]
    ratios = [new / old for old, new in times if old and new]
    if not ratios:
        return []
    return [
        f"contenders that are not neuralreg's took x {statistics.median(ratios):.2f} of their time (median)"
    ]


def _differences(name: str, old: Row, new: Row) -> Iterable[Finding]:
    if new.get("failed"):
        if not old.get("failed"):
            yield Finding("failed", name, new["failed"])
        return
    if old.get("failed"):
        yield Finding("better", name, f"failed before: {old['failed']}")
        return
    if new.get("in_tolerance") == "False" and old.get("in_tolerance") != "False":
        yield Finding("wrong", name, f"error {new['error']}, {old.get('error') or 'none'} before")
    yield from _times(name, old, new)
    for column, (factor, least) in TAKEN_ONCE.items():
        a, b = (_number(row, column) for row in (old, new))
        if a is None or b is None or max(a, b) <= factor * min(a, b) or abs(a - b) < least:
            continue
        kinds = ("slower", "faster") if column == "cpu_s" else ("larger", "smaller")
        yield Finding(kinds[b < a], name, f"{column} {a:.4g} -> {b:.4g}")
    for column, margin in SCORED.items():
        a, b = (_number(row, column) for row in (old, new))
        if a is not None and b is not None and abs(b - a) > abs(margin):
            yield Finding("worse" if (b - a) * margin > 0 else "better", name, f"{column} {a:.4g} -> {b:.4g}")


def _times(name: str, old: Row, new: Row) -> Iterable[Finding]:
    figures = [[_number(row, f"{which}_ms") for which in ("p20", "median", "p80")] for row in (old, new)]
    if any(value is None for row in figures for value in row):
        return
    (low, middle, high), (new_low, new_middle, new_high) = figures
    words = (
        f"{middle:.4g} ms ({low:.4g} to {high:.4g}) -> {new_middle:.4g} ms ({new_low:.4g} to {new_high:.4g})"
    )
    if middle:
        words += f", x {new_middle / middle:.2f}"  # type: ignore[operator]
    if new_low > high:  # type: ignore[operator]
        yield Finding("slower", name, words)
    elif new_high < low:  # type: ignore[operator]
        yield Finding("faster", name, words)


def _keyed(path: Path) -> dict[tuple[str, ...], Row]:
    """The rows that count, of suites alone."""
    rows = read_rows(path)
    if any(not row.get("suite") for row in rows):
        raise InputError(f"{path}: rows without a suite and a case cannot be compared")
    return latest(rows)


def _name(key: tuple[str, ...]) -> str:
    """The key without what is as usual."""
    return ", ".join(word for word in key if word not in ("", "auto", "cpu", "float32"))


def _values(rows: Iterable[Row], name: str) -> str:
    return ", ".join(sorted({row[name] for row in rows}))


def _number(row: Row, name: str) -> float | None:
    try:
        value = float(row.get(name) or "nan")
    except ValueError:
        return None
    return None if value != value else value
