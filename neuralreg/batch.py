"""Many pairs by one process, or by many that share a folder: resumed after a kill, nothing lost, nothing done twice.

A pair's files are written in a hidden folder, which takes the pair's name when they are complete; then the manifest
gets its line. So a named folder is a whole result, with or without its line, and anything else is begun anew.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neuralreg.errors import InputError, NeuralregError
from neuralreg.manifest import Manifest
from neuralreg.outputs import finite, write_json
from neuralreg.pair_list import PairFiles
from neuralreg.writing import atomic_path, brief

if TYPE_CHECKING:
    from neuralreg.registration import Registration

SUMMARY, TABLE, PAGE, REPORT = "summary.json", "summary.csv", "summary.html", "report.html"
FIGURES = (
    "dice_mean_before", "dice_mean", "hd95_mean_before_mm", "hd95_mean_mm", "assd_mean_before_mm", "assd_mean_mm",
    "tre_mean_before_mm", "tre_mean_mm", "similarity", "folds_percent", "sdlogj",
    "inverse_consistency_mm", "wall_seconds",
)  # fmt: skip
BY_LABEL = ("dice_before", "dice", "hd95_before_mm", "hd95_mm", "assd_before_mm", "assd_mm")

Register = Callable[[PairFiles], "Registration"]
Evaluate = Callable[[PairFiles, "Registration"], dict[str, Any]]
Writer = Callable[["Registration", Path], None]


@dataclass
class Tally:
    """The names of pairs by what became of them in this run."""

    done: list[str] = field(default_factory=list)
    before: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Batch:
    """What is done with every pair.

    ``register`` and ``evaluate`` give its result and figures that hold it against labels or landmarks; ``writers`` are
    the files of its folder by name, beside summary.json.
    """

    out: Path
    register: Register
    evaluate: Evaluate
    writers: Mapping[str, Writer]

    def run(
        self,
        pairs: Sequence[PairFiles],
        settings: dict[str, Any],
        tell: Callable[[int, str, dict[str, Any]], None] | None = None,
    ) -> Tally:
        """Registers the pairs that are not done and that no other process has in work; failures are recorded.

        ``settings`` must be those of all runs on this folder. ``tell`` hears each pair's place, what became of it
        (a name of `Tally`) and its line.

        Raises:
            InputError: other settings than before, or pairs whose results were made from other files.
        """
        manifest, tally = Manifest(self.out), Tally()
        try:
            manifest.agree(settings)
            for pair in pairs:
                line = manifest.lines.get(pair.name, {})
                if line.get("status") == "done":
                    check_inputs(pair, line["inputs"])
            failed_before = {name for name, line in manifest.lines.items() if line["status"] == "failed"}
            for place, pair in enumerate(pairs):
                with manifest.claim(pair.name) as mine:
                    became, line = self._turn(pair, manifest, failed_before) if mine else ("elsewhere", {})
                getattr(tally, became).append(pair.name)
                if tell:
                    tell(place, became, line)
        finally:
            manifest.close()
        return tally

    def _turn(
        self, pair: PairFiles, manifest: Manifest, failed_before: Iterable[str]
    ) -> tuple[str, dict[str, Any]]:
        manifest.refresh()
        line = manifest.lines.get(pair.name)
        folder = self.out / pair.name
        if line is not None and line["status"] == "failed" and pair.name not in failed_before:
            return "failed", line  # by another process of this run
        if folder.exists():
            try:
                found = line_of(pair, read_result(pair, folder))
            except InputError as error:
                return "failed", self._record(manifest, failure(pair, error))
            if line is None or line["status"] != "done":  # killed between the rename and the line
                self._record(manifest, found)
            return "before", found
        try:
            line = line_of(pair, self._do(pair, folder))
        except Exception as error:
            return "failed", self._record(manifest, failure(pair, error))
        return "done", self._record(manifest, line)

    def _record(self, manifest: Manifest, line: dict[str, Any]) -> dict[str, Any]:
        manifest.append(line)
        return line

    def _do(self, pair: PairFiles, folder: Path) -> dict[str, Any]:
        """Registers one pair and puts its folder in place; returns its summary."""
        building = folder.with_name(f".{folder.name}.tmp")
        if building.exists():  # of a run that was killed: the claim is ours
            shutil.rmtree(building)
        building.mkdir()
        try:
            registration = self.register(pair)
            summary = registration.summary
            summary["pair"] = {"name": pair.name, "inputs": pair.inputs()}
            summary["evaluation"] = self.evaluate(pair, registration)
            for name, write in self.writers.items():
                write(registration, building / name)
            write_json(building / SUMMARY, summary)
            for path in (*building.iterdir(), building):
                flush(path)
            building.rename(folder)
            flush(self.out)
        finally:
            shutil.rmtree(building, ignore_errors=True)
        return summary


def check_inputs(pair: PairFiles, inputs: Any) -> None:
    """InputError where a pair's result was made from other files (by role) than it names now."""
    if inputs != pair.inputs():
        raise InputError(
            f"pair {pair.name} names other files than those of its result; give the pair another name, or another --out"
        )


