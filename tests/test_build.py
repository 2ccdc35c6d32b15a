"""The build: without a compiler, from each layout, incrementally; and what the native modules contain."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from neuralreg.kernels.backends import native
from neuralreg.kernels.backends.registry import BackendError
from tests.processes import ROOT, python

BACKENDS = Path("kernels/backends")
NOTE = BACKENDS / "_build_note.txt"

pytest.importorskip("setuptools")

# A module in the shape of ours, small enough to compile in a moment.
STUB_HEADER = "#pragma once\ninline int answer() { return 42; }\n"
STUB_SOURCE = """
#include <Python.h>
#include "cpu/answer.h"
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
int not_exported() { return answer(); }
static PyObject* features(PyObject*, PyObject*) { return Py_BuildValue("[s]", "base"); }
static PyMethodDef methods[] = {{"cpu_features", features, METH_NOARGS, nullptr}, {}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, TEXT(NR_MODULE_NAME), nullptr, -1, methods};
PyMODINIT_FUNC JOIN(PyInit_, NR_MODULE_NAME)(void) {
    PyObject* m = PyModule_Create(&module);
    PyModule_AddIntConstant(m, "answer", not_exported());
    return m;
}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A copy of the project with stub C++ sources and no built module."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    unwanted = shutil.ignore_patterns("__pycache__", "*.so", "_build_note.txt", "results")
    for room in ("neuralreg", "kernels", "bench"):
        shutil.copytree(ROOT / room, copy / room, symlinks=True, ignore=unwanted)
    for folder in ("cpu", "bind"):
        (copy / "csrc" / folder).mkdir(parents=True)
    (copy / "csrc/cpu/answer.h").write_text(STUB_HEADER)
    (copy / "csrc/bind/module.cpp").write_text(STUB_SOURCE)
    (copy / "csrc/cpu/other.cpp").write_text("namespace { int other; }\n")
    return copy


