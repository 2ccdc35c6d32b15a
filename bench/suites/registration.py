"""Suite ``registration``: trajectories of Dice or TRE over CPU seconds on a real pair, and the demo's known map.

A trajectory is a series of whole runs of one tool, each with more iterations than the last and a process of its own:
what a user waits for and gets. Seconds and memory are those of the process, from its imports to the transform that it
writes; scoring costs nothing. Tools that are not here are listed as absent.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from neuralreg.bench import peers, registration
from neuralreg.bench.pairs import RealPair, data_folder, find_names, load_pair
from neuralreg.bench.process import run
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings
from neuralreg.bench.tools import Settings as ToolSettings
from neuralreg.bench.tools import Tool
from neuralreg.errors import InputError

HONOURS = frozenset({"quick", "pair", "peers", "filter", "threads"})
PAIR, QUICK_PAIR = "brain1mm/vxm-tut1", "hippocampus/16-27"
IDENTITY = Tool("identity", "")


def _iterations(*counts: int) -> list[dict[str, str]]:
    return [{"iterations": str(count)} for count in counts]


# By kind and setting: options of every run of a trajectory, cheapest first. Peers bring their own, see bench/peers
OURS: dict[tuple[str, str], list[dict[str, str]]] = {
    ("nir", "fast"): _iterations(20, 40, 80, 140, 280, 560),
    ("nir", "fast-diffeomorphic"): _iterations(40, 80, 140, 240, 480),
    ("nir", "paper-displacement"): _iterations(100, 300, 1000, 3000),
    ("ncf", "fast"): _iterations(20, 60, 150),
}
BASELINES: dict[tuple[str, str], list[dict[str, str]]] = {
    ("plain-nir", "paper-displacement"): _iterations(100, 300, 1000, 3000),
    ("idir", "bending"): _iterations(100, 500, 2500),
    **{
        ("greedy", radius): [
            {"n": n} for n in ("20x0x0", "100x0x0", "100x50x0", "100x100x0", "100x100x10", "100x100x40")
        ]
        for radius in ("2x2x2", "4x4x4")
    },
}
QUICK = {
    "nir": _iterations(80, 280),  # these last seconds; the others are there to be seen running
    "ncf": _iterations(60),
    "plain-nir": _iterations(20),
    "idir": _iterations(2),
}


def plan(settings: Settings) -> Plan:
    """An item a pair and tool, the start first; the demo where its template is at hand."""
    found = Plan()
    threads = settings.threads or torch.get_num_threads()
    if settings.wants("demo"):
        if importlib.util.find_spec("nilearn") is None:
            found.left_out.append(("demo", "nilearn is not installed: pip install 'neuralreg[demo]'"))
        else:
            found.items.append(
                Item("demo", "MNI152 against a known map", partial(demo_rows, settings.quick, threads))
            )
    if settings.pair is None:
        try:
            data_folder()
        except InputError as error:
            found.left_out.append(("real pairs", str(error)))
            return found
    names = find_names(settings.pair or (QUICK_PAIR if settings.quick else PAIR))
    chosen = []
    for (kind, setting), ladder in trajectories(settings).items():
        tool = Tool(kind, setting)
        if not settings.wants(str(tool)) or not (tool.ours or settings.wants_peer(str(tool))):
            continue
        if reason := tool.missing():
            found.left_out.append((str(tool), f"absent: {reason}"))
            continue
        chosen.append((tool, ladder))
    for name in names:
        found.items.append(Item(f"{name}, start", "before any registration", partial(start_rows, name)))
        for tool, ladder in chosen:
            runs = "; ".join(",".join(f"{k}={v}" for k, v in step.items()) for step in ladder)
            words = f"{tool.version} {runs}".strip()
            found.items.append(Item(f"{name}, {tool}", words, partial(rows_of, name, tool, ladder, threads)))
    return found


def trajectories(settings: Settings) -> dict[tuple[str, str], list[dict[str, str]]]:
    """Options of every run by tool; --quick takes two or fewer, and the default settings alone."""
    theirs = {
        (name, setting): peers.adapter(name).LADDER[setting]
        for name in peers.NAMES
        for setting in peers.adapter(name).SETTINGS
    }
    if not settings.quick:
        return {**OURS, **BASELINES, **theirs}
    wanted = [("nir", "fast"), ("ncf", "fast"), ("plain-nir", "paper-displacement"), ("idir", "bending")]
    small = {key: QUICK[key[0]] for key in wanted}
    first = {(name, next(iter(peers.adapter(name).SETTINGS))) for name in peers.NAMES}
    both = {key: ladder[:1] for key, ladder in theirs.items() if key in first}
    return {**small, ("greedy", "2x2x2"): [{"n": "100x100x0"}], **both}


def start_rows(name: str) -> Iterator[Row]:
    yield row_of(load_pair(name), IDENTITY, IDENTITY, 1)


def rows_of(name: str, series: Tool, ladder: list[dict[str, str]], threads: int) -> Iterator[Row]:
    """A row a run."""
    pair = load_pair(name)
    for options in ladder:
        yield row_of(pair, series, Tool(series.kind, series.setting, options), threads)


def row_of(pair: RealPair, series: Tool, tool: Tool, threads: int) -> Row:
    """One run as a row of the suite."""
    found = registration.one_row(pair, tool, ToolSettings(threads=threads))
    figures = {name: found[name] for name in (*registration.SCORES, *registration.COSTS) if found[name] != ""}
    words = {"series": str(series), "tool_version": series.version}
    failed = {"failed": found["error"]} if found["error"] else {}
    return {"case": pair.name, "contender": str(tool), **words, **figures, **failed}


def demo_rows(quick: bool, threads: int) -> Iterator[Row]:
    """``neuralreg demo`` as a whole command, and what its summary says."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            sys.executable,
            "-m",
            "neuralreg",
            "demo",
            "--out",
            folder,
            "--threads",
            str(threads),
            "--device",
            "cpu",
        ]
        cost = run(words + ["--quick"] * quick, {"OMP_NUM_THREADS": str(threads)})
        row: Row = {"case": "demo, quick" if quick else "demo", "contender": "nir:fast", "series": "nir:fast"}
        row |= {"wall_s": cost.wall_seconds, "cpu_s": cost.cpu_seconds, "peak_mb": cost.peak_mb}
        if cost.code:
            yield {**row, "failed": (cost.output.strip().splitlines() or ["no output"])[-1]}
            return
        summary = json.loads((Path(folder) / "summary.json").read_text())
    demo = summary["demo"]
    yield {
        **row,
        "area_mb_s": cost.area_mb_s,
        "tre_before_mm": demo["tre_before_mm"]["mean"],
        "tre_mean_mm": demo["tre_after_mm"]["mean"],
        "folds_percent": summary["folds_percent"],
    }
