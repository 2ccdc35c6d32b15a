"""How long a training lasts and when something is due in it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from neuralreg.errors import InputError

PARTS = 20  # validations of a training that names no other rhythm


@dataclass(frozen=True)
class Limits:
    """The training ends with the first limit reached: ``steps``, ``seconds`` of wall time, ``cpu_seconds`` of the
    processes, validation and writing included. The learning rate follows the limit that is furthest ahead.
    """

    steps: int | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None

    def __post_init__(self) -> None:
        given = {"steps": self.steps, "time budget": self.seconds, "CPU budget": self.cpu_seconds}
        if all(value is None for value in given.values()):
            raise InputError("a training needs an end: give --steps, --time-budget or --cpu-budget")
        for name, value in given.items():
            if value is not None and not value > 0:
                raise InputError(f"the {name} must be more than 0, got {value:g}")

    def done(self, step: int, seconds: float, cpu_seconds: float) -> float:
        """The share of the training that is behind us, 1 at its end."""
        pairs = ((step, self.steps), (seconds, self.seconds), (cpu_seconds, self.cpu_seconds))
        return min(1.0, max(spent / limit for spent, limit in pairs if limit is not None))


@dataclass(frozen=True)
class Every:
    """A rhythm: every so many steps, or so many seconds, or, with neither, so many times in the whole training."""

    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def parse(cls, flag: str, text: str | None) -> Every:
        """ "200" is steps, "60s" seconds."""
        if text is None:
            return cls()
        try:
            every = cls(None, float(text[:-1])) if text.endswith("s") else cls(int(text))
        except ValueError:
            raise InputError(
                f"{flag}: expected steps such as 200 or seconds such as 60s, got '{text}'"
            ) from None
        if not (every.steps or every.seconds or 0) > 0:
            raise InputError(f"{flag}: must be more than 0, got '{text}'")
        return every


class Rhythm:
    """Says when a thing is due, given how far the training is."""

    def __init__(self, every: Every, done: float, seconds: float) -> None:
        self.every, self.last_part, self.last_seconds = every, int(done * PARTS + 1e-9), seconds

    def due(self, step: int, done: float, seconds: float) -> bool:
        """Asked once after every step."""
        if self.every.steps is not None:
            return step % self.every.steps == 0
        if self.every.seconds is not None:
            if seconds - self.last_seconds < self.every.seconds:
                return False
            self.last_seconds = seconds
            return True
        part = int(done * PARTS + 1e-9)
        passed, self.last_part = part > self.last_part, part
        return passed


class Clock:
    """Wall and CPU seconds since the training began, those before a resume included."""

    def __init__(self, seconds: float = 0.0, cpu_seconds: float = 0.0) -> None:
        self._wall, self._cpu = time.perf_counter() - seconds, time.process_time() - cpu_seconds

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu
