"""Builds the native modules of neuralreg: the CPU's sources under csrc/ once for every instruction set, and, when
asked, the CUDA module.

torch is never imported: the modules take addresses, sizes and strides, so they fit every torch version.
Where no compiler is found or the build fails, the install succeeds without native modules, says so in one
line and leaves the reason where the modules would be, in ``kernels/backends/_build_note.txt``.

Environment: NEURALREG_NO_NATIVE=1 skips the modules; NEURALREG_REQUIRE_NATIVE=1 makes a module that does not
build an error; NEURALREG_BUILD_ISAS=base,avx2 builds only those; NEURALREG_CUDA=1 builds the CUDA module as well, or
fails (csrc/build_cuda.py says for which cards); CXX, CXXFLAGS and LDFLAGS are honoured; MAX_JOBS limits the
compilers that run at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGE = "neuralreg.kernels.backends"
NOTE = "_build_note.txt"
X86 = platform.machine().lower() in ("x86_64", "amd64")

ISA_FLAGS: dict[str, list[str]] = {"base": []}
if X86:
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma"]
    ISA_FLAGS["avx512"] = [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")]
    ISA_FLAGS["avx512"] += ["-mavx2", "-mfma", "-mprefer-vector-width=512"]

# An instruction that a module uses where the machine has it; older assemblers do not know it.
BFLOAT16_PROBE = 'void probe() { asm("vdpbf16ps %zmm0, %zmm1, %zmm2"); }\n'

COMMON_FLAGS = [
    *("-std=c++17", "-O3", "-DNDEBUG", "-fPIC", "-Wall", "-Wno-psabi"),
    *("-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fvisibility=hidden", "-fvisibility-inlines-hidden"),
]


class BuildError(Exception):
    """A native module cannot be built; the message is one line for people."""


def packages() -> dict[str, str]:
    """Every package with its folder; kernels/ and bench/ stand outside neuralreg/, where they are links."""
    rooms = {"neuralreg": "neuralreg", "kernels": "neuralreg.kernels", "bench": "neuralreg.bench"}
    found: dict[str, str] = {}
    for room, name in rooms.items():
        for marker in sorted((ROOT / room).rglob("__init__.py")):
            relative = marker.parent.relative_to(ROOT / room)
            if room == "neuralreg" and relative.parts[:1] in (("kernels",), ("bench",)):
                continue
            found[".".join((name, *relative.parts))] = (Path(room) / relative).as_posix()
    return found


def sources() -> list[Path]:
    """The C++ files of the CPU modules, relative to the root."""
    found = [*(ROOT / "csrc/cpu").glob("*.cpp"), *(ROOT / "csrc/bind").glob("*.cpp")]
    return sorted(p.relative_to(ROOT) for p in found if not p.name.startswith("cuda"))


def bindings() -> list[Path]:
    """Those of them that are the same in every module: all of csrc/bind but the module's own file."""
    return [path for path in sources() if path.parent.name == "bind" and path.stem != "module"]


