"""Runs that are stopped half-way, by the user or by the machine: the right exit code and no file left."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import python
from tests.small import call, pair_folder, register


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a good pair, fixed.nii.gz and moving.nii.gz, and an empty folder out."""
    return pair_folder(tmp_path)


IN_PROCESS = """
import os, resource, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import neuralreg.methods.nir as nir
what = sys.argv.pop(1)
fit = nir.minimise
calls = []
def spoiled(steps, *args, **options):
    def one():
        calls.append(1)
        if what == "memory":
            import torch
            torch.empty(1 << 42)
        elif len(calls) == 3:
            os.kill(os.getpid(), getattr(signal, what))
        return steps[0]()
    return fit([one], *args, **{**options, "shares": None})
nir.minimise = spoiled
if what == "memory":  # far above what the process needs and far below what it will ask for
    resource.setrlimit(resource.RLIMIT_AS, (1 << 38, 1 << 38))
from neuralreg.cli import main
main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="signals and address space limits as Linux has them")
@pytest.mark.parametrize(
    ("what", "code", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, ""), ("memory", 2, "out of memory")],
)
def test_stopped_in_the_middle(images: Path, what: str, code: int, word: str) -> None:
    before = sorted(images.rglob("*"))
    arguments = register(images, "--warped-out", images / "out/w.nii.gz")
    done = python("-c", IN_PROCESS, what, *arguments)
    assert done.returncode == code, done.stderr
    assert word in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(images.rglob("*")) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_stopped_while_writing(images: Path, error: BaseException, monkeypatch: Any) -> None:
    """The last of several files fails half-way: none of them stays, and an older file is as it was."""
    from neuralreg.cli import register as module

    def half(registration: Any, path: Path) -> None:
        path.write_text('{"half":')
        raise error

    (images / "out/t.nii.gz").write_text("older")
    before = sorted(images.rglob("*"))
    monkeypatch.setattr(module, "write_summary", half)
    result = call(*register(images))
    assert result.exit_code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert len(result.stderr.splitlines()) == 1
    assert sorted(images.rglob("*")) == before
    assert (images / "out/t.nii.gz").read_text() == "older"
