"""Suite ``training``: Dice on pairs that the training has not seen, over its CPU seconds, for the methods that learn.

Every training gets the same CPU time. Its weights are kept on the way and scored when it has ended. Triangles and
circles are always at hand; the hippocampi where the real data are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neuralreg.bench.nephi_runs import all_pairs, predicted, score
from neuralreg.bench.ofg_runs import hippocampi, keep_shares
from neuralreg.bench.pairs import data_folder
from neuralreg.bench.shapes import shapes
from neuralreg.bench.suites.plan import Item, Plan, Row, Settings
from neuralreg.errors import InputError
from neuralreg.methods import nephi, ofg
from neuralreg.options import resolve
from neuralreg.training.data import Pairs
from neuralreg.training.loop import train
from neuralreg.training.trainee import load_trainee, save_trainee

HONOURS = frozenset({"quick", "filter", "threads", "seconds"})
METHODS: dict[str, Any] = {"nephi": nephi, "ofg": ofg}
LOOKS = (0.25, 0.5, 0.75, 1.0)  # shares of the time after which weights are kept
CASES: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "shapes": [("nephi", "shapes", {}), ("ofg", "fast", {}), ("ofg", "fast", {"mode": "unsupervised"})],
    "hippocampus": [("nephi", "fast", {}), ("ofg", "fast", {}), ("ofg", "fast", {"mode": "unsupervised"})],
}
SCORED = 12  # pairs a look


def plan(settings: Settings) -> Plan:
    """An item a data set and training."""
    found = Plan()
    seconds = settings.seconds or (8.0 if settings.quick else 300.0)
    threads = settings.threads or torch.get_num_threads()
    for case, trainings in CASES.items():
        if settings.quick and case != "shapes":
            found.left_out.append((case, "--quick trains on shapes alone"))
            continue
        if case == "hippocampus":
            try:
                data_folder()
            except InputError as error:
                found.left_out.append((case, str(error)))
                continue
        for method, preset, own in trainings:
            name = f"{case}, {contender(method, preset, own)}"
            if settings.wants(name):
                what = f"{seconds:g} CPU seconds, {SCORED} pairs scored at {len(LOOKS)} times"
                run = partial(rows_of, case, method, preset, own, seconds, threads, settings.quick)
                found.items.append(Item(name, what, run))
    return found


def contender(method: str, preset: str, own: dict[str, Any]) -> str:
    """As tools are written: ofg:fast[mode=unsupervised]."""
    return f"{method}:{preset}" + (f"[{';'.join(f'{k}={v}' for k, v in own.items())}]" if own else "")


def pairs_of(case: str, quick: bool) -> tuple[Pairs, Pairs]:
    """What is trained on, and what is scored."""
    if case == "shapes":
        size = 32 if quick else 64
        unseen = shapes(8, size, seed=1)
        return Pairs(shapes(40, size)), all_pairs(unseen, list(range(len(unseen))))
    split = hippocampi()
    return split.training, split.test


def rows_of(
    case: str, method: str, preset: str, own: dict[str, Any], seconds: float, threads: int, quick: bool
) -> Iterator[Row]:
    """One training, a row a look."""
    pairs, held = pairs_of(case, quick)
    shape = pairs.subjects.shape
    options = resolve(METHODS[method].PRESETS, preset, own, method)
    trainee = METHODS[method].make_trainee(options, shape, len(shape), 0)
    with tempfile.TemporaryDirectory() as folder:
        files = {share: Path(folder) / f"share-{share:g}.pt" for share in LOOKS}
        state = train(
            trainee,
            pairs,
            None,
            Path(folder) / "run",
            cpu_budget=seconds,
            seed=0,
            threads=threads,
            progress=keep_shares(trainee, files),
            config={"options": asdict(options)},
        )
        save_trainee(trainee, files[1.0])
        for share, file in files.items():
            if not file.exists():  # a step longer than a quarter of the time has passed over this look
                continue
            yield {
                "case": case,
                "part": f"{share:.0%} of the time",  # what tells the looks apart: see KEY in rows.py
                "contender": contender(method, preset, own),
                "cpu_s": share * state.cpu_seconds,
                "steps": round(share * state.step),
                **score(held, predicted(load_trainee(file)), SCORED),
            }
