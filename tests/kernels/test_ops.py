"""Every registered op under torch.library.opcheck, every public function under torch.compile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from neuralreg import kernels
from neuralreg.kernels.backends import registry

from .calls import CASES, TWICE, Call, calls, results, second_results
from .common import assert_near, serving

PUBLIC = (
    *("grid_sample", "warp", "warp_with_gradient", "lncc", "ssim", "jacobian_determinant", "jacobian_loss"),
    *(
        "box_mean",
        "jacobian_penalty",
        "log_jacobian",
        "diffusion_loss",
        "bending_loss",
        "compose",
        "integrate",
        "invert",
        "refine",
    ),
    *("fourier_encode", "hash_encode", "field", "field_jet", "table_adam", "conv_relu_conv"),
    "gradient_inverse_consistency",
)
BACKENDS = ["reference"] + (["cpu"] if registry.available("cpu")[0] else [])


def registered() -> set[str]:
    """Names of all ops in the namespace neuralreg."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("neuralreg::") for name in names if name.startswith("neuralreg::")}


class Recorder(TorchDispatchMode):
    """Keeps every call of a registered op that happens inside, backward passes included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "neuralreg":
            self.seen.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def record(case: str, call: Call) -> Recorder:
    """Every registered op that a call and its derivatives reach."""
    with Recorder() as recorder:
        results(call, "cpu")
        if case.split()[0] in TWICE:
            second_results(call, "cpu")
    return recorder


def name_of(op: Any) -> str:
    return op._schema.name.removeprefix("neuralreg::")


def copied(value: Any, differentiable: bool) -> Any:
    """Arguments of a recorded call as leaves of their own."""
    if isinstance(value, Tensor):
        wants = differentiable and value.requires_grad
        return value.detach().clone().requires_grad_(wants)
    if isinstance(value, (list, tuple)):
        return type(value)(copied(v, differentiable) for v in value)
    return value


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native module: no registered op runs")
@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    recorder = record(case, calls(torch.float32)[case])
    assert recorder.seen
    for op, args, kwargs in recorder.seen:
        torch.library.opcheck(op, copied(args, not name_of(op).endswith("backward")), kwargs)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native module: no registered op runs")
def test_the_calls_reach_every_registered_op() -> None:
    reached = set()
    for case in CASES:
        reached |= {name_of(op) for op, _, _ in record(case, calls(torch.float32)[case]).seen}
    assert reached == registered()


def test_every_public_function_has_a_call() -> None:
    assert {case.split()[0] for case in CASES} == set(PUBLIC)
    assert all(callable(getattr(kernels, name)) for name in PUBLIC)


# the reference is plain torch: one call of each public function is enough
COMPILED = [(case, name) for name in BACKENDS for case in CASES if name != "reference" or case in PUBLIC]


@pytest.mark.parametrize(("case", "backend"), COMPILED)
def test_compiles_in_one_graph(case: str, backend: str) -> None:
    call = calls(torch.float32)[case]
    expected = results(call, backend)
    torch._dynamo.reset()
    compiled = torch.compile(call[0], fullgraph=True, backend="aot_eager")
    for one, other in zip(results(call, backend, compiled), expected, strict=True):
        assert_near(one, other, 1e-5)


def test_the_automatic_choice_compiles_in_one_graph() -> None:
    call = calls(torch.float32)["warp"]
    torch._dynamo.reset()
    compiled = torch.compile(call[0], fullgraph=True, backend="aot_eager")
    for one, other in zip(results(call, None, compiled), results(call, None), strict=True):
        assert_near(one, other, 1e-6)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native module to compare with")
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_cpu_equals_reference(case: str, dtype: torch.dtype) -> None:
    call = calls(dtype)[case]
    for one, other in zip(results(call, "cpu"), results(call, "reference"), strict=True):
        assert one.dtype == other.dtype
        # float32: gradients to coordinates of random images jump where rounding moves a point over a plane
        assert_near(one, other, 1e-9 if dtype == torch.float64 else 1e-4)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native module to compare with")
@pytest.mark.parametrize("case", [case for case in CASES if case.split()[0] in TWICE])
def test_second_derivatives_equal_the_references(case: str) -> None:
    call = calls(torch.float64)[case]
    for one, other in zip(second_results(call, "cpu"), second_results(call, "reference"), strict=True):
        assert_near(one, other, 1e-9)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native module to compare with")
def test_the_cpu_backend_serves_every_native_op() -> None:
    made_of_others = ("compose", "integrate", "invert", "log_jacobian")
    for name in (name for name in PUBLIC if name not in made_of_others):
        assert any(p.values[0].backend == "cpu" for p in serving(name)), f"{name} has no cpu kernel"


def test_use_backend_and_argument_choose_the_same() -> None:
    call = calls(torch.float64)["warp"]
    with kernels.use_backend("reference"), Recorder() as recorder:
        inside = results(call, None)
    assert not recorder.seen  # plain torch, no registered op
    for one, other in zip(inside, results(call, "reference"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_backend_that_cannot_serve_says_why(name: str) -> None:
    image = torch.rand(1, 1, 5, 6)
    with pytest.raises(registry.BackendError, match=f"warp.*{name}.*: ."):
        kernels.warp(image, torch.zeros(1, 2, 5, 6), backend=name)
