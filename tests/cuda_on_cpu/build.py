"""Compiles csrc/cuda with g++ against the headers of this folder, once for every state of the sources."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KERNELS = sorted((ROOT / "csrc/cuda").glob("*.cu"))
NAME = "_cuda_on_cpu"
FLAGS = ["-std=c++17", "-fPIC", "-Wall", "-Werror", "-Wno-unknown-pragmas", f"-I{HERE}"]
FLAGS += [f"-I{ROOT / 'csrc'}"]


def compiler() -> str:
    """g++, or a skip where there is none: the fibers need glibc's contexts."""
    found = shutil.which("g++")
    if found is None or os.name != "posix":
        pytest.skip("no g++ here")
    return found


def _folder() -> Path:
    place = ROOT / "build" / "cuda_on_cpu"
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError:
        place = Path(tempfile.gettempdir()) / f"neuralreg_cuda_on_cpu_{os.getuid()}"
        place.mkdir(exist_ok=True)
    return place


def made(name: str, sources: list[Path], flags: list[str], link: list[str]) -> Path:
    """The file that these sources compile and link to; what no source, header or flag has changed stays as it was."""
    command = [compiler(), *FLAGS, *flags]
    headers = [*HERE.glob("*.h"), *(ROOT / "csrc/cuda").glob("*.h"), *(ROOT / "csrc/math").glob("*.h")]
    headers += (ROOT / "csrc/bind").glob("*.h")
    known = b"".join(path.read_bytes() for path in sorted(headers))
    folder = _folder()
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the tests' workers are many
        objects = []
        for source in sources:
            speed = (
                "-O1" if source.suffix == ".cu" else "-O0"
            )  # compiling the rest takes longer than running it
            compile_it = [*command, speed, "-x", "c++", "-c", str(source)]
            objects.append(_once(folder, f"{source.name}.o", compile_it, known + source.read_bytes()))
        return _once(folder, name, [command[0], *map(str, objects), *link], b"")


def _once(folder: Path, name: str, command: list[str], read: bytes) -> Path:
    """The file that a command writes when it reads these bytes."""
    target = folder / hashlib.sha256(repr(command).encode() + read).hexdigest()[:16] / name
    if not target.exists():
        target.parent.mkdir(exist_ok=True)
        fresh = target.with_name(f".{name}")
        _run([*command, "-o", str(fresh)])
        os.replace(fresh, target)
    return target


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}\n{done.stderr}")


class Library:
    """The kernels on the CPU: the module as Python sees it, and what the tests may set."""

    def __init__(self) -> None:
        pybind11 = pytest.importorskip("pybind11")
        flags = [f"-DNR_MODULE_NAME={NAME}", f"-isystem{pybind11.get_include()}"]
        flags.append(f"-isystem{sysconfig.get_path('include')}")
        sources = [*KERNELS, *sorted((ROOT / "csrc/bind").glob("cuda*.cpp")), HERE / "controls.cpp"]
        path = made(f"{NAME}{sysconfig.get_config_var('EXT_SUFFIX')}", sources, flags, ["-shared"])
        self.module = _load(path)
        self._controls = ctypes.CDLL(str(path))

    def order(self, value: int) -> None:
        """0: threads and blocks ascending; 1: descending; above: shuffled with this seed."""
        self._controls.cuda_on_cpu_set_order(value)

    def shared_memory(self, size: int) -> None:
        """Bytes of shared memory that the device claims to offer a block."""
        self._controls.cuda_on_cpu_set_shared_memory(size)


def _load(path: Path) -> ModuleType:
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(path))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
