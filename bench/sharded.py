"""``python -m neuralreg.bench.sharded``: one synthetic pair over several processes, and the memory of each.

The pair is made in a temporary folder, uncompressed, plane by plane. Every number of processes registers it by
``torchrun ... -m neuralreg register``; peak memory is each rank's own high-water mark, beyond that of a process that
has imported neuralreg's registration and done nothing.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import nibabel
import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench.process import run
from neuralreg.bench.rows import numbers, provenance, run_command, write_rows
from neuralreg.errors import InputError, NeuralregError
from neuralreg.writing import check_writable, nifti_image

ASKED = "import neuralreg.registration, neuralreg.memory as m; print(m.peak_bytes() / m.MB)"


def main(
    size: Annotated[int, typer.Option(help="Voxels along every axis.")] = 512,
    ranks: Annotated[str, typer.Option(help="Numbers of processes, with commas between.")] = "1,2,4",
    iterations: Annotated[int, typer.Option(help="Of every registration.")] = 10,
    threads: Annotated[int, typer.Option(help="Of every process.")] = 1,
    margin: Annotated[float, typer.Option(help="Voxels of displacement that are read beside a slab.")] = 10.0,
    out: Annotated[Path | None, typer.Option(help="One row a number of processes (.csv).")] = None,
) -> None:
    """Peak memory a rank, beyond the imports, as the number of ranks grows; and what differs between the results."""
    worlds = numbers(ranks, "--ranks")
    if size < 32 or not worlds or min(worlds) < 1:
        raise InputError("--size takes 32 or more, --ranks numbers of at least 1")
    if out is not None:
        check_writable(out, suffixes=(".csv",), role="--out")
    imported = float(subprocess.run([sys.executable, "-c", ASKED], capture_output=True, check=True).stdout)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for role, amount in (("fixed", 0.0), ("moving", 4.0)):
            make_image(folder / f"{role}.nii", size, amount)
        for world in worlds:
            summary = register(folder, world, iterations, threads, margin)
            peak = max(rank["peak_memory_mb"] for rank in summary["ranks"])
            row = {
                **provenance(threads=threads),
                "size": size,
                "ranks": world,
                "iterations": iterations,
                "imported_mb": imported,
                "peak_mb": peak,
                "beyond_mb": peak - imported,
                "share": (peak - imported) / (rows[0]["beyond_mb"] if rows else peak - imported),
                "readings": max(rank["readings_of_moving"] for rank in summary["ranks"]),
                "loss": summary["loss"],
                "difference_mm": difference(folder / "first.nii", folder / "transform.nii"),
                "wall_seconds": summary["wall_seconds"],
                "cpu_seconds": summary["cpu_seconds"],
            }
            rows.append(row)
            write_rows(out, rows)
    show(rows)


def register(folder: Path, world: int, iterations: int, threads: int, margin: float) -> dict[str, Any]:
    """Registers the folder's pair in ``world`` processes; its summary. The first transform stays as first.nii."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [
        *(
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            str(world),
            "--master-port",
            port,
        ),
        *(
            "-m",
            "neuralreg",
            "register",
            "--device",
            "cpu",
            "--threads",
            str(threads),
            "--margin",
            str(margin),
        ),
        *("--fixed", str(folder / "fixed.nii"), "--moving", str(folder / "moving.nii")),
        *("--iterations", str(iterations), "--summary", str(folder / "summary.json")),
        *("--transform-out", str(folder / "transform.nii"), "--warped-out", str(folder / "warped.nii")),
    ]
    cost = run(command, {"OMP_NUM_THREADS": str(threads)})
    if cost.code:
        raise NeuralregError(f"{world} processes ended with code {cost.code}: {cost.output[-1500:]}")
    if not (folder / "first.nii").exists():
        (folder / "transform.nii").rename(folder / "first.nii")
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def make_image(path: Path, size: int, amount: float) -> None:
    """A textured int16 image of ``size`` voxels an axis, its points moved smoothly by up to ``amount`` voxels."""
    line = np.arange(size, dtype=np.float32)
    x, y = np.meshgrid(line, line, indexing="ij")
    turn = np.float32(2 * np.pi / size)
    waves = np.random.default_rng(0).uniform(6, 24, (8, 3)).astype(np.float32)  # periods over the whole axis
    with path.open("wb") as file:
        zeros = np.broadcast_to(np.int16(0), (size, size, size))
        nifti_image(zeros, np.eye(4)).header.write_to(file)
        for z in line:
            moved = (
                x + amount * np.sin(turn * y),
                y + amount * np.sin(turn * z),
                z + amount * np.sin(turn * x),
            )
            plane = sum(
                np.sin(turn * (a * moved[0] + b * moved[1] + c * moved[2]) + k)
                for k, (a, b, c) in enumerate(waves)
            )
            head = ((x / size - 0.5) ** 2 + (y / size - 0.5) ** 2 + (z / size - 0.5) ** 2) < 0.2
            file.write(np.where(head, 500 + 50 * plane, 0).astype(np.int16).tobytes(order="F"))


def difference(first: Path, second: Path) -> float:
    """The largest difference of two displacement fields, millimetres, a plane at a time; 0 where there is one alone."""
    if not second.exists():
        return 0.0
    one: Any = nibabel.load(first)
    two: Any = nibabel.load(second)
    planes = range(one.shape[2])
    largest = max(float(np.abs(one.dataobj[:, :, z] - two.dataobj[:, :, z]).max()) for z in planes)
    second.unlink()
    return largest


def show(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    table = Table(
        title=f"{rows[0]['size']}^3 voxels, {rows[0]['iterations']} iterations", title_justify="left"
    )
    columns = (
        *("ranks", "peak_mb", "beyond_mb", "share", "readings", "loss"),
        *("difference_mm", "wall_seconds", "cpu_seconds"),
    )
    for name in columns:
        table.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{row[name]:.4g}" for name in columns))
    Console(width=150).print(table)


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
