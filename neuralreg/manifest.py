"""The record of a batch: one JSON line a pair, and claims by which processes that share a folder divide the work.

A claim is a lock of the operating system on one byte of the file ``.lock``, and ends with the process that holds it,
however that ends. Only a process that holds a pair's claim writes its files and its lines.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from neuralreg.errors import InputError
from neuralreg.outputs import finite, json_text
from neuralreg.writing import atomic_path

MANIFEST, SETTINGS, LOCK = "manifest.jsonl", "batch.json", ".lock"
_LONGEST = 1 << 16  # bytes of a line, which holds figures and a few words
_WHOLE = 0  # the byte that stands for the manifest and the settings; those of pairs follow from their names


class Manifest:
    """The manifest of the folder ``folder``, shared with other processes and with runs before.

    ``lines`` is the latest line of every pair by name, as of the last `refresh`.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self.settings_path = folder / MANIFEST, folder / SETTINGS
        self.lines: dict[str, dict[str, Any]] = {}
        self._read = 0  # bytes
        self._lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        self.refresh()

    def close(self) -> None:
        """Gives all claims back."""
        os.close(self._lock)

    def refresh(self) -> None:
        """Reads the lines that were added since; a line without its end, as a kill leaves it, does not count.

        Raises:
            InputError: a line that no batch wrote.
        """
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            added = file.read()
        added = added[: added.rfind(b"\n") + 1]
        for line in added.splitlines():
            try:
                entry = json.loads(line)
                self.lines[entry["pair"]] = entry
            except (ValueError, KeyError, TypeError):
                raise InputError(f"{self.path} holds a line that no batch wrote: {line[:60]!r}") from None
        self._read += len(added)

    def append(self, line: dict[str, Any]) -> None:
        """Adds one line, and returns when it is on the disk. What a kill left of another is cut off first."""
        text = json.dumps(finite(line), allow_nan=False).encode() + b"\n"
        with self._locked(_WHOLE), open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _LONGEST)
            file.seek(start)
            file.truncate(start + file.read().rfind(b"\n") + 1)
            file.seek(0, os.SEEK_END)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether this process holds the pair for the block; another one does otherwise."""
        byte = 1 + int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        try:
            self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB, byte)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            self._flock(fcntl.LOCK_UN, byte)

    def agree(self, settings: dict[str, Any]) -> None:
        """Writes the settings where there are none yet, and compares them otherwise.

        Raises:
            InputError: the folder was begun with others; the line names them.
        """
        given = json.loads(json_text(settings))
        with self._locked(_WHOLE):
            if not self.settings_path.exists():
                with atomic_path(self.settings_path) as temporary:
                    temporary.write_text(json_text(settings), encoding="utf-8")
                return
            try:
                before = json.loads(self.settings_path.read_text(encoding="utf-8"))
                names = sorted(before.keys() | given.keys())
            except (ValueError, AttributeError):
                raise InputError(f"{self.settings_path} is damaged; give another --out") from None
        differ = [n for n in names if before.get(n) != given.get(n)]
        if differ:
            told = [f"{n} was {json.dumps(before.get(n))}, is {json.dumps(given.get(n))}" for n in differ]
            raise InputError(
                f"{self.settings_path}: this folder was begun with other settings ({'; '.join(told)}); give the same "
                f"again, or another --out"
            )

    @contextmanager
    def _locked(self, byte: int) -> Iterator[None]:
        self._flock(fcntl.LOCK_EX, byte)
        try:
            yield
        finally:
            self._flock(fcntl.LOCK_UN, byte)

    def _flock(self, what: int, byte: int) -> None:
        try:
            fcntl.lockf(self._lock, what, 1, byte)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise BlockingIOError from None
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise InputError(
                    f"{self.path.parent}: its file system has no locks, which keep two processes from one "
                    f"pair; give an --out on another one"
                ) from None
            raise
