"""`neuralreg demo`: register real anatomy against a known truth, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from neuralreg.cli.terminal import print_table, progress_bar


def command(
    out: Annotated[Path, typer.Option(help="Folder for the images, the transform and the picture.")] = Path(
        "neuralreg-demo"
    ),
    quick: Annotated[
        bool, typer.Option("--quick", help="4 mm and few iterations, for machines without native kernels.")
    ] = False,
    resolution: Annotated[
        int | None, typer.Option(min=1, max=8, help="Millimetres; 2 by default.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the deformation and of the registration.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads; all cores by default.")] = None,
) -> None:
    """Deform the MNI152 template by a known map, register it, and print how well the map was found."""
    from neuralreg.demo import run

    with progress_bar() as progress:
        summary, files = run(
            out,
            resolution=resolution,
            quick=quick,
            seed=seed,
            device=device,
            threads=threads,
            progress=progress,
        )
    demo = summary["demo"]
    before, after = demo["tre_before_mm"], demo["tre_after_mm"]
    rows = [
        ("TRE, mean (mm)", f"{before['mean']:.2f}", f"{after['mean']:.2f}"),
        ("TRE, 95 % (mm)", f"{before['p95']:.2f}", f"{after['p95']:.2f}"),
    ]
    rows += [
        (f"Dice, {name}", f"{value:.3f}", f"{demo['dice_after'][name]:.3f}")
        for name, value in demo["dice_before"].items()
    ]
    moved = f"{demo['max_displacement_mm']:.1f} mm"
    title = f"MNI152 template at {demo['resolution_mm']} mm, deformed by at most {moved}"
    print_table(title, rows, ("", "before", "after"))
    serving: dict[str, list[str]] = {}
    for op, name in summary["backend"].items():
        serving.setdefault(name, []).append(op)
    print_table(
        "",
        [
            ("folds", f"{summary['folds_percent']:.4f} % of voxels"),
            ("inverse consistency", f"{summary['inverse_consistency_mm']:.3f} mm"),
            ("time", f"{summary['wall_seconds']:.1f} s, {summary['cpu_seconds']:.1f} CPU s"),
            ("backend", ", ".join(f"{name} ({', '.join(ops)})" for name, ops in serving.items())),
            ("written", f"{', '.join(path.name for path in files)} in {out}"),
        ],
    )