class Compiler:
    """One C++ compiler and the flags that it understands."""

    def __init__(self, scratch: Path):
        self.scratch = scratch
        self.command, self.link_extra = self._find()
        version = self._run([*self.command, "--version"])
        if version.returncode != 0:
            raise BuildError(f"the C++ compiler {self.command[0]} does not run")
        self.version = version.stdout.splitlines()[0] if version.stdout else self.command[0]
        self.clang = "clang" in version.stdout.lower()
        self.target = self._target_flags()
        self.optional = self._optional_flags()

    @staticmethod
    def _find() -> tuple[list[str], list[str]]:
        for variable, extra in (("CXX", []), ("CC", ["-lstdc++"])):
            asked = shlex.split(os.environ.get(variable, ""))
            if asked:
                if shutil.which(asked[0]) is None:
                    raise BuildError(f"no C++ compiler found: {variable}={asked[0]} is not there")
                return asked, extra
        for name in ("g++", "c++", "clang++"):
            if shutil.which(name):
                return [name], []
        raise BuildError("no C++ compiler found (looked for g++, c++ and clang++ on PATH)")

    @staticmethod
    def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT)

    def _target_flags(self) -> list[str]:
        if sys.platform != "darwin":
            return []
        least = sysconfig.get_config_var("MACOSX_DEPLOYMENT_TARGET") or "11.0"
        return ["-arch", platform.machine(), f"-mmacosx-version-min={least}"]

    def _optional_flags(self) -> list[str]:
        # The modules use the OpenMP runtime that torch has loaded, never one of their own. On Linux that is
        # libgomp, which has no entry for what clang emits; on macOS the system's compiler has no OpenMP.
        wanted = ["-fno-gnu-unique"]
        if sys.platform.startswith("linux") and not self.clang:
            wanted.append("-fopenmp")
        return [flag for flag in wanted if self.accepts([flag])]

    def accepts(self, flags: list[str], source: str = "int probe;\n") -> bool:
        """Whether a source, by default an empty one, compiles with ``flags``."""
        probe = self.scratch / "probe.cpp"
        probe.write_text(source)
        output = probe.with_suffix(".o")
        command = [*self.command, *self.target, "-Werror", *flags, "-c", str(probe), "-o", str(output)]
        return self._run(command).returncode == 0

    def compile(self, source: Path, target: Path, flags: list[str], headers: dict[Path, str]) -> None:
        """Compile where the source, a project header that it includes or the command has changed.

        ``headers`` are folders of foreign headers with their versions: pip's build isolation puts them in
        another place every time, so the version decides and not the path.
        """
        command = [*self.command, *self.target, *COMMON_FLAGS, *self.optional, *flags]
        command += shlex.split(os.environ.get("CXXFLAGS", ""))
        self.make(command, source, target, headers)

    def make(self, command: list[str], source: Path, target: Path, headers: dict[Path, str]) -> None:
        """As ``compile``, with a command of one's own."""
        key = digest(self.version, command, sorted(headers.values()))
        stamp, dependencies = target.with_suffix(".key"), target.with_suffix(".d")
        if is_current(target, stamp, dependencies, key):
            return
        stamp.unlink(missing_ok=True)
        started = time.time()
        command = [*command, *(f"-isystem{folder}" for folder in headers)]
        done = self._run([*command, "-MMD", "-MF", str(dependencies), "-c", str(source), "-o", str(target)])
        if done.stderr:
            print(done.stderr, file=sys.stderr, flush=True)
        if done.returncode != 0:
            raise BuildError(f"{source} does not compile: {first_error(done.stderr)}")
        os.utime(target, (started, started))  # what was edited while the compiler ran counts as newer
        stamp.write_text(key)

    def link(self, objects: list[Path], target: Path, init: str) -> None:
        """Link a module that exports its init function and nothing else."""
        exports = self.scratch / f"{target.name.split('.')[0]}.exports"
        if sys.platform == "darwin":
            exports.write_text(f"_{init}\n")
            flags = ["-bundle", "-undefined", "dynamic_lookup", f"-Wl,-exported_symbols_list,{exports}"]
        else:
            exports.write_text(f"{{ global: {init}; local: *; }};\n")
            # -z now: what torch's OpenMP runtime lacks is an ImportError then, not a crash in the first call.
            flags = ["-shared", f"-Wl,--version-script={exports}", "-Wl,-z,now", "-Wl,--as-needed"]
        command = [*self.command, *self.target, *flags, *shlex.split(os.environ.get("LDFLAGS", ""))]
        stamp, key = objects[0].with_name("link.key"), digest(command, objects)
        if not stamp.is_file() or stamp.read_text() != key:
            stamp.write_text(key)
        newest = max(path.stat().st_mtime for path in [*objects, stamp])
        if target.is_file() and target.stat().st_mtime > newest:
            return
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        done = self._run([*command, *map(str, objects), *self.link_extra, "-o", str(fresh)])
        if done.returncode != 0:
            fresh.unlink(missing_ok=True)
            print(done.stderr, file=sys.stderr, flush=True)
            raise BuildError(f"{target.name} does not link: {first_error(done.stderr)}")
        os.replace(fresh, target)  # processes that have the old module mapped keep it


def digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def is_current(target: Path, stamp: Path, dependencies: Path, key: str) -> bool:
    """Whether the object was made by this command and is newer than everything that went into it."""
    if not (target.is_file() and stamp.is_file() and dependencies.is_file()) or stamp.read_text() != key:
        return False
    built = target.stat().st_mtime
    names = dependencies.read_text().partition(":")[2].replace("\\\n", " ")
    for name in re.split(r"(?<!\\)\s+", names.strip()):
        path = ROOT / name.replace("\\ ", " ")
        if not path.is_file() or path.stat().st_mtime > built:
            return False
    return True


def first_error(text: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines[-1:] or ["no message"])[0][:300]


def is_set(variable: str) -> bool:
    return os.environ.get(variable, "") not in ("", "0")


class BuildNative(build_ext):
    """Builds what can be built, leaves out the rest with a reason, and recompiles only what has changed."""

    def run(self) -> None:
        if self.inplace:
            link_rooms()
        destination = self._destination()
        failures: dict[str, str] = {}
        if is_set("NEURALREG_NO_NATIVE"):
            failures["all"] = "skipped on request (NEURALREG_NO_NATIVE)"
        else:
            try:
                failures = self._build(destination)
            except (BuildError, OSError) as error:
                failures["all"] = str(error)
        self._settle(destination, failures)

    def _destination(self) -> Path:
        """Where the modules go: into the checkout for in-place and editable builds, else the build folder."""
        folder = ROOT / "kernels" / "backends" if self.inplace else Path(self.build_lib, *PACKAGE.split("."))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _build(self, destination: Path) -> dict[str, str]:
        if sys.platform == "win32":
            raise BuildError("there is no native build for Windows in this version")
        try:
            import pybind11
        except ImportError:
            raise BuildError("pybind11 is not installed (pip install pybind11)") from None
        if not sources():
            raise BuildError("no C++ sources under csrc/")
        headers = {
            Path(pybind11.get_include()): f"pybind11 {pybind11.__version__}",
            Path(sysconfig.get_path("include")): f"Python {sys.version}",
        }
        failures: dict[str, str] = {}
        jobs: dict[str, list[tuple[Path, Future[None]]]] = {}
        with object_folder(Path(self.build_temp)) as folder:
            compiler = Compiler(folder)
            with ThreadPoolExecutor(job_count()) as pool:
                # Bindings only hand over what Python gives: one object of each serves every instruction set.
                shared = [
                    self._submit(pool, compiler, source, folder / "bind", [], headers)
                    for source in bindings()
                ]
                for isa in self._isas():
                    if isa == "cuda":
                        continue
                    if not compiler.accepts(ISA_FLAGS[isa]):
                        failures[isa] = f"the compiler does not know {' '.join(ISA_FLAGS[isa])}"
                        continue
                    flags = [f"-DNR_MODULE_NAME=_cpu_{isa}", *ISA_FLAGS[isa]]
                    if isa == "avx512" and compiler.accepts(ISA_FLAGS[isa], BFLOAT16_PROBE):
                        flags.append("-DNR_VDPBF16PS")
                    own = [source for source in sources() if source not in bindings()]
                    jobs[isa] = shared + [
                        self._submit(pool, compiler, source, folder / isa, flags, headers) for source in own
                    ]
            for isa, parts in jobs.items():
                try:
                    for _, job in parts:
                        job.result()
                    objects = [target for target, _ in parts]
                    compiler.link(objects, destination / file_name(isa), f"PyInit__cpu_{isa}")
                except BuildError as error:
                    failures[isa] = str(error)
            if "cuda" in self._isas():
                cuda = load_cuda_tools()
                try:
                    cuda.build(compiler, folder / "cuda", destination / file_name("cuda"), headers)
                except (BuildError, cuda.CudaError) as error:
                    failures["cuda"] = str(error)
        return failures

    @staticmethod
    def _submit(
        pool: ThreadPoolExecutor,
        compiler: Compiler,
        source: Path,
        folder: Path,
        flags: list[str],
        headers: dict[Path, str],
    ) -> tuple[Path, Future[None]]:
        """The object that ``source`` becomes, and the compilation under way."""
        folder.mkdir(exist_ok=True)
        target = folder / f"{source.parent.name}_{source.stem}.o"
        return target, pool.submit(compiler.compile, source, target, ["-Icsrc", *flags], headers)

    def _isas(self) -> list[str]:
        return [extension.name.rpartition("_")[2] for extension in self.extensions]

    def _settle(self, destination: Path, failures: dict[str, str]) -> None:
        """Keep only what this build stands for, write the note or remove it, and say it in one line."""
        if "all" in failures:
            failures = dict.fromkeys(self._isas(), failures["all"])
        built = [isa for isa in self._isas() if isa not in failures]
        self.extensions = [e for e in self.extensions if e.name.rpartition("_")[2] in built]
        if "cuda" in failures:  # it was asked for, so the build must not pass without it
            (destination / file_name("cuda")).unlink(missing_ok=True)
            raise SystemExit(f"neuralreg: the CUDA module cannot be built: {failures['cuda']}")
        for module in destination.glob(file_name("*")):
            if module.name not in map(file_name, built):
                module.unlink()
        note = destination / NOTE
        if not failures:
            note.unlink(missing_ok=True)
            return
        reasons = "; ".join(dict.fromkeys(failures.values()))
        note.write_text(reasons + "\n", encoding="utf-8")
        what = f"without the native modules {', '.join(failures)}" if built else "without native modules"
        if is_set("NEURALREG_REQUIRE_NATIVE"):
            raise SystemExit(f"neuralreg: cannot install {what} (NEURALREG_REQUIRE_NATIVE): {reasons}")
        print(f"neuralreg: installed {what}: {reasons}", file=sys.stderr, flush=True)

    # setuptools asks these to lay the files out in wheels and editable installs.
    def get_outputs(self) -> list[str]:
        return [str(Path(self.build_lib, *PACKAGE.split("."), file_name(isa))) for isa in self._isas()]

    def get_output_mapping(self) -> dict[str, str]:
        here = ROOT / "kernels" / "backends"
        return {path: str(here / Path(path).name) for path in self.get_outputs()} if self.inplace else {}


