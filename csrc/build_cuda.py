"""Compiles csrc/cuda with nvcc: for setup.py when NEURALREG_CUDA=1, and for `make cuda-check`.

NEURALREG_CUDA_ARCHS names the architectures, as in 80,90; native is the machine's own card. Without it every
architecture of ARCHITECTURES that this nvcc knows is built, and PTX of the last for those to come.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
CHECKED = ("80", "90", "100")
FLAGS = ["-std=c++17", "-O3", "-DNDEBUG", "-Icsrc", "-Xcompiler=-fPIC,-fvisibility=hidden"]


class CudaError(Exception):
    """The CUDA module cannot be built; the message is one line for people."""


def sources() -> list[Path]:
    """The kernels' files, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "csrc/cuda").glob("*.cu"))


def bindings() -> list[Path]:
    """What makes the kernels known to Python, relative to the root."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / "csrc/bind").glob("cuda*.cpp"))


def compiler() -> str:
    """nvcc from PATH, else from CUDA_HOME.

    Raises:
        CudaError: there is none.
    """
    found = shutil.which("nvcc")
    if found is None and os.environ.get("CUDA_HOME"):
        found = shutil.which("nvcc", path=str(Path(os.environ["CUDA_HOME"]) / "bin"))
    if found is None:
        raise CudaError("no nvcc found (looked on PATH and in CUDA_HOME)")
    return found


def code_flags(nvcc: str) -> list[str]:
    """What tells nvcc for which architectures to compile.

    Raises:
        CudaError: NEURALREG_CUDA_ARCHS names one that this nvcc does not know.
    """
    asked = os.environ.get("NEURALREG_CUDA_ARCHS", "")
    if asked == "native":
        return ["-arch=native"]
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout
    known = set(re.findall(r"sm_(\w+)", listed))
    wanted = [name.strip().replace(".", "").removeprefix("sm_") for name in asked.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise CudaError(f"NEURALREG_CUDA_ARCHS: this nvcc does not compile for sm_{name}")
    chosen = wanted or [name for name in ARCHITECTURES if name in known]
    flags = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in chosen]
    return [*flags, f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"]


def host_flags() -> list[str]:
    """The C++ compiler below nvcc, where CXX names one."""
    return [f"-ccbin={os.environ['CXX'].split()[0]}"] if os.environ.get("CXX") else []


def build(compile_with: Any, folder: Path, target: Path, headers: dict[Path, str]) -> None:
    """The module: kernels by nvcc, the binding by setup.py's C++ compiler, cudart linked into it.

    Raises:
        CudaError: it cannot be built.
    """
    nvcc = compiler()
    folder.mkdir(exist_ok=True)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout.split("\n")
    # setup.py compiles again when the command has changed: the define makes another nvcc another command.
    command = [nvcc, *host_flags(), *FLAGS, f"-DNR_NVCC={version[-2].replace(' ', '_')}", *code_flags(nvcc)]
    objects = [folder / f"{source.stem}.o" for source in sources()]
    for source, made in zip(sources(), objects, strict=True):
        compile_with.make(command, source, made, {})
    for source in bindings():
        objects.append(folder / f"{source.stem}.o")
        compile_with.compile(source, objects[-1], ["-Icsrc", "-DNR_MODULE_NAME=_cuda"], headers)
    exports = folder / "exports"
    exports.write_text("{ global: PyInit__cuda; local: *; };\n")
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    link = [nvcc, *host_flags(), "-shared", "-cudart=static", f"-Xlinker=--version-script={exports},-z,now"]
    done = subprocess.run([*link, *map(str, objects), "-o", str(fresh)], capture_output=True, text=True)
    if done.returncode != 0:
        fresh.unlink(missing_ok=True)
        raise CudaError(f"{target.name} does not link: {done.stderr.strip()}")
    os.replace(fresh, target)  # processes that have the old module mapped keep it


def registers(nvcc: str, source: Path, architecture: str) -> list[tuple[str, int, int]]:
    """(kernel, registers, bytes spilled) of every kernel of a file.

    Raises:
        CudaError: the file does not compile.
    """
    with tempfile.TemporaryDirectory() as scratch:
        command = [nvcc, *host_flags(), *FLAGS, f"-arch=sm_{architecture}", "-Xptxas=-v", "-c", str(source)]
        done = subprocess.run(
            [*command, "-o", str(Path(scratch) / "kernel.o")], cwd=ROOT, capture_output=True, text=True
        )
    if done.returncode != 0:
        raise CudaError(f"{source} does not compile for sm_{architecture}:\n{done.stderr}")
    rows: list[tuple[str, int, int]] = []
    name, spilled = "", 0
    for line in done.stderr.splitlines():
        if match := re.search(r"Compiling entry function '(.*?)' for", line):
            name, spilled = plain_name(match[1]), 0
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = int(match[1]) + int(match[2])
        elif match := re.search(r"Used (\d+) registers", line):
            rows.append((name, int(match[1]), spilled))
    return rows


def plain_name(mangled: str) -> str:
    """The kernel's name with its template arguments, of the mangled one."""
    filt = shutil.which("c++filt") or shutil.which("cu++filt")
    if filt is None:
        return mangled
    text = subprocess.run([filt, mangled], capture_output=True, text=True).stdout.strip()
    text = text.replace("(anonymous namespace)::", "").replace("nr::gpu::", "").removeprefix("void ")
    return text.partition("(")[0]


def check() -> int:
    """Compile every kernel for CHECKED and print registers and spills; 1 where anything spills."""
    nvcc = compiler()
    worst = 0
    for source in sources():
        rows: dict[str, list[str]] = {}
        for architecture in CHECKED:
            for name, used, spilled in registers(nvcc, source, architecture):
                worst = max(worst, spilled)
                rows.setdefault(name, []).append(f"{used:>4} regs {spilled:>3} B spilled")
        print(f"{source}: {', '.join('sm_' + a for a in CHECKED)}")
        for name, cells in sorted(rows.items()):
            print(f"  {name:<42}{'   '.join(cells)}")
    print("no kernel spills" if worst == 0 else f"kernels spill, up to {worst} bytes")
    return int(worst > 0)


if __name__ == "__main__":
    try:
        sys.exit(check())
    except CudaError as error:
        sys.exit(f"neuralreg: {error}")
