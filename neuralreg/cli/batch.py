"""`neuralreg batch`: many pairs into one folder, resumed by the same command after any end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralreg.cli.flags import INPUTS, RUN, RegisterFlags, with_register_flags
from neuralreg.cli.terminal import command_line, print_table, progress_bar
from neuralreg.errors import InputError

if TYPE_CHECKING:
    from neuralreg.batch import Evaluate, Register, Tally, Writer
    from neuralreg.fit import Progress
    from neuralreg.pair_list import PairFiles
    from neuralreg.registration import Registration

KEEP = ("transform", "inverse", "warped", "field", "figure")
_OUTPUTS = "Results"
# Flags that say where and by how many the work is done; a folder may be begun with some and ended with others.
_NO_SETTINGS = ("device", "threads")


@with_register_flags
def command(
    *,
    context: typer.Context,
    pairs: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            help="A .csv with columns fixed,moving[,name,fixed_label,moving_label,fixed_mask,moving_mask,"
            "initial_transform,landmarks], a folder of NAME_img.nii.gz, or the .json of a Learn2Reg data set.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the results; made where it is missing.", rich_help_panel=_OUTPUTS)
    ],
    choice: Annotated[
        str | None,
        typer.Option(
            "--pairs",
            metavar="WHICH",
            help="Of a folder: ring (default) or all; of a json: the key of the list, registration_val by default.",
            rich_help_panel=INPUTS,
        ),
    ] = None,
    landmarks_space: Annotated[
        str | None,
        typer.Option(
            metavar="RAS|LPS", help="Space of landmarks whose columns do not say.", rich_help_panel=INPUTS
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="2,3,4", help="The labels that count; all but 0 by default.", rich_help_panel=INPUTS
        ),
    ] = None,
    surface: Annotated[
        bool,
        typer.Option(
            "--surface",
            help="HD95 and ASSD in mm of pairs with label maps, too (needs surface-distance).",
            rich_help_panel=_OUTPUTS,
        ),
    ] = False,
    how: RegisterFlags,
    keep: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help=f"Files of a pair beside summary.json: any of {', '.join(KEEP)}.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = "transform,warped",
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="A page a pair (report.html) and one over all (summary.html); needs jinja2 and matplotlib.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Only every N-th pair from the I-th on (I from 1), or slurm: the share of this task of the array.",
            rich_help_panel=RUN,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=RUN)
    ] = False,
) -> None:
    """Register many pairs; the same command goes on where another one ended, or was killed."""
    from neuralreg.cli.evaluate import parse_labels
    from neuralreg.shards import read_shard

    arguments = how.arguments()
    kept = parse_keep(keep)
    wanted = None if labels is None else parse_labels(labels)
    part = read_shard(shard)
    if report:
        from neuralreg.report import require_report

        require_report()
    if surface:
        from neuralreg.surface import require_surface_distance

        require_surface_distance()
    out = make_folder(out)

    from datetime import timedelta

    import torch

    from neuralreg.batch import Batch, collect, write_page, write_table
    from neuralreg.distributed import ranks
    from neuralreg.pair_list import read_pairs
    from neuralreg.shards import rank_device, share

    listed = read_pairs(pairs, choice)
    if surface and not any(pair.fixed_label and pair.moving_label for pair in listed):
        raise InputError(f"--surface measures label maps, and no pair of {pairs} has two; leave it out")
    settings = {
        **{name: value for name, value in arguments.items() if name not in _NO_SETTINGS},
        **resolved_options(how),
        "weights": file_digest(how.weights),
        "keep": [*kept, "report"] if report else kept,
        "labels": wanted,
        "surface": surface or None,  # as in folders that were begun before there was the flag
        "landmarks_space": landmarks_space,
    }
    with ranks(torch.device("cpu"), timedelta(days=365)) as crew, progress_bar(quiet) as progress:
        local = int(os.environ.get("LOCAL_RANK", "0"))
        arguments["device"] = rank_device(how.device, local, crew.world, torch.cuda.device_count())
        mine = share(listed, part, (crew.rank, crew.world))
        teller = Teller(mine, progress, quiet)
        batch = Batch(
            out,
            registering(arguments, teller),
            evaluating(wanted, landmarks_space, surface),
            kept_writers(kept, command_line(context) if report else None),
        )
        tally = batch.run(mine, settings, teller.tell)
        failed = crew.sums([len(tally.failed)])[
            0
        ]  # also waits: torchrun would end the others with a failing rank
        if crew.first:
            lines = collect(out, listed)
            table = write_table(out, lines)
            if report:
                write_page(out, lines, command_line(context))
    if crew.first and not quiet:
        show(lines, tally, table)
    if failed:
        raise typer.Exit(1)


def parse_keep(text: str) -> list[str]:
    """The names of a comma list of `KEEP`; InputError for others."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in KEEP:
            raise InputError(f"--keep: there is no '{name}'; use any of {', '.join(KEEP)}")
    if "figure" in names:
        from neuralreg.figure import require_matplotlib

        require_matplotlib()
    return sorted(set(names))