def module_name(isa: str) -> str:
    return "_cuda" if isa == "cuda" else f"_cpu_{isa}"


def load_cuda_tools() -> Any:
    """csrc/build_cuda.py, which no path of this build finds by name."""
    spec = importlib.util.spec_from_file_location("build_cuda", ROOT / "csrc" / "build_cuda.py")
    if spec is None or spec.loader is None or not list((ROOT / "csrc").glob("cuda/*.cu")):
        raise BuildError("this version has no CUDA sources")
    tools = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tools)
    return tools


def file_name(isa: str) -> str:
    return f"{module_name(isa)}{sysconfig.get_config_var('EXT_SUFFIX')}"


@contextlib.contextmanager
def object_folder(fallback: Path) -> Iterator[Path]:
    """The folder of the objects: kept between builds, locked while one build of this checkout is at work."""
    folder = ROOT / "build" / "native" / f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
    if not os.access(ROOT, os.W_OK):  # a read-only source tree
        folder = fallback.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def job_count() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(os.environ.get("MAX_JOBS") or cores))


def link_rooms() -> None:
    """An unpacked source distribution has no links: make those that the checkout has."""
    for room in ("kernels", "bench"):
        link = ROOT / "neuralreg" / room
        if not link.exists():
            with contextlib.suppress(
                OSError
            ):  # the finder of an editable install knows the folders all the same
                link.symlink_to(Path("..") / room)


def wanted_isas() -> list[str]:
    asked = [name for name in os.environ.get("NEURALREG_BUILD_ISAS", "").split(",") if name]
    unknown = [name for name in asked if name not in ISA_FLAGS]
    if unknown:
        raise SystemExit(f"NEURALREG_BUILD_ISAS: {unknown[0]!r} is not one of {', '.join(ISA_FLAGS)}")
    return [*(asked or ISA_FLAGS), *(["cuda"] if is_set("NEURALREG_CUDA") else [])]


if __name__ == "__main__":
    files = [path.as_posix() for path in sources()]
    setup(
        packages=list(packages()),
        package_dir=packages(),
        ext_modules=[
            Extension(f"{PACKAGE}.{module_name(isa)}", files, language="c++") for isa in wanted_isas()
        ],
        cmdclass={"build_ext": BuildNative},
    )
