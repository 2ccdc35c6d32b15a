"""The reference shows every public name, and the site builds without a dead link between its pages."""

from __future__ import annotations

import importlib
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import neuralreg
from neuralreg import kernels
from tests.processes import ROOT, python

REFERENCE = sorted((ROOT / "docs/api").glob("*.md"))
SHOWN = [name for page in REFERENCE for name in re.findall(r"^::: (\S+)$", page.read_text(), re.M)]


def meant(name: str) -> Any:
    """What a dotted name stands for: as much of it as is a module, then attributes."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"nothing is called {name}")


@pytest.mark.parametrize("module", [neuralreg, kernels])
def test_every_public_name_is_in_the_reference(module: Any) -> None:
    shown = {id(meant(name)) for name in SHOWN}
    assert not [name for name in module.__all__ if id(getattr(module, name)) not in shown]


@pytest.mark.parametrize("name", SHOWN)
def test_what_the_reference_shows_exists_and_is_explained(name: str) -> None:
    assert (meant(name).__doc__ or "").strip()


@pytest.mark.slow
@pytest.mark.skipif(not find_spec("mkdocs") or not find_spec("mkdocstrings"), reason="needs the extra docs")
def test_the_site_builds(tmp_path: Path) -> None:
    done = python("-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api/kernels/index.html").read_text()
    for name in ("lncc.lncc", "warp", "field.field_jet"):
        assert f'id="neuralreg.kernels.{name}"' in page