def run_python(project: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the project with none of our settings, and with a torch that refuses to be imported."""
    trap = project.parent / "trap"
    trap.mkdir(exist_ok=True)
    (trap / "torch.py").write_text("raise SystemExit('the build imported torch')\n")
    environment = {"PYTHONPATH": str(trap), "PIP_DISABLE_PIP_VERSION_CHECK": "1", **environment}
    without = ("NEURALREG_", "CXX", "CC", "LDFLAGS")
    return python(*arguments, cwd=project, without=without, **environment)


def build(project: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return run_python(project, "setup.py", "-q", "build_ext", "--inplace", **environment)


def modules(project: Path) -> list[str]:
    return sorted(p.name.split(".")[0] for p in (project / BACKENDS).glob("*.so"))


def plain_python(code: str, cwd: Path, path: Path | str = "") -> subprocess.CompletedProcess[str]:
    """Run code with ``path`` in front of the installed packages and none of our settings."""
    return python("-c", code, cwd=cwd, without=("NEURALREG_",), PYTHONPATH=str(path))


# The environment of the tests may hold an editable install of its own.
FORGET_EDITABLE = """
import site, sys
sys.meta_path[:] = [f for f in sys.meta_path if getattr(f, "__name__", "") != "_EditableFinder"]
for name in [name for name in sys.modules if name.startswith("__editable__")]:
    del sys.modules[name]
"""


def found_registry(cwd: Path, path: Path | str = "", before: str = "pass") -> Path:
    """The file that the registry is imported from; neuralreg.bench must be there too."""
    names = "import neuralreg.bench; from neuralreg.kernels.backends import registry"
    done = plain_python(f"{before}\n{names}\nprint(registry.__file__)", cwd, path)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()).resolve()


needs_compiler = pytest.mark.skipif(
    sys.platform == "win32" or not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")),
    reason="no C++ compiler here",
)


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"PATH": ""}, "no C++ compiler found (looked for g++, c++ and clang++ on PATH)"),
        ({"CC": "/nonexistent"}, "no C++ compiler found: CC=/nonexistent is not there"),
        ({"NEURALREG_NO_NATIVE": "1"}, "skipped on request (NEURALREG_NO_NATIVE)"),
    ],
)
def test_build_without_compiler_succeeds_and_says_why(
    project: Path, environment: dict[str, str], reason: str
) -> None:
    done = build(project, **environment)
    assert done.returncode == 0, done.stderr
    assert f"neuralreg: installed without native modules: {reason}" in done.stderr
    assert (project / NOTE).read_text() == reason + "\n"
    assert modules(project) == []


def test_required_modules_fail_the_build(project: Path) -> None:
    done = build(project, PATH="", NEURALREG_REQUIRE_NATIVE="1")
    assert done.returncode != 0
    assert "no C++ compiler found" in done.stderr


def test_pip_installs_without_compiler_and_the_package_knows_why(project: Path, tmp_path: Path) -> None:
    pytest.importorskip("pip")
    site = tmp_path / "site"
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--target", str(site))
    done = run_python(project, "-m", "pip", "install", *options, ".", PATH="")
    assert done.returncode == 0, done.stderr
    package = site / "neuralreg"
    for room, inner in (("kernels", "kernels"), ("bench", "bench")):
        shipped = {p.relative_to(package / inner).as_posix() for p in (package / inner).rglob("*.py")}
        assert shipped == {
            p.relative_to(ROOT / room).as_posix()
            for p in (ROOT / room).rglob("*.py")
            if (p.parent / "__init__.py").exists()
        }
    assert not list(site.rglob("*.so"))
    code = (
        "from neuralreg.kernels.backends import native, registry\n"
        "try:\n    native.load_cpu()\nexcept registry.BackendError as error:\n    print(error)\n"
        "print(registry.available('cpu')[0], registry.choose('warp', __import__('torch').device('cpu')))"
    )
    done = plain_python(code, tmp_path, site)
    assert done.returncode == 0, done.stderr
    assert "_cpu_base is not built: no C++ compiler found" in done.stdout
    assert done.stdout.splitlines()[-1] == "False reference"
    assert "no C++ compiler found" in done.stderr, "the fallback is logged with its reason"


@needs_compiler
def test_wheel_holds_modules_and_every_layout_is_found(project: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from setuptools import build_meta; print(getattr(build_meta, sys.argv[1])(sys.argv[2]))"
    )
    built = {}
    for kind in ("build_wheel", "build_editable"):
        done = run_python(project, "-c", code, kind, str(tmp_path), NEURALREG_BUILD_ISAS="base")
        assert done.returncode == 0, done.stderr
        built[kind] = tmp_path / kind
        with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
            names = wheel.namelist()
            wheel.extractall(built[kind])
        held = [name for name in names if name.startswith("neuralreg/kernels/backends/_cpu_base.")]
        assert len(held) == (kind == "build_wheel"), names
        assert not any(name.startswith(("kernels/", "bench/", "tests/", "csrc/")) for name in names)
    assert modules(project) == ["_cpu_base"], "the editable build leaves the module in the checkout"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    installed, inside = built["build_wheel"], Path("kernels/backends/registry.py")
    assert found_registry(elsewhere, path=installed) == installed / "neuralreg" / inside
    before = FORGET_EDITABLE + f"site.addsitedir({str(built['build_editable'])!r})"
    assert found_registry(elsewhere, path=built["build_editable"], before=before) == project / inside
    assert found_registry(elsewhere, path=project) == project / inside


def test_source_distribution_holds_what_a_build_needs(project: Path) -> None:
    done = run_python(project, "setup.py", "-q", "sdist")
    assert done.returncode == 0, done.stderr
    (archive,) = (project / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    wanted = {
        "setup.py",
        "csrc/bind/module.cpp",
        "csrc/cpu/answer.h",
        "kernels/backends/registry.py",
        "LICENSE",
    }
    assert wanted <= names
    assert not any(name.startswith(("neuralreg/kernels", "neuralreg/bench")) for name in names)
    assert not any(name.endswith((".so", "_build_note.txt")) for name in names)


@needs_compiler
def test_build_recompiles_only_what_has_changed(project: Path) -> None:
    def state() -> dict[str, float]:
        files = [*project.glob("build/native/*/base/*.o"), *(project / BACKENDS).glob("*.so")]
        return {p.name.split(".")[0]: p.stat().st_mtime for p in files}

    (project / NOTE).write_text("of an earlier try\n")
    assert build(project, NEURALREG_BUILD_ISAS="base").returncode == 0
    assert not (project / NOTE).exists()
    first = state()
    assert sorted(first) == ["_cpu_base", "bind_module", "cpu_other"]
    assert build(project, NEURALREG_BUILD_ISAS="base").returncode == 0
    assert state() == first
    (project / "csrc/cpu/answer.h").write_text(STUB_HEADER.replace("42", "43"))
    assert build(project, NEURALREG_BUILD_ISAS="base").returncode == 0
    changed = {name for name, time in state().items() if time != first[name]}
    assert changed == {"bind_module", "_cpu_base"}
    code = "import _cpu_base; print(_cpu_base.answer)"
    done = run_python(project, "-c", code, PYTHONPATH=str(project / BACKENDS))
    assert done.stdout.strip() == "43"


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="several instruction sets exist on x86 only")
def test_one_module_that_does_not_build_is_left_out(project: Path) -> None:
    source = project / "csrc/cpu/other.cpp"
    source.write_text("#ifdef __AVX512F__\n#error this set is broken\n#endif\n")
    done = build(project)
    assert done.returncode == 0
    assert modules(project) == ["_cpu_avx2", "_cpu_base"]
    note = (project / NOTE).read_text()
    assert note.startswith("csrc/cpu/other.cpp does not compile: ")
    assert "this set is broken" in note
    assert "installed without the native modules avx512" in done.stderr
    source.write_text("")
    assert build(project).returncode == 0
    assert modules(project) == ["_cpu_avx2", "_cpu_avx512", "_cpu_base"]
    assert not (project / NOTE).exists()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="several instruction sets exist on x86 only")
def test_an_assembler_that_lacks_an_instruction_costs_no_module(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "old-g++"
    refuse = "case $word in *.cpp) grep -q vdpbf16ps $word && exit 1;; esac"
    old.write_text(f'#!/bin/sh\nfor word in "$@"; do {refuse}; done\nexec g++ "$@"\n')
    old.chmod(0o755)
    source = "#ifdef NR_VDPBF16PS\nint the_instruction_is_used;\n#endif\n"
    (project / "csrc/cpu/other.cpp").write_text(source)
    for compiler, used in (("g++", True), (str(old), False)):
        assert build(project, NEURALREG_BUILD_ISAS="base,avx512", CXX=compiler).returncode == 0
        assert modules(project) == ["_cpu_avx512", "_cpu_base"]
        for isa in ("base", "avx512"):
            (compiled,) = project.glob(f"build/native/*/{isa}/cpu_other.o")
            assert (b"the_instruction_is_used" in compiled.read_bytes()) == (used and isa == "avx512")


def built_modules() -> list[Path]:
    try:
        return [Path(str(native.load_isa(isa).__file__)) for isa in native.cpu_isas()]
    except BackendError:
        return []


needs_modules = pytest.mark.skipif(
    not built_modules() or not sys.platform.startswith("linux"), reason="no native modules of Linux here"
)


def tool_output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@needs_modules
def test_modules_export_their_init_function_only() -> None:
    for path in built_modules():
        symbols = tool_output("nm", "-D", "--defined-only", str(path)).split("\n")
        assert [line.split()[-1] for line in symbols if line] == [f"PyInit_{path.name.split('.')[0]}"]


@needs_modules
def test_modules_bring_no_openmp_of_their_own() -> None:
    for path in built_modules():
        needed = re.findall(r"NEEDED.*\[(.*)\]", tool_output("readelf", "-d", str(path)))
        assert not [name for name in needed if "omp" in name or "torch" in name], needed
    loaded = "from neuralreg.kernels.backends import native; [native.load_isa(i) for i in native.cpu_isas()]"
    done = plain_python(f"{loaded}\nprint(open('/proc/self/maps').read())", ROOT)
    assert done.returncode == 0, done.stderr
    runtimes = {line.split()[-1] for line in done.stdout.splitlines() if re.search(r"/lib(g|i)?omp", line)}
    assert len(runtimes) == 1, runtimes


@needs_modules
def test_base_holds_no_avx_register() -> None:
    (base,) = (path for path in built_modules() if path.name.startswith("_cpu_base."))
    text = tool_output("objdump", "-d", "--no-show-raw-insn", str(base))
    assert "xmm" in text or "%rsp" not in text, "the disassembly looks empty"
    assert not re.search(r"%[yz]mm\d", text)
    best = built_modules()[0]
    if best != base:
        assert re.search(r"%[yz]mm\d", tool_output("objdump", "-d", "--no-show-raw-insn", str(best)))