def kept_writers(kept: Sequence[str], command: str | None) -> Mapping[str, Writer]:
    """The writers of the files of a pair's folder, by file name; with a page where there is a command to name on it."""
    from functools import partial

    from neuralreg import outputs
    from neuralreg.batch import REPORT

    table = {
        "transform": ("transform.nii.gz", outputs.write_transform),
        "inverse": ("inverse.nii.gz", outputs.write_inverse),
        "warped": ("warped.nii.gz", outputs.write_warped),
        "field": ("field.pt", outputs.write_field),
        "figure": ("figure.png", outputs.write_figure),
    }
    page = {} if command is None else {REPORT: partial(outputs.write_report, command=command)}
    return dict(table[name] for name in kept) | page


def make_folder(path: Path) -> Path:
    """The folder, made with those above it; InputError where that cannot be."""
    if path.exists() and not path.is_dir():
        raise InputError(f"--out: {path} is a file; give a folder")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: the folder {path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"--out: the folder {path} cannot be written; choose another one")
    return path


def resolved_options(how: RegisterFlags) -> dict[str, Any]:
    """All options of the method; InputError here, before the first pair, for what would fail with each of them."""
    from dataclasses import asdict

    from neuralreg.precision import check_precision
    from neuralreg.registration import choose, method_module, pick_device

    flags = {"iterations": how.iterations, "precision": how.precision}
    given = how.options() | {name: value for name, value in flags.items() if value is not None}
    module = method_module(how.method)
    chosen, _ = choose(module, how.method, how.preset, how.weights, how.refine, given, how.time_budget)
    check_precision(chosen, pick_device(how.device))
    return asdict(chosen)


def file_digest(path: Path | None) -> str | None:
    """What a file holds, in a few letters; None without one."""
    import hashlib

    if path is None:
        return None
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise InputError(f"--weights: {path} cannot be read: {error.strerror}") from None


def registering(arguments: dict[str, Any], teller: Teller) -> Register:
    """The function that registers a pair of files."""
    import neuralreg

    def register(pair: PairFiles) -> Registration:
        return neuralreg.register(
            pair.fixed,
            pair.moving,
            fixed_mask=pair.fixed_mask,
            moving_mask=pair.moving_mask,
            initial_transform=pair.initial_transform,
            progress=teller.progress,
            **arguments,
        )

    return register


def evaluating(labels: list[int] | None, space: str | None, surface: bool) -> Evaluate:
    """The function that holds a registration against the labels and landmarks of its pair."""
    from neuralreg.evaluation import distances, overlap

    def evaluate(pair: PairFiles, registration: Registration) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if pair.fixed_label and pair.moving_label:
            maps = pair.fixed_label, pair.moving_label
            found |= overlap(*maps, None, registration.transform, labels, surface)
        if pair.landmarks:
            found |= distances(pair.landmarks, space, registration.transform)
        return found

    return evaluate


class Teller:
    """Tells how a run goes: a bar on a terminal, a line a pair elsewhere."""

    def __init__(self, pairs: Sequence[PairFiles], bar: Progress | None, quiet: bool) -> None:
        self.pairs, self.bar, self.quiet, self.place = pairs, bar, quiet, 0

    @property
    def progress(self) -> Progress | None:
        """What a registration calls as it goes."""
        if self.bar is None:
            return None
        bar, where = self.bar, f"{self.place + 1}/{len(self.pairs)} {self.pairs[self.place].name}"
        return lambda iteration, total, loss, stage: bar(iteration, total, loss, f"{where} {stage}")

    def tell(self, place: int, became: str, line: dict[str, Any]) -> None:
        """One pair is over."""
        self.place = place + 1
        if self.bar is None and not self.quiet:
            words = {"before": "was done", "elsewhere": "is another process's"}.get(became, became)
            told = f": {line['error']}" if became == "failed" else ""
            print(f"[{place + 1}/{len(self.pairs)}] {self.pairs[place].name} {words}{told}", flush=True)


def show(lines: list[dict[str, Any]], tally: Tally, table: Path) -> None:
    """What the run did, the figures of all pairs, and what failed."""
    from neuralreg.batch import statistics

    parts = [
        f"{len(names)} {word}"
        for word, names in (
            ("registered", tally.done),
            ("done before", tally.before),
            ("in work elsewhere", tally.elsewhere),
            ("failed", tally.failed),
        )
        if names
    ]
    rows = [
        (name, *(f"{values[key]:.4g}" for key in ("mean", "sd", "min", "max")), str(values["count"]))
        for name, values in statistics(lines).items()
    ]
    title = f"{', '.join(parts)}; every pair in {table}"
    if rows:
        print_table(title, rows, ("", "mean", "sd", "min", "max", "pairs"))
    else:
        print(title)
    failed = [(line["pair"], line["error"]) for line in lines if line["status"] == "failed"]
    if failed:
        print_table("failed", failed)
