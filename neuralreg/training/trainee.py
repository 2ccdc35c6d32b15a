"""What the training loop trains, and its file of weights."""

from __future__ import annotations

import importlib
import os
import pickle
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from neuralreg.errors import InputError
from neuralreg.training.data import Batch
from neuralreg.writing import atomic_path, brief

METHODS = {"nephi": "neuralreg.methods.nephi", "ofg": "neuralreg.methods.ofg"}


class Trainee(Protocol):
    """A method that learns from many pairs.

    The loop moves ``module`` to the device, switches it between training and evaluation, and hands tensors of that
    device to the methods below.
    """

    module: torch.nn.Module

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """``"loss"`` and its parts, scalars, means over the pairs of the batch.

        All random points come from ``generator`` (of the CPU) alone, one draw for all pairs of the batch.
        """
        ...

    def displacement(self, fixed: Tensor, moving: Tensor) -> Tensor:
        """Displacement (B, ndim, *sp) in fixed voxels, without gradient, of images (B, 1, *sp)."""
        ...

    def optimiser(self) -> torch.optim.Optimizer:
        """A new optimiser of the module's parameters; its learning rates are those of rate 1."""
        ...

    def rate(self, done: float) -> float:
        """The factor on the learning rates after this share (0 to 1) of the training."""
        ...

    def describe(self) -> dict[str, Any]:
        """Plain types and tensors that rebuild the trainee: "method", "options", "shape", "state" (a state dict)."""
        ...


def method_module(method: str) -> Any:
    """The module of a method that learns: it offers PRESETS, make_trainee and trainee_from."""
    if method not in METHODS:
        raise InputError(f"there is no method {method!r} to train; choose from {', '.join(sorted(METHODS))}")
    return importlib.import_module(METHODS[method])


def save_trainee(trainee: Trainee, path: str | os.PathLike[str]) -> None:
    """Writes ``describe()``, tensors on the CPU, as a ``torch.save`` file, whole or not at all."""
    with atomic_path(path) as temporary:
        torch.save(to_cpu(trainee.describe()), temporary)


def to_cpu(value: Any) -> Any:
    """The same nest of dicts, lists and tuples with every tensor on the CPU and without a gradient."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value


def load_trainee(path: str | os.PathLike[str]) -> Trainee:
    """The trainee of a weights file (``best.pt`` or ``last.pt`` of a training), on the CPU.

    Raises:
        InputError: no such file, not a weights file, or of a method that is not known here.
    """
    content = load_plain(path, "weights")
    if not isinstance(content, dict) or not {"method", "options", "shape", "state"} <= content.keys():
        raise InputError(
            f"weights {os.fspath(path)}: not a file that `neuralreg train` wrote as best.pt or last.pt"
        )
    if content["method"] not in METHODS:
        raise InputError(
            f"weights {os.fspath(path)} are of method {content['method']!r}, which is not known here; "
            f"known are {', '.join(sorted(METHODS))}"
        )
    try:
        return method_module(content["method"]).trainee_from(content)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"weights {os.fspath(path)} do not fit this version's {content['method']} ({brief(error)})"
        ) from None


def load_plain(path: str | os.PathLike[str], role: str) -> Any:
    """The content of a ``torch.save`` file of plain types and tensors; InputError for anything else."""
    name = f"{role} {os.fspath(path)}"
    if Path(path).is_dir():
        raise InputError(f"{name} is a folder; give a file such as best.pt")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read: {error.strerror}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError):
        raise InputError(f"{name} is damaged, or not a file that `neuralreg train` wrote") from None
