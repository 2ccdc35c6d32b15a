"""The `neuralreg` command: one file a command, and the one place where errors become exit codes.

Each module named in `COMMANDS` holds a function `command` with typer annotations, or an `app` of several. The modules
are imported to build the help, so none of them may import torch, nibabel or matplotlib at its top: `neuralreg --help`
must answer at once.

Exit codes: 0 done; 1 a command's own negative answer (`doctor`) or a defect, with its traceback; 2 something
that the user can mend, told in one line on stderr that starts with `error:`; 130 interrupted.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from neuralreg.errors import NeuralregError

COMMANDS = (
    *("register", "batch", "apply", "convert", "evaluate", "jacobian", "report"),
    *("train", "doctor", "demo", "bench"),
)

# Click's base of all usage errors, wherever the installed typer keeps it (late ones carry a copy of click).
_CommandLineError = typer.BadParameter.__mro__[2]

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
_LOWER_MEMORY = (
    "out of memory: give the images at a coarser resolution or cropped, sample fewer points with a larger "
    "--option stride=N, choose a smaller --preset, or move to a device with more memory with --device"
)


class _Commands(TyperGroup):
    """The command group; its `main` is also what typer's test runner calls."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args) or ["--help"]
        # Threads that wait in a loop for the next small op cost whole CPU seconds, and time where others compute.
        # torch reads this when it is loaded, which no command has done yet.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        try:
            extra.setdefault("obj", tuple(arguments))  # what a report says about how it was made
            code = super().main(
                arguments, prog_name or "neuralreg", complete_var, False, windows_expand_args, **extra
            )
        except Exception as error:
            line = error_line(error)
            if line is None:
                raise
            if not _is_echo(arguments):
                print(f"error: {line}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        if code == 130:
            print("interrupted", file=sys.stderr)
        sys.exit(code if isinstance(code, int) else 0)


def _is_echo(arguments: list[str]) -> bool:
    """Whether another process of the same machine, started with this one for one pair, says the same."""
    return arguments[0] == "register" and os.environ.get("LOCAL_RANK", "0") != "0"


def error_line(error: BaseException) -> str | None:
    """One line for an error that the user can mend; None for a defect, which deserves its traceback."""
    if isinstance(error, _CommandLineError):
        context = getattr(error, "ctx", None)
        where = context.command_path if context is not None else "neuralreg"
        text = f"{error.format_message()} (see `{where} --help`)"  # type: ignore[attr-defined]
    elif isinstance(error, NeuralregError):
        text = str(error)
    elif isinstance(error, MemoryError) or _tells_of_memory(error):
        text = _LOWER_MEMORY
    elif isinstance(error, OSError):
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    elif type(error).__name__ == "BackendError":  # compared by name: importing its class would load torch
        text = str(error)
    else:
        return None
    return " ".join(text.split())


def _tells_of_memory(error: BaseException) -> bool:
    """Torch raises plain RuntimeError on the CPU, torch.OutOfMemoryError (its subclass) on a GPU."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(sign in text for sign in _OUT_OF_MEMORY)


app = typer.Typer(
    name="neuralreg",
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deformable image registration with neural fields.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"neuralreg {version('neuralreg')}")
        raise typer.Exit()


@app.callback()
def _global_options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    """Deformable image registration with neural fields."""


for _name in COMMANDS:
    _module = importlib.import_module(f"neuralreg.cli.{_name}")
    if hasattr(_module, "app"):
        app.add_typer(_module.app, name=_name)
    else:
        app.command(_name)(_module.command)


def main() -> None:
    """Entry point of the `neuralreg` script."""
    # A termination ends like an interrupt: through Python's clean-up, which removes the temporary files.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    app()
