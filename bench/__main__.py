"""``python -m neuralreg.bench``: measures the kernels here and prints what they reach beside other formulations."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from neuralreg.bench import kernels as suite
from neuralreg.bench.harness import Case, Measurement, bandwidth, measure, product_rate
from neuralreg.bench.rows import PROVENANCE, provenance, write_rows
from neuralreg.machine import cpu_name

COLUMNS = (
    *(*PROVENANCE, "op", "work", "contender", "error", "in_tolerance"),
    *("median_ms", "p20_ms", "p80_ms", "cpu_ms", "extra_mb", "floor_ms", "rounds"),
)


def main(
    quick: Annotated[bool, typer.Option(help="Small volumes, few rounds.")] = False,
    only: Annotated[str, typer.Option("--filter", help="Only ops, or works, whose name contains this.")] = "",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0, ...")] = "cpu",
    seconds: Annotated[
        float, typer.Option(help="Time for the rounds of one case; three are made at least.")
    ] = 60,
    out: Annotated[Path | None, typer.Option(help="Write one row a measurement to this .csv file.")] = None,
) -> None:
    """Measure every kernel: error against float64, time, memory beyond inputs, and the floor of bytes or products."""
    target = torch.device(device)
    name = torch.cuda.get_device_name(target) if target.type == "cuda" else cpu_name()
    speed, rate = bandwidth(target), product_rate(target)
    console = Console(width=150)
    console.print(
        f"{name}, {torch.get_num_threads()} threads, copies at {speed / 1e9:.1f} GB/s, "
        f"products at {rate / 1e9:.0f} GFLOP/s"
    )
    rows = []
    modules = sorted(module.name for module in pkgutil.iter_modules(suite.__path__))
    for module in [name for name in modules if only in name] or modules:
        for case in importlib.import_module(f"{suite.__name__}.{module}").cases(target, quick):
            if only not in module and only not in case.work:
                continue
            found = measure(
                case, target, rounds=5 if quick else 15, budget=min(seconds, 5 if quick else seconds)
            )
            floor = max(case.floor_bytes / speed, case.flops / rate)
            show(console, case, found, floor)
            rows += [row(case, one, floor, name) for one in found]
    if not rows:
        raise typer.BadParameter(f"no op's or work's name contains {only!r}", param_hint="--filter")
    write_rows(out, rows, COLUMNS)


def show(console: Console, case: Case, found: list[Measurement], floor: float) -> None:
    """One table a case; ratios are to the first contender."""
    table = Table(title=f"{case.op}, {case.work}; floor {floor * 1e3:.2f} ms", title_justify="left")
    for head in ("contender", "error", "median ms", "p20", "p80", "CPU ms", "MB extra", "x floor", "x ours"):
        table.add_column(head, justify="left" if head == "contender" else "right")
    for one in found:
        ranked = one.error <= case.tolerance
        table.add_row(
            one.contender,
            f"{one.error:.1e}" + ("" if ranked else " out of tolerance"),
            *(f"{value * 1e3:.2f}" for value in (one.median, one.quantile(0.2), one.quantile(0.8))),
            f"{sorted(one.cpu)[len(one.cpu) // 2] * 1e3:.1f}",
            f"{one.extra_bytes / 1e6:.0f}",
            f"{one.median / floor:.1f}",
            f"{one.median / found[0].median:.2f}" if ranked else "-",
        )
    console.print(table)


def row(case: Case, one: Measurement, floor: float, hardware: str) -> dict[str, object]:
    """A line of the csv file."""
    return {
        **provenance(hardware),
        "op": case.op,
        "work": case.work,
        "contender": one.contender,
        "error": f"{one.error:.3g}",
        "in_tolerance": one.error <= case.tolerance,
        "median_ms": f"{one.median * 1e3:.4g}",
        "p20_ms": f"{one.quantile(0.2) * 1e3:.4g}",
        "p80_ms": f"{one.quantile(0.8) * 1e3:.4g}",
        "cpu_ms": f"{sorted(one.cpu)[len(one.cpu) // 2] * 1e3:.4g}",
        "extra_mb": f"{one.extra_bytes / 1e6:.4g}",
        "floor_ms": f"{floor * 1e3:.4g}",
        "rounds": len(one.wall),
    }


if __name__ == "__main__":
    typer.run(main)