def read_result(pair: PairFiles, folder: Path) -> dict[str, Any]:
    """The summary of a pair's complete folder; InputError where it is not this pair's."""
    try:
        summary: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        inputs = summary["pair"]["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} exists and is no result of a batch; move it away") from None
    check_inputs(pair, inputs)
    return summary


def line_of(pair: PairFiles, summary: Mapping[str, Any]) -> dict[str, Any]:
    """A pair's line in the manifest: its figures, also those of each label, where its summary has them."""
    known = finite({**summary, **summary["evaluation"]})
    figures = {name: known[name] for name in (*FIGURES, *BY_LABEL) if known.get(name) is not None}
    return {"pair": pair.name, "status": "done", **figures, "inputs": pair.inputs()}


def failure(pair: PairFiles, error: Exception) -> dict[str, Any]:
    """The line of a pair that could not be registered; what the user cannot mend comes with its traceback."""
    line = {"pair": pair.name, "status": "failed", "error": str(error), "inputs": pair.inputs()}
    if not isinstance(error, NeuralregError):
        line["error"] = f"{type(error).__name__}: {brief(error)}"
        line["traceback"] = "".join(traceback.format_exception(error))[-8000:]
    return line


def flush(path: Path) -> None:
    """Returns when a file's content, or a folder's list of names, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def collect(out: Path, pairs: Iterable[PairFiles]) -> list[dict[str, Any]]:
    """The latest line of every pair, in their order; status "open" where there is none yet."""
    manifest = Manifest(out)
    manifest.close()
    return [manifest.lines.get(pair.name, {"pair": pair.name, "status": "open"}) for pair in pairs]


def known_figures(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The figures that any of the pairs has."""
    return [name for name in FIGURES if any(line.get(name) is not None for line in lines)]


def label_means(lines: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Label -> its figures, as text: the mean over the pairs that have it, and how many these are if not all have."""
    table: dict[str, dict[str, list[float | None]]] = {}
    for line in lines:
        for name in BY_LABEL:
            for label, value in line.get(name, {}).items():
                table.setdefault(label, {}).setdefault(name, []).append(value)
    return {
        label: {name: mean_of(values) for name, values in table[label].items()}
        for label in sorted(table, key=int)
    }


def mean_of(values: Sequence[float | None]) -> str:
    """The mean of what is there, with the count where something is missing."""
    known = [value for value in values if value is not None]
    text = f"{sum(known) / len(known):.4g}" if known else ""
    return text if len(known) == len(values) else f"{text} ({len(known)} of {len(values)})".strip()


def write_page(out: Path, lines: Sequence[Mapping[str, Any]], command: str) -> Path:
    """Writes summary.html: figures over the pairs, and a row a pair with a link to its own page."""
    from neuralreg.report import render

    words = [str(line["status"]) for line in lines]
    text = render(
        "batch.html.j2",
        title=f"{len(lines)} pairs in {out.name}",
        counts={word: words.count(word) for word in ("done", "failed", "open") if word in words},
        statistics=statistics(lines),
        labels=label_means(lines),
        by_label=[name for name in BY_LABEL if any(name in line for line in lines)],
        figures=known_figures(lines),
        lines=lines,
        page=REPORT,
        command=command,
    )
    with atomic_path(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / PAGE


def write_table(out: Path, lines: Sequence[Mapping[str, Any]]) -> Path:
    """Writes summary.csv: a row a pair, a column for each figure that any of them has, those of labels last."""
    rows = [
        {**line, **{f"{name}_{k}": v for name in BY_LABEL for k, v in line.get(name, {}).items()}}
        for line in lines
    ]
    labels = [f"{name}_{label}" for name in BY_LABEL for label in label_means(lines)]
    figures = [*known_figures(lines), *(name for name in labels if any(name in row for row in rows))]
    with atomic_path(out / TABLE) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        names = ["pair", "status", *figures, "error"]
        table = csv.DictWriter(file, names, extrasaction="ignore", restval="")
        table.writeheader()
        table.writerows(rows)
    return out / TABLE


def statistics(lines: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Figure -> count, mean, sd, min, max over the pairs that have it."""
    import numpy as np

    lines, table = list(lines), {}
    for name in FIGURES:
        values = np.array([line[name] for line in lines if line.get(name) is not None])
        if values.size:
            table[name] = {
                "count": values.size,
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if values.size > 1 else 0.0,
                "min": float(values.min()),
                "max": float(values.max()),
            }
    return table
