"""What tables of measurements share: whose machine and commit they are of, how they are written, how a study ends."""

from __future__ import annotations

import csv
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch

from neuralreg.bench.process import end_with_clean_up
from neuralreg.errors import InputError, NeuralregError
from neuralreg.machine import cpu_name, package_version
from neuralreg.writing import atomic_path, brief

PROVENANCE = ("date", "commit", "hardware", "threads", "torch")
# What a row is of, in all suites, and what most of them measure: bench/results/README.md explains every column
COMMON = (
    *PROVENANCE,
    "versions",
    "settings",
    "suite",
    "case",
    "part",
    "contender",
    "backend",
    "device",
    "dtype",
)
MEASURES = (
    *("error", "in_tolerance", "median_ms", "p20_ms", "p80_ms", "cpu_ms"),
    *("extra_mb", "floor_ms", "rounds", "clock", "failed"),
)
# How contenders of ours begin: neuralreg ..., or a method's name as in nir:fast
OURS = ("neuralreg", "nir:", "ncf:", "nephi:", "ofg:")
KEY = ("suite", "case", "part", "contender", "backend", "device", "dtype")  # tells rows of a table apart


def provenance(hardware: str | None = None, threads: int | None = None) -> dict[str, Any]:
    """The first columns of a row; the CPU and torch's threads where nothing else is given."""
    values = (
        date.today().isoformat(),
        commit(),
        hardware or cpu_name(),
        threads or torch.get_num_threads(),
        torch.__version__,
    )
    return dict(zip(PROVENANCE, values, strict=True))


def versions(device: torch.device) -> str:
    """neuralreg, Python and, on a GPU, CUDA and its driver."""
    found = [f"neuralreg {package_version('neuralreg')}", f"Python {platform.python_version()}"]
    if device.type == "cuda":
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(asked, capture_output=True, text=True) if shutil.which(asked[0]) else None
        found.append(f"CUDA {torch.version.cuda}")
        found += [f"driver {driver.stdout.split()[0]}"] if driver and driver.stdout else []
    return ", ".join(found)


def commit() -> str:
    """Short hash of the checkout, with a + where it has changes; empty outside one."""
    folder = str(Path(__file__).resolve().parent)
    asked = ["git", "-C", folder, "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def write_rows(
    path: Path | None, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """All rows, floats at six digits, what a row lacks empty; nothing without a path.

    ``columns``: names in their order; by default as the rows bring them, with "error" last.
    """
    if path is None:
        return
    if columns is None:
        names = dict.fromkeys(name for row in rows for name in row)
        columns = sorted(names, key=lambda name: name == "error")
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table in the columns of today; one written before ``neuralreg bench`` is read as it stands there.

    Raises:
        InputError: no such file, or no table.
    """
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"cannot read {path}: {brief(error)}") from None
    if not rows or not set(PROVENANCE) <= rows[0].keys():
        raise InputError(
            f"{path} is no table of measurements: it needs columns {', '.join(PROVENANCE)} and a row"
        )
    return [_of_today(row) for row in rows]


def latest(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, ...], dict[str, str]]:
    """Rows by what they are of, as KEY says; one that was measured again stands for the earlier one."""
    return {tuple(row.get(name, "") for name in KEY): dict(row) for row in rows}


def _of_today(row: dict[str, str]) -> dict[str, str]:
    """Columns that older tables lack, from those that they have."""
    told = {
        "backend": "auto",
        "device": "cpu",
        "dtype": "float32",
        "part": "",
        "failed": row.get("error", ""),
    }
    if "suite" in row:
        told = {}
    elif "op" in row:
        told |= {"suite": "kernels", "case": f"{row['op']}, {row['work']}", "failed": ""}
    elif "pair" in row and "tool" in row:
        told |= {"suite": "registration", "case": row["pair"], "contender": row["tool"], "error": ""}
    elif "stage" in row and "images_mb" in row:
        told |= {"suite": "memory-scaling", "case": f"cube {row['size']}", "part": row["stage"], "error": ""}
    else:
        told |= {"suite": "", "case": ""}
    return row | told


def words(text: str) -> list[str]:
    """The words between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def numbers(text: str, flag: str) -> list[int]:
    """Whole numbers with commas between.

    Raises:
        InputError: something else stands there.
    """
    try:
        return [int(word) for word in words(text)]
    except ValueError:
        raise InputError(f"{flag}: whole numbers with commas between, got {text!r}") from None


@contextmanager
def using_threads(threads: int | None) -> Iterator[None]:
    """Torch with so many threads for a while; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_command(command: Callable[[], Any]) -> None:
    """A study as a command: an error that a user can cause is one line and exit code 2."""
    end_with_clean_up()
    try:
        command()
    except NeuralregError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
