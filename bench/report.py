"""Tables of a Markdown file rewritten from kept rows, between ``<!-- bench:NAME -->`` and ``<!-- /bench -->``."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuralreg.bench.rows import latest, read_rows
from neuralreg.errors import InputError
from neuralreg.writing import atomic_path, brief

BLOCK = re.compile(r"<!-- bench:([\w-]+) -->\n(.*?)<!-- /bench -->", re.DOTALL)


@dataclass(frozen=True)
class Rows:
    """The rows of a file that agree with ``where``; ``set`` is the part of a registration's case before the slash."""

    file: str
    where: Mapping[str, str]

    def mean(self, folder: Path) -> dict[str, Any]:
        """The means of all columns of numbers, any other column where it is the same in all rows; their ``count``.

        Raises:
            InputError: no row agrees, one failed, or one is out of tolerance and may not be ranked.
        """
        kept = latest(read_rows(folder / self.file)).values()
        rows = [row | {"set": row["case"].partition("/")[0]} for row in kept]
        mine = [row for row in rows if all(row.get(name) == value for name, value in self.where.items())]
        if not mine:
            raise InputError(f"{folder / self.file}: no row has {dict(self.where)}")
        if any(row["failed"] or row.get("in_tolerance") == "False" for row in mine):
            raise InputError(
                f"{folder / self.file}: rows of {dict(self.where)} failed or are out of tolerance"
            )
        found: dict[str, Any] = {"count": len(mine)}
        for name in mine[0]:
            values = [row[name] for row in mine]
            mean = None if name == "commit" else _mean(values)  # 1e66862 is a commit and no number
            if mean is not None:
                found[name] = mean
            elif len(set(values)) == 1:
                found[name] = values[0]
        return found


def _mean(values: list[str]) -> float | None:
    """None where one of them is no number."""
    try:
        return sum(map(float, values)) / len(values)
    except ValueError:
        return None


def kernel(file: str, case: str, contender: str = "neuralreg") -> Rows:
    """Of the suite ``kernels``."""
    return Rows(file, {"suite": "kernels", "case": case, "contender": contender})


def tool(file: str, pairs: str, contender: str) -> Rows:
    """Of the suite ``registration``: all pairs of a set."""
    return Rows(file, {"suite": "registration", "set": pairs, "contender": contender})


@dataclass(frozen=True)
class Line:
    """Cells as format strings; names in braces are those of ``rows``, ``{ours.median_ms:time}`` a figure of theirs."""

    cells: tuple[str, ...]
    rows: Mapping[str, Rows] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A table with heads, or without heads a paragraph, whose lines then have one cell each."""

    heads: tuple[str, ...]
    lines: tuple[Line, ...]


class _Figures(string.Formatter):
    """``{row.column:kind}`` with the kinds below."""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> tuple[Any, str]:
        name, _, column = field_name.partition(".")
        if column not in kwargs[name]:
            raise InputError(f"{name} has no figure {column!r}: {sorted(kwargs[name])}")
        return kwargs[name][column], name

    def format_field(self, value: Any, format_spec: str) -> str:
        return KINDS[format_spec](value) if format_spec in KINDS else format(value, format_spec)


def _digits(value: float, unit: str) -> str:
    """Three digits of seconds and GB, whole milliseconds and MB from 10 on."""
    shown = f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
    return f"{shown} {unit}"


def _time(milliseconds: float) -> str:
    return (
        _digits(milliseconds / 1e3, "s")
        if milliseconds >= 999.5
        else _digits(float(f"{milliseconds:.3g}"), "ms")
    )


def _memory(megabytes: float) -> str:
    return f"{megabytes / 1e3:.1f} GB" if megabytes >= 999.5 else f"{megabytes:.0f} MB"


def _overlap(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")


def _folds(percent: float) -> str:
    if percent == 0:
        return "no folds"
    return f"folds {_overlap(percent)} %" if percent >= 5e-4 else "folds below .001 %"


KINDS = {"time": _time, "memory": _memory, "overlap": _overlap, "folds": _folds}


def written(block: Block, folder: Path) -> str:
    """The Markdown of a block.

    Raises:
        InputError: a row or a figure that it names is not there.
    """
    formatter = _Figures()
    lines = []
    for line in block.lines:
        means = {name: rows.mean(folder) for name, rows in line.rows.items()}
        lines.append([formatter.vformat(cell, (), means) for cell in line.cells])
    if not block.heads:
        return "".join(f"{cells[0]}\n" for cells in lines)
    rows = [f"| {' | '.join(cells)} |\n" for cells in (block.heads, *lines)]
    return rows[0] + "|" + "---|" * len(block.heads) + "\n" + "".join(rows[1:])


def rewrite(text: str, blocks: Mapping[str, Block], folder: Path, name: str) -> str:
    """The text with every block between its markers.

    Raises:
        InputError: markers of an unknown block, a marker without its end, or a block without markers.
    """
    found = [match.group(1) for match in BLOCK.finditer(text)]
    if text.count("<!-- bench:") != len(found):
        raise InputError(f"{name}: a marker <!-- bench:NAME --> has no <!-- /bench --> behind it")
    if strange := sorted(set(found) ^ blocks.keys()):
        raise InputError(f"{name}: markers and tables do not agree about {', '.join(strange)}")

    def fresh(match: re.Match[str]) -> str:
        return f"<!-- bench:{match.group(1)} -->\n{written(blocks[match.group(1)], folder)}<!-- /bench -->"

    return BLOCK.sub(fresh, text)


def rewrite_file(path: Path, blocks: Mapping[str, Block], folder: Path) -> bool:
    """The same for a file; whether it has changed."""
    try:
        before = path.read_text()
    except OSError as error:
        raise InputError(f"cannot read {path}: {brief(error)}") from None
    after = rewrite(before, blocks, folder, str(path))
    if after != before:
        with atomic_path(path) as temporary:
            temporary.write_text(after)
    return after != before
