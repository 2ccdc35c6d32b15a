"""The backend registry: explicit choices are taken or refused, the automatic one falls back aloud."""

from __future__ import annotations

import logging
import os

import pytest
import torch

from neuralreg.kernels.backends import native, registry
from neuralreg.kernels.backends.registry import BackendError
from tests.processes import python

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def _own_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for every test: no kernels, nothing chosen, nothing told."""
    monkeypatch.setattr(registry, "_functions", {name: {} for name in registry.BACKENDS})
    monkeypatch.setattr(registry, "_unverified", {name: set() for name in registry.BACKENDS})
    monkeypatch.setattr(registry, "_broken", {})
    monkeypatch.setattr(registry, "_stack", [])
    monkeypatch.setattr(registry, "_environment", None)
    monkeypatch.setattr(registry, "_fallback_told", False)
    monkeypatch.setattr(registry, "_cannot_run", lambda backend: "")


def _kernel() -> None: ...


def test_automatic_choice_prefers_native_kernels() -> None:
    for backend in ("cpu", "cuda", "triton"):
        registry.register("op", backend, _kernel)
    assert registry.choose("op", CPU) == "cpu"
    assert registry.choose("op", CUDA) == "cuda"
    assert registry.implementation("op", "cpu") is _kernel


def test_automatic_choice_on_cuda_takes_triton_without_cuda() -> None:
    registry.register("op", "triton", _kernel)
    assert registry.choose("op", CUDA) == "triton"


def test_unverified_kernel_is_passed_over_but_can_be_asked_for() -> None:
    registry.register("op", "cuda", _kernel, verified=False)
    registry.register("op", "triton", _kernel)
    assert registry.choose("op", CUDA) == "triton"
    assert registry.choose("op", CUDA, "cuda") == "cuda"
    assert registry.reason_against("op", "cuda", "cuda") == "not verified on hardware"
    assert registry.backends()["cuda"]["unverified"] == ["op"]
    registry.register("op", "cuda", _kernel)
    assert registry.choose("op", CUDA) == "cuda"


def test_fallback_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "neuralreg"):
        assert registry.choose("op", CPU) == "reference"
        assert registry.choose("other", CPU) == "reference"
        assert registry.choose("op", CUDA) == "reference"
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "op runs on the reference backend" in message
    assert "cpu: no kernel in this version" in message


def test_a_choice_that_serves_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    registry.register("op", "cpu", _kernel)
    with caplog.at_level(logging.WARNING, "neuralreg"):
        registry.choose("op", CPU)
        registry.choose("op", CPU, "reference")
    assert not caplog.records


def test_order_of_explicit_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.register("op", "cpu", _kernel)
    monkeypatch.setattr(registry, "_environment", "reference")
    assert registry.choose("op", CPU) == "reference"
    with registry.use_backend("cpu"):
        assert registry.choose("op", CPU) == "cpu"
        with registry.use_backend("reference"):
            assert registry.choose("op", CPU) == "reference"
            assert registry.choose("op", CPU, "cpu") == "cpu"
        assert registry.choose("op", CPU) == "cpu"
    assert registry.choose("op", CPU) == "reference"


def test_use_backend_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), registry.use_backend("reference"):
        raise KeyError
    assert registry._stack == []


@pytest.mark.parametrize(
    ("op", "device", "requested", "reason"),
    [
        ("op", CUDA, "cpu", "serves cpu tensors, these are on cuda"),
        ("other", CPU, "cpu", "no other kernel in this version"),
        ("op", CPU, "triton", "no kernel in this version"),
        ("op", CPU, "metal", "no backend 'metal'; there are reference, cpu, cuda, triton"),
    ],
)
def test_explicit_choice_that_cannot_serve_raises(
    op: str, device: torch.device, requested: str, reason: str
) -> None:
    registry.register("op", "cpu", _kernel)
    with pytest.raises(BackendError, match=reason):
        registry.choose(op, device, requested)


def test_environment_that_cannot_serve_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_environment", "cuda")
    with pytest.raises(BackendError, match="'cuda' cannot serve"):
        registry.choose("op", CPU)


def test_backend_that_cannot_run_serves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_cannot_run", lambda backend: "no compiler" if backend == "cpu" else "")
    registry.register("op", "cpu", _kernel)
    assert registry.available("cpu") == (False, "no compiler")
    assert registry.choose("op", CPU) == "reference"
    for call in (
        lambda: registry.choose("op", CPU, "cpu"),
        lambda: registry.implementation("op", "cpu"),
        lambda: registry.use_backend("cpu"),
    ):
        with pytest.raises(BackendError, match="no compiler"):
            call()
    assert registry.backends()["cpu"] == {
        "available": False,
        "reason": "no compiler",
        "ops": ["op"],
        "unverified": [],
        "detail": "",
    }


def test_implementation_says_what_is_missing() -> None:
    with pytest.raises(BackendError, match="op: the backend 'cpu' cannot serve: no kernel in this version"):
        registry.implementation("op", "cpu")
    with pytest.raises(BackendError, match="plain torch"):
        registry.implementation("op", "reference")
    with pytest.raises(BackendError, match="no backend 'gpu'"):
        registry.register("op", "gpu", _kernel)


def test_backends_lists_public_ops_only() -> None:
    for op in ("op", "op_forward", "op_backward"):
        registry.register(op, "triton", _kernel)
    report = registry.backends()
    assert list(report) == list(registry.BACKENDS)
    assert report["triton"]["ops"] == report["reference"]["ops"] == ["op"]


def test_choice_is_traceable() -> None:
    registry.register("op", "cpu", _kernel)

    def double_on_cpu(x: torch.Tensor) -> torch.Tensor:
        return 2 * x if registry.choose("op", x.device, None) == "cpu" else x

    compiled = torch.compile(double_on_cpu, fullgraph=True, backend="eager")
    x = torch.ones(3)
    assert torch.equal(compiled(x), 2 * x)
    with registry.use_backend("reference"):
        assert torch.equal(compiled(x), x)


def test_fallback_is_traceable() -> None:
    def choice(x: torch.Tensor) -> torch.Tensor:
        return x + (registry.choose("op", x.device) == "reference")

    x = torch.ones(3)
    assert torch.equal(torch.compile(choice, fullgraph=True, backend="eager")(x), x + 1)


def _usable() -> list[str]:
    try:
        return native.cpu_isas()
    except BackendError:
        return []


@pytest.mark.skipif(not _usable(), reason="no native CPU module is built")
def test_forced_instruction_set_is_loaded() -> None:
    isa = _usable()[-1]
    code = (
        "from neuralreg.kernels.backends import native; print(native.cpu_isa(), native.load_cpu().__name__)"
    )
    done = python("-c", code, NEURALREG_CPU_ISA=isa)
    assert done.stdout.split() == [isa, f"neuralreg.kernels.backends._cpu_{isa}"], done.stderr


def test_unknown_instruction_set_is_refused() -> None:
    code = (
        "from neuralreg.kernels.backends import native, registry\n"
        "try:\n    native.load_cpu()\nexcept registry.BackendError as error:\n    print(error)"
    )
    done = python("-c", code, NEURALREG_CPU_ISA="sse9")
    assert done.stdout.strip() == "NEURALREG_CPU_ISA=sse9: it is one of avx512, avx2, base", done.stderr


def test_missing_module_gives_the_reason_of_the_build(
    monkeypatch: pytest.MonkeyPatch, tmp_path: os.PathLike[str]
) -> None:
    note = os.path.join(tmp_path, "note.txt")
    with open(note, "w") as stream:
        stream.write("no C++ compiler found\n")
    monkeypatch.setattr(native, "_modules", {})
    monkeypatch.setattr(native, "_NOTE", type(native._NOTE)(note))

    def missing(isa: str) -> None:
        raise ModuleNotFoundError(isa)

    monkeypatch.setattr(native, "_import", missing)
    with pytest.raises(BackendError, match="_cpu_base is not built: no C\\+\\+ compiler found"):
        native.cpu_isas()
    os.unlink(note)
    with pytest.raises(BackendError, match="pip install -e"):
        native.cpu_isas()
