"""What a run leaves behind: its files, all of them or none, and its numbers in words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neuralreg.registration import Registration
    from neuralreg.sharded.registration import Part


def write_together(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Call each writer with a temporary path beside its file; rename them when the last one is complete.

    When a writer raises, or the user interrupts, no file of the run is left and older ones stay as they were.
    """
    from neuralreg.writing import atomic_path

    with ExitStack() as stack:
        temporary = {path: stack.enter_context(atomic_path(path)) for path in files}
        for path, write in files.items():
            write(temporary[path])


def json_text(content: Mapping[str, Any]) -> str:
    """Indented JSON; numbers that JSON does not know (NaN, infinity) become null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes :func:`json_text` in UTF-8."""
    Path(path).write_text(json_text(content), encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_rows(registration: Registration | Part) -> list[tuple[str, str]]:
    """The few numbers that tell whether a registration went well, as (name, value) for people."""
    summary, history = registration.summary, registration.history
    rows = []
    if summary.get("weights"):
        rows.append(("method", f"{summary['method']}, weights {summary['weights']}"))
    elif "preset" in summary:
        rows.append(("method", f"{summary['method']}, preset {summary['preset']}"))
    if "parameters" in summary:
        rows.append(("parameters", f"{summary['parameters']:,}"))
    if history:
        # Only losses of one scale compare.
        first = next(entry for entry in history if entry.get("scale") == history[-1].get("scale"))
        rows.append(("similarity", f"{first['similarity']:.4f} -> {history[-1]['similarity']:.4f}"))
    if summary.get("world_size"):
        rows.append(("processes", f"{summary['world_size']}, memory is of the largest"))
    seconds = f"{summary['wall_seconds']:.1f} s, {summary['cpu_seconds']:.1f} CPU s"
    rows.append(("folds", f"{summary['folds_percent']:.4f} % of voxels, SDlogJ {summary['sdlogj']:.3f}"))
    if summary["inverse_consistency_mm"] is not None:
        rows.append(("inverse consistency", f"{summary['inverse_consistency_mm']:.3f} mm"))
    return [
        *rows,
        ("time", f"{seconds}, {summary['iterations']} iterations"),
        ("peak memory", f"{summary['peak_memory_mb']:.0f} MB"),
    ]
