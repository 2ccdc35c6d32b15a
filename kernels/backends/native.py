"""Loads the native CPU module of the best instruction set that this machine has."""

from __future__ import annotations

import ctypes
import importlib
import os
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  the modules use the OpenMP runtime that torch brings: it has to be there first

from .registry import BackendError

ISAS = ("avx512", "avx2", "base")  # best first
_NOTE = Path(__file__).with_name("_build_note.txt")
_modules: dict[str, ModuleType] = {}
_chosen: str | None = None


def load_cpu() -> ModuleType:
    """The module that serves the cpu backend: the best that was built and runs here, or NEURALREG_CPU_ISA.

    Decided once a process.

    Raises:
        BackendError: no module can be loaded, or NEURALREG_CPU_ISA names one that cannot.
    """
    return _modules[cpu_isa()]


def cpu_isa() -> str:
    """Name of the instruction set in use: "avx512", "avx2" or "base".

    Raises:
        BackendError: as in ``load_cpu``.
    """
    global _chosen
    if _chosen is None:
        _chosen = _choose()
    return _chosen


def cpu_isas() -> list[str]:
    """Instruction sets usable here, best first: the module was built, loads, and the machine runs it.

    Raises:
        BackendError: not even the base module can be loaded.
    """
    features = load_isa("base").cpu_features()
    usable = []
    for isa in ISAS:
        if isa in features:
            try:
                load_isa(isa)
            except BackendError:  # left out of this build; cpu_isa says why when it is asked for by name
                continue
            usable.append(isa)
    return usable


def multiplies_bfloat16() -> bool:
    """Whether the module in use multiplies bfloat16 factors faster than float32 ones: it and the CPU know AVX512-BF16.

    All modules round and multiply such factors; without the instruction that takes longer than float32.

    Raises:
        BackendError: as in ``load_cpu``.
    """
    return "avx512bf16" in load_cpu().cpu_features()


def load_isa(isa: str) -> ModuleType:
    """The module built for ``isa``, whether or not this machine can run its functions.

    Raises:
        BackendError: there is no such module, or it does not load.
    """
    if isa not in _modules:
        try:
            _modules[isa] = _import(isa)
        except ModuleNotFoundError:
            raise BackendError(_not_built(isa)) from None
        except ImportError as error:
            raise BackendError(f"the native module _cpu_{isa} does not load: {error}") from error
    return _modules[isa]


def _choose() -> str:
    forced = os.environ.get("NEURALREG_CPU_ISA")
    if not forced:
        return cpu_isas()[0]
    if forced not in ISAS:
        raise BackendError(f"NEURALREG_CPU_ISA={forced}: it is one of {', '.join(ISAS)}")
    if forced not in load_isa("base").cpu_features():
        raise BackendError(f"NEURALREG_CPU_ISA={forced}: this machine does not have it")
    load_isa(forced)
    return forced


def _import(isa: str) -> ModuleType:
    name = f"{__package__}._cpu_{isa}"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise
    except ImportError as error:
        if "GOMP_" not in str(error) or not _share_openmp():
            raise
    return importlib.import_module(name)


def _share_openmp() -> bool:
    """Make the OpenMP runtime that torch has mapped visible to the modules; False where none is found.

    torch does this itself in most builds. Where it does not, loading the same file again with global
    visibility promotes the runtime that is there; a second one is never loaded.
    """
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return False
    paths = dict.fromkeys(line.split(maxsplit=5)[-1] for line in lines if "omp" in line.rpartition("/")[2])
    for path in paths:
        if Path(path).name.startswith(("libgomp", "libiomp5", "libomp")):
            ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
            return True
    return False


def _not_built(isa: str) -> str:
    try:
        reason = _NOTE.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        reason = "run `pip install -e . --no-build-isolation` where there is a C++ compiler"
    return f"the native module _cpu_{isa} is not built: {reason}"
