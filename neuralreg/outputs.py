"""What a registration leaves behind: its files, all of them or none, and its numbers in words."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from neuralreg.images import Image
    from neuralreg.registration import Registration
    from neuralreg.transforms import Transform


class Numbers(Protocol):
    """The numbers of a registration."""

    @property
    def history(self) -> list[dict[str, Any]]: ...
    @property
    def summary(self) -> dict[str, Any]: ...


class Result(Numbers, Protocol):
    """What pictures and words about a registration need of it: a `Registration`, or one put together from files."""

    @property
    def transform(self) -> Transform: ...
    @property
    def fixed(self) -> Image: ...
    @property
    def moving(self) -> Image: ...
    @property
    def warped(self) -> Image: ...


def write_together(files: Mapping[Path, Callable[[Path], None]]) -> None:
    """Call each writer with a temporary path beside its file; rename them when the last one is complete.

    When a writer raises, or the user interrupts, no file of the run is left and older ones stay as they were.
    """
    from neuralreg.writing import atomic_path

    with ExitStack() as stack:
        temporary = {path: stack.enter_context(atomic_path(path)) for path in files}
        for path, write in files.items():
            write(temporary[path])


def write_transform(registration: Registration, path: Path) -> None:
    registration.transform.save(path)


def write_inverse(registration: Registration, path: Path) -> None:
    assert registration.inverse is not None, "asked for where it is written"
    registration.inverse.save(path)


def write_start(registration: Registration, path: Path) -> None:
    import numpy as np

    from neuralreg.transforms import Affine

    Affine(np.asarray(registration.summary["initial_matrix_ras"])).save(path)


def write_warped(registration: Registration, path: Path) -> None:
    from neuralreg.images import write_image

    write_image(path, registration.warped.data, registration.warped.affine)


def write_field(registration: Registration, path: Path) -> None:
    registration.save_field(path)


def write_figure(registration: Registration, path: Path) -> None:
    from neuralreg.figure import registration_figure

    registration_figure(registration, path)


def write_report(registration: Registration, path: Path, command: str | None = None) -> None:
    from neuralreg.report import registration_report

    registration_report(registration, path, command)


def write_summary(registration: Registration, path: Path) -> None:
    write_json(path, registration.summary)


def json_text(content: Mapping[str, Any]) -> str:
    """Indented JSON; numbers that JSON does not know (NaN, infinity) become null."""
    return json.dumps(finite(content), indent=2, allow_nan=False) + "\n"


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes :func:`json_text` in UTF-8."""
    Path(path).write_text(json_text(content), encoding="utf-8")


def finite(value: Any) -> Any:
    """The value with None for every number that JSON does not know, and text as the keys of mappings."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary_rows(registration: Numbers) -> list[tuple[str, str]]:
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
    if summary.get("folds_percent") is not None:
        rows.append(("folds", f"{summary['folds_percent']:.4f} % of voxels, SDlogJ {summary['sdlogj']:.3f}"))
    if "ssim" in summary:
        rows.append(("SSIM", f"{summary['ssim_before']:.4f} -> {summary['ssim']:.4f}"))
    if summary.get("inverse_consistency_mm") is not None:
        rows.append(("inverse consistency", f"{summary['inverse_consistency_mm']:.3f} mm"))
    if "wall_seconds" in summary:
        seconds = f"{summary['wall_seconds']:.1f} s, {summary['cpu_seconds']:.1f} CPU s"
        rows.append(("time", f"{seconds}, {summary['iterations']} iterations"))
        rows.append(("peak memory", f"{summary['peak_memory_mb']:.0f} MB"))
    return rows
