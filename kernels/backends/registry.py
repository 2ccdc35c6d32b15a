"""Which backends exist here, why the others do not, and which one serves an op.

The path that every op call takes (``choose`` and ``implementation``) is plain look-ups in module globals, so
that ``torch.compile(fullgraph=True)`` follows it. The environment is read once, at import.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch

BACKENDS = ("reference", "cpu", "cuda", "triton")
_SERVES_DEVICE = {"cpu": "cpu", "cuda": "cuda", "triton": "cuda"}  # the reference serves every device
# Triton's interpreter runs kernels on the CPU: for tests, never by the automatic choice.
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
_ORDER = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # the reference comes last everywhere
_STEPS = ("_kept", "_forward", "_backward")  # registered parts of a public op

_functions: dict[str, dict[str, Callable[..., Any]]] = {name: {} for name in BACKENDS}
_unverified: dict[str, set[str]] = {name: set() for name in BACKENDS}
_broken: dict[str, str] = {}  # backends with registered kernels that cannot run here, and why
_stack: list[str] = []
_environment: str | None = os.environ.get("NEURALREG_BACKEND") or None
_fallback_told = False


class BackendError(RuntimeError):
    """A backend that was asked for cannot serve; the message says why."""


def register(op: str, backend: str, function: Callable[..., Any], *, verified: bool = True) -> None:
    """Make ``function`` the implementation of ``op`` on ``backend``; backends do this when they are imported.

    A kernel that has never run on the hardware it is for is registered with ``verified=False``: the automatic
    choice passes it over, an explicit choice takes it.

    Raises:
        BackendError: no such backend.
    """
    _known(backend)
    first = not _functions[backend]
    _functions[backend][op] = function
    if first:
        reason = _cannot_run(backend)
        if reason:
            _broken[backend] = reason
    (_unverified[backend].discard if verified else _unverified[backend].add)(op)


def implementation(op: str, backend: str) -> Callable[..., Any]:
    """The native function of ``op`` on ``backend``.

    Raises:
        BackendError: the backend is unknown, cannot run here or has no kernel for the op.
    """
    if backend not in _functions or backend in _broken or op not in _functions[backend]:
        raise BackendError(_why_not(op, backend))
    return _functions[backend][op]


def serves(op: str, backend: str) -> bool:
    """Whether ``backend`` has a function of this name."""
    return backend not in _broken and op in _functions[backend]


def available(backend: str) -> tuple[bool, str]:
    """Whether ``backend`` serves any op here, and the reason when it does not ("" when it does).

    Raises:
        BackendError: no such backend.
    """
    _known(backend)
    if backend == "reference":
        return True, ""
    reason = _broken.get(backend) or _cannot_run(backend)
    if not reason and not _functions[backend]:
        reason = "no kernel in this version"
    return not reason, reason


def choose(op: str, device: torch.device, requested: str | None = None) -> str:
    """The backend that serves ``op`` on tensors of ``device``.

    The explicit choice counts first (``requested``, else the innermost ``use_backend``, else
    NEURALREG_BACKEND); it is taken or refused, never replaced. Without one: cuda, triton, reference on CUDA
    tensors, cpu, reference on CPU tensors, passing over kernels that are not verified. Falling back to the
    reference is logged once a process.

    Raises:
        BackendError: an explicit choice cannot serve this op on this device; the message says why.
    """
    if requested is None:
        requested = _requested()
    kind = device.type
    if requested is not None:
        if requested == "reference":
            return requested
        if (
            requested not in _functions
            or requested in _broken
            or op not in _functions[requested]
            or not _serves(requested, kind)
        ):
            raise BackendError(_why_not(op, requested, kind))
        return requested
    for name in _ORDER.get(kind, ()):
        if name not in _broken and op in _functions[name] and op not in _unverified[name]:
            return name
    if not _fallback_told and not torch.compiler.is_compiling():
        _tell_fallback(op, kind)
    return "reference"


def asked_for(backend: str) -> bool:
    """Whether ``use_backend`` or NEURALREG_BACKEND names this backend now."""
    return _requested() == backend


def _requested() -> str | None:
    return _stack[-1] if _stack else _environment


class use_backend:
    """Context manager: inside it every op runs on the backend ``name`` or raises BackendError saying why not.

    A ``backend=`` argument of a call still counts first. The choice holds for all threads of the process.

    Raises:
        BackendError: no such backend, or it serves nothing here.
    """

    def __init__(self, name: str):
        serves, reason = available(name)
        if not serves:
            raise BackendError(f"the backend {name!r} cannot serve here: {reason}")
        self.name = name

    def __enter__(self) -> str:
        _stack.append(self.name)
        return self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _stack.pop()


def backends() -> dict[str, dict[str, Any]]:
    """What serves here and why the rest does not.

    Returns:
        One entry a backend: ``available`` (bool), ``reason`` (str, "" when available), ``ops`` (sorted names
        of the public ops that it has kernels for; the reference has every op that any backend has),
        ``unverified`` (ops whose kernel the automatic choice passes over) and ``detail`` (the cpu backend's
        instruction set).
    """
    every = {op for table in _functions.values() for op in table if not op.endswith(_STEPS)}
    answer: dict[str, dict[str, Any]] = {}
    for name in BACKENDS:
        serves, reason = available(name)
        detail = ""
        if name == "cpu" and serves:
            from . import native

            detail = native.cpu_isa()
        answer[name] = {
            "available": serves,
            "reason": reason,
            "ops": sorted(every if name == "reference" else every & _functions[name].keys()),
            "unverified": sorted(every & _unverified[name]),
            "detail": detail,
        }
    return answer


def reason_against(op: str, backend: str, device: str) -> str:
    """Why ``backend`` would not be taken for ``op`` on ``device`` ("cpu", "cuda"); "" if it could be."""
    if backend == "reference":
        return ""
    serves, reason = available(backend)
    if not serves:
        return reason
    if op not in _functions[backend]:
        return f"no {op} kernel in this version"
    if not _serves(backend, device):
        return f"serves {_SERVES_DEVICE[backend]} tensors"
    return "not verified on hardware" if op in _unverified[backend] else ""


def _serves(backend: str, device: str) -> bool:
    return _SERVES_DEVICE[backend] == device or (backend == "triton" and device == "cpu" and interpreted)


def _known(backend: str) -> None:
    if backend not in BACKENDS:
        raise BackendError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")


def _why_not(op: str, backend: str, device: str | None = None) -> str:
    if backend not in BACKENDS:
        return f"no backend {backend!r}; there are {', '.join(BACKENDS)}"
    if backend == "reference":
        return (
            f"{op}: the reference backend is plain torch; call the public function with backend='reference'"
        )
    reason = reason_against(op, backend, device or _SERVES_DEVICE[backend])
    if reason.startswith("serves "):
        reason += f", these are on {device}"
    return f"{op}: the backend {backend!r} cannot serve: {reason}"


def _cannot_run(backend: str) -> str:
    """Why kernels of ``backend`` could not run on this machine; "" where they could."""
    if backend == "cpu":
        from . import native

        try:
            native.load_cpu()
        except BackendError as error:
            return str(error)
    elif backend in ("cuda", "triton"):
        if not _functions[backend]:
            return "its module is not built (make gpu)" if backend == "cuda" else "no kernel in this version"
        if backend == "triton" and importlib.util.find_spec("triton") is None:
            return "triton is not installed"
        if not torch.cuda.is_available() and not (backend == "triton" and interpreted):
            return "no CUDA device"
    return ""


def _tell_fallback(op: str, device: str) -> None:
    global _fallback_told
    _fallback_told = True
    reasons = [f"{name}: {reason_against(op, name, device)}" for name in _ORDER.get(device, ())]
    why = "; ".join(reasons) or f"no kernels for {device} tensors"
    logging.getLogger("neuralreg").warning("%s runs on the reference backend, plain torch (%s)", op, why)
