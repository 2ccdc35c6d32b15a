"""What the tests of training share: small subjects, and what a run leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from neuralreg.training.data import Pairs
from neuralreg.training.log import read_log

SHAPE = (6, 5, 4)
FILES = {"best.pt", "last.pt", "checkpoint.pt", "config.json", "log.jsonl", "validation.jsonl"}


def volume(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 200, shape).astype(np.float32)


def pairs_of(pairs: Pairs | None) -> set[tuple[str, str]]:
    assert pairs is not None
    return set(pairs.names())


def curve(out: Path) -> list[dict[str, Any]]:
    """The log without its times."""
    return [{k: v for k, v in record.items() if "seconds" not in k} for record in read_log(out / "log.jsonl")]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (torch.load(path, weights_only=True)["state"] for path in (a, b))
    return all(torch.equal(first[name], second[name]) for name in first)
