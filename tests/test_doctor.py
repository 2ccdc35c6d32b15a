"""`neuralreg doctor`: its self-check passes here, covers every op, and notices a wrong kernel."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from neuralreg import doctor, kernels
from neuralreg.kernels.backends import registry
from tests.processes import python


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return doctor.examine()


def test_every_op_has_a_check() -> None:
    assert sorted(doctor.cases()) == registry.backends()["reference"]["ops"]


def test_this_machine_is_well(report: dict[str, Any]) -> None:
    assert report["healthy"], report["verdict"]
    assert len(report["services"]) == len(report["checks"]) >= len(doctor.cases())
    for service in report["services"]:
        assert service["backend"] in registry.BACKENDS
        assert set(service["others"]) == set(registry.BACKENDS) - {service["backend"]}
        assert all(service["others"].values()), "every backend that does not serve has a reason"


def test_checks_are_far_from_their_tolerance_and_not_blind(report: dict[str, Any]) -> None:
    for check in report["checks"]:
        assert check["forward_error"] <= 0.5 * check["forward_tolerance"], check
        assert check["gradient_error"] <= 0.5 * check["gradient_tolerance"], check
    assert any(check["forward_error"] > 0 for check in report["checks"])


def test_report_names_versions_and_hardware(report: dict[str, Any]) -> None:
    assert {"python", "torch", "numpy"} <= report["versions"].keys()
    assert report["hardware"]["cpu"]
    assert report["hardware"]["threads"] >= 1
    json.dumps(report, allow_nan=False)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value * 1.001,
        lambda value: value * float("nan"),
        lambda value: value.detach() + 0.999 * (value - value.detach()),
    ],
    ids=["value", "nan", "gradient"],
)
def test_wrong_numbers_fail(spoil: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    right = kernels.warp

    def wrong(*args: Any, backend: str | None = None, **options: Any) -> Tensor:
        value = right(*args, backend=backend, **options)
        return value if backend == "reference" else spoil(value)

    monkeypatch.setattr(kernels, "warp", wrong)
    check = doctor.check("warp", "cpu")
    assert not check.passed
    assert doctor.verdict([check]) == "1 of 1 checks failed: warp"


def test_backend_that_cannot_serve_is_a_failed_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_environment", "triton")
    check = doctor.check("warp", "cpu")
    assert not check.passed
    assert "'triton' cannot serve" in check.failure
    assert doctor.serving("warp", "cpu").backend == ""


def test_reference_only_is_well_and_said_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_broken", {"cpu": "no C++ compiler found"})
    monkeypatch.setattr(registry, "_cannot_run", lambda backend: "no kernel in this version")
    check = doctor.check("warp", "cpu")
    assert check.passed
    assert check.backend == "reference"
    line = doctor.verdict([check])
    assert "on the reference backend" in line
    assert line.endswith("cpu: no C++ compiler found")


def test_command_prints_tables_and_exits_zero() -> None:
    done = python("-m", "neuralreg", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    for expected in ("Versions", "Hardware", "What serves each op", "jacobian_loss", "checks passed"):
        assert expected in done.stdout


def test_command_as_json_exits_one_when_nothing_can_serve() -> None:
    done = python("-m", "neuralreg", "doctor", "--json", NEURALREG_BACKEND="cuda")
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert not report["healthy"]
    assert report["settings"]["NEURALREG_BACKEND"] == "cuda"
