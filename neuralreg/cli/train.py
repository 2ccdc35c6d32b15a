"""`neuralreg train`: many images in, the weights of a method out."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralreg.cli.flags import parse_options, parse_pair
from neuralreg.cli.terminal import Progress, print_table, progress_bar
from neuralreg.errors import InputError

if TYPE_CHECKING:
    from neuralreg.training.data import Pairs
    from neuralreg.training.loop import Trained

_DATA, _RUN, _OUTPUT = "Data", "Training", "Output"


def command(
    method: Annotated[str, typer.Argument(help="nephi or ofg.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Subjects: .npz, a folder of *_img.nii.gz, a .csv of pairs, or Learn2Reg's .json.",
            rich_help_panel=_DATA,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run, which is made.", rich_help_panel=_OUTPUT)],
    layout: Annotated[
        str,
        typer.Option(
            help="auto, npz, folder, csv, learn2reg, ixi, oasis, lpba40, abdomenctct.", rich_help_panel=_DATA
        ),
    ] = "auto",
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI", help="Intensity window, such as -1000,400 for lung CT.", rich_help_panel=_DATA
        ),
    ] = None,
    atlas: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help="Move this image, or the subject of this name, onto every subject.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    atlas_labels: Annotated[
        Path | None, typer.Option(help="Label map of the atlas file.", rich_help_panel=_DATA)
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(
            metavar="N|PATH",
            help="Hold out the last N subjects by name (default a fifth, at least 2; 0 none), or read other data.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    validation_pairs: Annotated[
        int, typer.Option(help="Pairs to validate on, at most.", rich_help_panel=_DATA)
    ] = 20,
    test: Annotated[
        int, typer.Option(help="Leave the last N subjects out of everything.", rich_help_panel=_DATA)
    ] = 0,
    augment: Annotated[
        bool,
        typer.Option(
            "--augment", help="Random flips, swaps of axes and small affine maps.", rich_help_panel=_DATA
        ),
    ] = False,
    keep_memory: Annotated[
        float,
        typer.Option(metavar="MB", help="Memory for subjects that were read.", rich_help_panel=_DATA),
    ] = 4000,
    preset: Annotated[
        str,
        typer.Option(help="Settings of the method by name; an unknown one lists them.", rich_help_panel=_RUN),
    ] = "fast",
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Any other setting of the method; repeat.", rich_help_panel=_RUN
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps in all.", rich_help_panel=_RUN)] = None,
    time_budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Wall time of the training.", rich_help_panel=_RUN),
    ] = None,
    cpu_budget: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="CPU time of the training.", rich_help_panel=_RUN),
    ] = None,
    batch: Annotated[int, typer.Option(help="Pairs a step, over all processes.", rich_help_panel=_RUN)] = 1,
    validate_every: Annotated[
        str | None,
        typer.Option(
            metavar="N|Ns",
            help="Steps, or seconds as in 60s; 20 times in all by default.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    checkpoint_every: Annotated[
        str, typer.Option(metavar="N|Ns", help="Steps, or seconds as in 60s.", rich_help_panel=_RUN)
    ] = "300s",
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, same settings.", rich_help_panel=_RUN),
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", rich_help_panel=_RUN)] = 0,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same result in every run on a GPU, too.", rich_help_panel=_RUN
        ),
    ] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=_RUN)] = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all cores by default.", rich_help_panel=_RUN)
    ] = None,
    tensorboard: Annotated[
        bool,
        typer.Option("--tensorboard", help="Log for TensorBoard, too.", rich_help_panel=_OUTPUT),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but errors.", rich_help_panel=_OUTPUT)
    ] = False,
) -> None:
    """Train a method that learns from many pairs. Start with torchrun to train on several devices."""
    options, limits = parse_options(option or [], own=()), parse_pair("--window", window)

    import os

    from neuralreg.device import pick_device
    from neuralreg.options import resolve
    from neuralreg.precision import check_precision
    from neuralreg.registration import environment
    from neuralreg.training.augment import Augmentation
    from neuralreg.training.budget import Every
    from neuralreg.training.layouts import read_collection
    from neuralreg.training.loop import train
    from neuralreg.training.split import split, with_atlas
    from neuralreg.training.trainee import method_module

    rhythms = (
        Every.parse("--validate-every", validate_every),
        Every.parse("--checkpoint-every", checkpoint_every),
    )
    module = method_module(method)
    chosen = resolve(module.PRESETS, preset, options, method)
    target = pick_device(device)
    check_precision(chosen, target)

    def read(path: Path) -> Any:
        collection = read_collection(
            path, layout if path == data or path.is_dir() else "auto", limits, keep_memory
        )
        return (
            collection if atlas is None else with_atlas(collection, atlas, atlas_labels, limits, keep_memory)
        )

    if atlas_labels is not None and atlas is None:
        raise InputError("--atlas-labels: give --atlas, too")
    other = validation is not None and not validation.isdecimal()
    held = None if validation is None else read(Path(validation)) if other else int(validation)
    pairs, checked = split(read(data), held, test, validation_pairs)
    shape = pairs.subjects.shape
    trainee = module.make_trainee(chosen, shape, len(shape), seed)
    first = int(os.environ.get("RANK", "0")) == 0
    config = {
        "method": method,
        "preset": preset,
        "options": vars(chosen),
        "shape": list(shape),
        "parameters": sum(p.numel() for p in trainee.module.parameters()),
        "data": str(data),
        "window": None if limits is None else list(limits),
        "training": {
            "pairs": len(pairs),
            "subjects": [pairs.subjects.names[place] for place in pairs.members],
        },
        "validation": [] if checked is None else [list(names) for names in checked.names()],
        "environment": environment(target),
    }
    with progress_bar(quiet or not first) as progress:
        for some in filter(None, (pairs, checked)):
            watch = None if progress is None else partial(_reading, progress)
            some.subjects.read_ahead(some.members, watch)
        trained = train(
            trainee,
            pairs,
            checked,
            out,
            steps=steps,
            batch=batch,
            time_budget=time_budget,
            cpu_budget=cpu_budget,
            seed=seed,
            validate_every=rhythms[0],
            checkpoint_every=rhythms[1],
            augment=Augmentation() if augment else None,
            resume=resume,
            tensorboard=tensorboard,
            deterministic=deterministic,
            device=target,
            threads=threads,
            progress=progress,
            tell=None if quiet or not first else typer.echo,
            config=config,
        )
    if first and not quiet:
        print_table("training", rows(trained, pairs, checked))


def _reading(progress: Progress, done: int, total: int) -> None:
    progress(done, total, float("nan"), "reading")


def rows(trained: Trained, pairs: Pairs, validation: Pairs | None) -> list[tuple[str, ...]]:
    """What became of the training, for people."""
    table = [
        ("trained on", f"{len(pairs.members)} subjects, {len(pairs)} pairs"),
        ("steps", f"{trained.step} in {trained.seconds:.1f} s, {trained.cpu_seconds:.1f} CPU s"),
    ]
    if validation is not None and trained.best is not None:
        table.append(("best", f"{trained.best.words()} at step {trained.best_step}, {len(validation)} pairs"))
    return [*table, ("weights", str(trained.out / "best.pt"))]
