"""--precision: products in bfloat16 while a map is fitted, refused where no kernel gains by them."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.kernels import field, use_backend
from neuralreg.kernels.backends import native, registry
from neuralreg.kernels.spec import FieldSpec, flatten, unflatten
from neuralreg.methods import ncf, nephi, nir
from neuralreg.precision import check_precision
from tests.small import call, pair_folder, register
from tests.test_nir import SMALL, inner, shifted

FITS: dict[str, tuple[Any, Any]] = {
    "nir": (nir, SMALL),
    "ncf": (
        ncf,
        replace(ncf.PRESETS["fast"], hidden=(32, 32), iterations=60, lattice_step=2),
    ),
    "nephi": (
        nephi,
        replace(nephi.PRESETS["shapes"], hidden=(16, 16), frequencies=8, iterations=30),
    ),
}


NATIVE = pytest.mark.skipif(not registry.available("cpu")[0], reason="no native module")


@NATIVE
@pytest.mark.parametrize(
    ("name", "grid"),
    [("nir", (40, 36)), ("nir", (16, 18, 15)), ("ncf", (40, 36)), ("nephi", (40, 36))],
    ids=str,
)
def test_a_fit_in_bfloat16_ends_near_the_one_in_float32(name: str, grid: tuple[int, ...]) -> None:
    method, options = FITS[name]
    pair, truth = shifted(grid)
    found = {}
    with use_backend("cpu"):
        for precision in ("fp32", "bf16"):
            map_, _ = method.fit(pair, replace(options, precision=precision))
            found[precision] = method.dense_displacement(map_, grid)
            assert all(m.spec.products == "full" for m in map_.modules() if hasattr(m, "spec"))
    error = inner((found["bf16"] - truth).square().sum(0, keepdim=True).sqrt())
    assert error.mean() < 0.3, "of 1.5 voxels"
    apart = inner((found["bf16"] - found["fp32"]).abs())
    assert 0 < apart.mean() < 0.05, "other products, nearly the same map"


@NATIVE
@pytest.mark.parametrize(("supported", "asked"), [(True, None), (False, "cpu"), (False, None)])
def test_a_cpu_without_such_products_refuses_and_says_what_to_do(
    supported: bool, asked: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pair_folder(tmp_path)
    monkeypatch.setattr(native, "multiplies_bfloat16", lambda: supported)
    with contextlib.nullcontext() if asked is None else use_backend(asked):
        result = call(*register(folder, "--precision", "bf16"))
    if supported or asked:
        assert result.exit_code == 0, result.output
        assert json.loads((folder / "out/s.json").read_text())["options"]["precision"] == "bf16"
        return
    assert result.exit_code == 2
    assert "precision bf16 needs a GPU, or a CPU that multiplies bfloat16" in " ".join(result.stderr.split())
    assert "NEURALREG_BACKEND=cpu" in result.stderr.replace("\n", " ")
    assert not list((folder / "out").iterdir())


def test_emulation_alone_is_no_answer() -> None:
    with pytest.raises(InputError, match="plain torch only emulates it"):
        check_precision(replace(SMALL, precision="bf16"), torch.device("meta"))


@pytest.mark.parametrize("method", ["nir", "ncf"])
def test_the_flag_reaches_the_fit(method: str, tmp_path: Path) -> None:
    folder = pair_folder(tmp_path)
    with use_backend("reference"):
        result = call(*register(folder, "--precision", "bf16", "--method", method))
    assert result.exit_code == 0, result.output
    assert json.loads((folder / "out/s.json").read_text())["options"]["precision"] == "bf16"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "fp16"], "precision must be one of fp32, bf16"),
        (["--precision", "bf15", "--method", "nephi"], "precision must be one of fp32, bf16"),
        (["--option", "precision=bf16"], "use --precision"),
    ],
)
def test_what_cannot_be_is_told(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = call(*register(pair_folder(tmp_path), *arguments))
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.split())


def test_the_op_rounds_factors_and_nothing_else() -> None:
    spec = FieldSpec(ndim=3, hidden=(16, 16), products="bfloat16")
    assert unflatten(*flatten(spec)) == spec
    x = torch.rand(50, 3)
    params = [torch.randn(shape) / 4 for shape in spec.parameter_shapes()]
    full = replace(spec, products="full")
    exact = field(x, params, full, backend="reference")
    rounded = field(x, params, spec, backend="reference")
    assert 0 < (rounded - exact).abs().max() < 0.02
    params[2] = torch.randint(-4, 5, (16, 16)) / 4  # the one wide layer; what it reads are few bits, too
    params[0], params[1], x = params[0].bfloat16().float(), torch.zeros(16), torch.eye(3)
    assert torch.equal(
        field(x, params, spec, backend="reference"), field(x, params, full, backend="reference")
    )
    with pytest.raises(ValueError, match="take float32 tensors"):
        field(x.double(), [p.double() for p in params], spec, backend="reference")
