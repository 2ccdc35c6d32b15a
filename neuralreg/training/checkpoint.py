"""The folder of a run: its weights, its settings, and all that an exact resume needs."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from neuralreg.errors import InputError
from neuralreg.outputs import json_text
from neuralreg.training.trainee import Trainee, load_plain, save_trainee, to_cpu
from neuralreg.training.validate import Score
from neuralreg.writing import atomic_path

BEST, LAST, CHECKPOINT, CONFIG = "best.pt", "last.pt", "checkpoint.pt", "config.json"
FORMAT = 1
# What may differ between a run and its resume: how long it lasts, where it runs, and where the files lie.
FREE = ("limits", "environment", "data")


@dataclass
class State:
    """How far a training is. Random numbers depend on the seed and the step alone, so no state of theirs is kept."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: Score | None = None
    best_step: int | None = None
    scored_step: int | None = None


def open_run(out: Path, config: dict[str, Any], resume: bool) -> None:
    """Checks the folder against what is to happen in it; writes nothing.

    Raises:
        InputError: a folder that holds a run and no resume; a resume without a run, or of a run with other settings.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; give a folder")
    parent = out if out.is_dir() else out.parent
    if not parent.is_dir():
        raise InputError(f"--out {out}: the folder {parent} does not exist; make it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"--out {out}: the folder {parent} cannot be written; choose another one")
    held = [name for name in (CONFIG, CHECKPOINT, BEST, LAST) if (out / name).exists()]
    if not resume:
        if held:
            raise InputError(
                f"--out {out} already holds a run ({held[0]}); add --resume, or choose another folder"
            )
        return
    if not (out / CONFIG).exists():
        raise InputError(
            f"--resume: {out} holds no run ({CONFIG} is missing); leave --resume out to start one"
        )
    try:
        before = json.loads((out / CONFIG).read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"--resume: {out / CONFIG} is damaged; start anew in another folder") from None
    now = json.loads(json_text(config))
    for name in sorted((before.keys() | now.keys()) - set(FREE)):
        if before.get(name) != now.get(name):
            raise InputError(
                f"--resume: {difference(name, before.get(name), now.get(name))}; give the run's own settings"
            )


def difference(name: str, before: Any, now: Any) -> str:
    """The first setting in which a run and its resume differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                return difference(f"{name} {key}", before.get(key), now.get(key))
    short = [text if len(text) < 60 else text[:57] + "..." for text in (str(before), str(now))]
    return f"the run in this folder has {name} {short[0]}, this command {short[1]}"


def write_config(out: Path, config: dict[str, Any]) -> None:
    with atomic_path(out / CONFIG) as temporary:
        temporary.write_text(json_text(config), encoding="utf-8")


def save_checkpoint(out: Path, trainee: Trainee, optimiser: torch.optim.Optimizer, state: State) -> None:
    """Writes ``last.pt``, then ``checkpoint.pt``, each whole or not at all."""
    save_trainee(trainee, out / LAST)
    content = {
        "format": FORMAT,
        "module": trainee.module.state_dict(),
        "optimiser": optimiser.state_dict(),
        "state": {**vars(state), "best": None if state.best is None else asdict(state.best)},
    }
    with atomic_path(out / CHECKPOINT) as temporary:
        torch.save(to_cpu(content), temporary)


def load_checkpoint(out: Path, trainee: Trainee, optimiser: torch.optim.Optimizer) -> State:
    """Puts the checkpoint into the trainee and its optimiser; a run without one begins at step 0.

    Raises:
        InputError: a damaged checkpoint, or one of another trainee.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return State()
    content = load_plain(path, "checkpoint")
    try:
        if content["format"] != FORMAT:
            raise InputError(
                f"checkpoint {path} is of format {content['format']}, this version reads {FORMAT}"
            )
        trainee.module.load_state_dict(content["module"])
        optimiser.load_state_dict(content["optimiser"])
        state = State(**content["state"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"checkpoint {path} does not fit this trainee; start anew in another folder"
        ) from None
    if content["state"]["best"] is not None:
        state.best = Score(**content["state"]["best"])
    return state


def remove_leftovers(out: Path) -> None:
    """Removes the temporary files of a process that was killed while it wrote."""
    for path in out.glob(".*.tmp*"):
        path.unlink(missing_ok=True)
