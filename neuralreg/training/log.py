"""What a training tells while it runs: a line a step, a line a validation, and TensorBoard where it is asked for."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from neuralreg.errors import InputError
from neuralreg.writing import atomic_path

STEPS, VALIDATIONS = "log.jsonl", "validation.jsonl"


class Log:
    """Appends to ``log.jsonl`` and ``validation.jsonl`` of a folder.

    What stands there of steps beyond ``upto``, and of validations beyond ``scored``, is dropped first.
    """

    def __init__(self, folder: Path, upto: int, scored: int, tensorboard: bool = False) -> None:
        cut(folder / STEPS, upto)
        cut(folder / VALIDATIONS, scored)
        self._files = {
            name: (folder / name).open("a", buffering=1, encoding="utf-8") for name in (STEPS, VALIDATIONS)
        }
        self._board: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder), purge_step=upto + 1)

    def step(self, record: dict[str, Any]) -> None:
        """The losses of a step: "step", "loss", its parts, "rate", "seconds", "cpu_seconds"."""
        self._write(STEPS, record, "train")

    def validation(self, record: dict[str, Any]) -> None:
        """The scores after a step."""
        self._write(VALIDATIONS, record, "validation")

    def _write(self, name: str, record: dict[str, Any], group: str) -> None:
        self._files[name].write(json.dumps(record) + "\n")
        if self._board is not None:
            for key, value in record.items():
                if key != "step" and value is not None:
                    self._board.add_scalar(f"{group}/{key}", value, record["step"])

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._board is not None:
            self._board.close()


def require_tensorboard() -> None:
    """InputError where the package is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "--tensorboard needs the package tensorboard, which is not installed: pip install tensorboard"
        )


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines; a last line that was cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def cut(path: Path, upto: int) -> None:
    """Drops the records of later steps, and a line that was cut short."""
    if path.exists():
        kept = [record for record in read_log(path) if record["step"] <= upto]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
