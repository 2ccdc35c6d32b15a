"""The report: README tables from kept rows, the same a second time, and refused where a row is not fit to be shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from neuralreg.bench import tables
from neuralreg.bench.report import KINDS, Block, Line, Rows, kernel, rewrite, rewrite_file
from neuralreg.bench.rows import provenance, write_rows
from neuralreg.errors import InputError
from tests.small import call

ROOT = Path(__file__).resolve().parents[1]
TEXT = "Before.\n\n<!-- bench:one -->\nold\n<!-- /bench -->\n\nAfter.\n"


@pytest.fixture
def block(tmp_path):
    """A block of one row, and its folder."""
    common = {**provenance(), "suite": "kernels", "case": "op, work"}
    rows = [
        {**common, "contender": "neuralreg", "in_tolerance": True, "median_ms": 12.345, "extra_mb": 1234.0},
        {**common, "contender": "wrong", "in_tolerance": False, "median_ms": 1.0},
        {**common, "contender": "failed", "failed": "no memory"},
    ]
    write_rows(tmp_path / "rows.csv", rows)
    cells = ("op", "{ours.median_ms:time}", "{ours.extra_mb:memory}")
    return Block(("op", "time", "memory"), (Line(cells, {"ours": kernel("rows.csv", "op, work")}),))


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_documents_are_what_the_report_writes(name):
    text = (ROOT / name).read_text()
    assert rewrite(text, tables.PAGES[Path(name).name], ROOT / "bench/results", name) == text


def test_a_cell_is_of_the_row_measured_last(tmp_path):
    row = {**provenance(), "suite": "kernels", "case": "op, work", "contender": "neuralreg", "failed": ""}
    write_rows(tmp_path / "rows.csv", [{**row, "median_ms": 1.0}, {**row, "median_ms": 3.0}])
    assert kernel("rows.csv", "op, work").mean(tmp_path)["median_ms"] == 3.0


def test_only_what_stands_between_the_markers_changes_and_only_once(block, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(TEXT)
    assert rewrite_file(path, {"one": block}, tmp_path)
    table = "| op | time | memory |\n|---|---|---|\n| op | 12.3 ms | 1.2 GB |\n"
    assert path.read_text() == TEXT.replace("old\n", table)
    assert not rewrite_file(path, {"one": block}, tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- bench:one -->\nno end", "no <!-- /bench -->"),
        (TEXT.replace("bench:one", "bench:two"), "one, two"),
        ("no markers", "one"),
    ],
)
def test_markers_and_tables_have_to_agree(block, tmp_path, text, told):
    with pytest.raises(InputError, match=told):
        rewrite(text, {"one": block}, tmp_path, "README.md")


@pytest.mark.parametrize("contender", ["wrong", "failed", "nobody"])
def test_a_row_that_is_wrong_failed_or_not_there_is_no_figure(block, tmp_path, contender):
    bad = Block((), (Line(("{a.median_ms:time}",), {"a": kernel("rows.csv", "op, work", contender)}),))
    with pytest.raises(InputError, match="op, work"):
        rewrite(TEXT, {"one": bad}, tmp_path, "README.md")
    unknown = Block((), (Line(("{a.nothing:time}",), {"a": kernel("rows.csv", "op, work")}),))
    with pytest.raises(InputError, match="nothing"):
        rewrite(TEXT, {"one": unknown}, tmp_path, "README.md")


def test_means_are_over_the_pairs_of_a_set(tmp_path):
    row = {**provenance(), "commit": "1e66862", "tool": "nir:fast", "options": "", "error": ""}
    pairs = [{**row, "pair": f"set/{name}", "dice": dice} for name, dice in (("a-b", 0.7), ("b-c", 0.8))]
    write_rows(tmp_path / "rows.csv", [*pairs, {**row, "pair": "other/a-b", "dice": 0.1}])
    found = Rows("rows.csv", {"set": "set", "contender": "nir:fast"}).mean(tmp_path)
    assert found["dice"] == pytest.approx(0.75)
    assert found["count"] == 2
    assert found["commit"] == "1e66862", "a number to float()"


@pytest.mark.parametrize(
    ("kind", "value", "shown"),
    [
        ("time", 5.984, "5.98 ms"),
        ("time", 802.3, "802 ms"),
        ("time", 23_340.0, "23.3 s"),
        ("memory", 72.9, "73 MB"),
        ("overlap", 0.7713, ".771"),
        ("folds", 0.0, "no folds"),
        ("folds", 0.039, "folds .039 %"),
        ("folds", 0.0001, "folds below .001 %"),
    ],
)
def test_how_figures_are_worded(kind, value, shown):
    assert KINDS[kind](value) == shown


def test_the_command(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text().replace("| 142 ms |", "| 1 ms |"))
    words = ("bench", "report", "--results", ROOT / "bench/results", "--readme", readme)
    assert "rewritten" in call(*words).stdout
    assert readme.read_text() == (ROOT / "README.md").read_text()
    assert "unchanged" in call(*words).stdout
    assert call("bench", "report").exit_code == 2
    other = call("bench", "report", "--results", ROOT / "bench/results", "--readme", tmp_path / "other.md")
    assert other.exit_code == 2
    assert "README.md, benchmarks.md" in other.stderr
