"""Other registration tools, an adapter file each, run by a Python of the user's: NEURALREG_PEERS, or this one.

An adapter imports nothing at its top and offers ``PACKAGE`` (whose version is told), ``MODULE`` (what has to be
there), ``SETTINGS`` (options by name, the first one the default), ``LADDER`` (a trajectory's options, cheapest first)
and ``register(fixed, moving, out, threads, **options)``, which reads two NIfTI files on one grid and leaves an ITK
displacement field, LPS millimetres, in a third. ``run.py`` is the script around it; no adapter sees neuralreg.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from neuralreg.errors import InputError

FOLDER = Path(__file__).parent
SCRIPT = str(FOLDER / "run.py")
NAMES = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem not in ("__init__", "run"))


def python() -> str:
    """The Python that the peers are installed in.

    Raises:
        InputError: NEURALREG_PEERS names no executable.
    """
    named = os.environ.get("NEURALREG_PEERS")
    if named and shutil.which(named) is None:
        raise InputError(f"NEURALREG_PEERS: there is no executable {named!r}")
    return named or sys.executable


@functools.cache
def adapter(name: str) -> SimpleNamespace:
    """What the file of an adapter holds, for its constants."""
    return SimpleNamespace(**runpy.run_path(str(FOLDER / f"{name}.py")))


@functools.cache
def version(name: str, executable: str) -> str | None:
    """The version of a peer's package in a Python; None where it cannot run there. ``name`` may be a module's."""
    words = [executable, "-I", SCRIPT, "--version", name]
    done = subprocess.run(words, capture_output=True, text=True)
    return done.stdout.strip() or None if done.returncode == 0 else None


def missing(name: str) -> str | None:
    """Why a peer cannot run here; None where it can."""
    if version(name, python()):
        return None
    where = "the Python of NEURALREG_PEERS" if os.environ.get("NEURALREG_PEERS") else "this Python"
    needs = getattr(adapter(name), "NEEDS", "")
    return f"{adapter(name).PACKAGE} is not in {where}" + (f", or it has {needs}" if needs else "")


def command(
    name: str, fixed: Path, moving: Path, out: Path, threads: int, setting: str, own: dict[str, str]
) -> list[str]:
    """The command line that registers."""
    options = {**adapter(name).SETTINGS[setting], **own}
    files = [str(fixed), str(moving), str(out)]
    return [python(), "-I", SCRIPT, name, *files, str(threads), json.dumps(options)]
