"""What this machine has, which backend serves each op and why not the others, and whether its numbers hold.

The self-check computes every op on small random input with the backend that serves it, in float32, and
compares value and gradients with the float64 reference on the same input.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.kernels.backends import native, registry
from neuralreg.kernels.spec import FieldSpec, HashGrid
from neuralreg.machine import cpu_name, package_version

PACKAGES = ("neuralreg", "torch", "numpy", "nibabel", "SimpleITK", "nilearn", "matplotlib", "triton")
SETTINGS = (
    "NEURALREG_BACKEND",
    "NEURALREG_CPU_ISA",
    "OMP_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "TRITON_INTERPRET",
)


@dataclass(frozen=True)
class Case:
    """One op on small input: ``call(tensors, backend)`` computes in the tensors' dtype on their device."""

    tensors: tuple[Tensor, ...]
    call: Callable[[Any, str | None], Tensor]
    forward_tolerance: float
    gradient_tolerance: float


@dataclass(frozen=True)
class Check:
    """Outcome of one op's self-check; errors are relative to the largest magnitude of the float64 result."""

    op: str
    device: str
    backend: str
    forward_error: float
    forward_tolerance: float
    gradient_error: float
    gradient_tolerance: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        return (
            not self.failure
            and self.forward_error <= self.forward_tolerance
            and self.gradient_error <= self.gradient_tolerance
        )


@dataclass(frozen=True)
class Service:
    """Which backend serves an op on a device ("" when none can), and why each other one does not."""

    op: str
    device: str
    backend: str
    others: dict[str, str]


def examine() -> dict[str, Any]:
    """Everything that `neuralreg doctor` shows, in plain types.

    Returns:
        ``versions``, ``hardware``, ``settings``, ``backends`` (as ``kernels.backends()``), ``services`` and
        ``checks`` (lists of dicts), ``healthy`` (bool) and ``verdict`` (one line).
    """
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    names = sorted(cases())
    services = [serving(op, device) for device in devices for op in names]
    checks = [check(op, device) for device in devices for op in names]
    return {
        "versions": versions(),
        "hardware": hardware(),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
        "backends": registry.backends(),
        "services": [asdict(service) for service in services],
        "checks": [asdict(c) | {"passed": c.passed} for c in checks],
        "healthy": all(c.passed for c in checks),
        "verdict": verdict(checks),
    }


def versions() -> dict[str, str]:
    """Python and the packages that matter here; "not installed" where one is missing."""
    return {
        "python": platform.python_version(),
        **{name: package_version(name) for name in PACKAGES},
        "CUDA of torch": torch.version.cuda or "none",
    }


def hardware() -> dict[str, Any]:
    """Processor, instruction set in use and usable ones, threads, GPUs."""
    try:
        isa, isas = native.cpu_isa(), native.cpu_isas()
        bfloat16 = "faster than float32" if native.multiplies_bfloat16() else "emulated"
    except registry.BackendError:
        isa, isas, bfloat16 = "none", [], "none"
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction set": isa,
        "instruction sets usable": isas,
        "bfloat16 products": bfloat16,
        "gpus": [torch.cuda.get_device_name(index) for index in gpus],
    }


def serving(op: str, device: str) -> Service:
    """Which backend serves ``op`` on ``device`` under the present settings."""
    try:
        chosen = registry.choose(op, torch.device(device))
    except registry.BackendError as error:
        chosen, others = "", {name: str(error) for name in registry.BACKENDS}
    else:
        others = {name: registry.reason_against(op, name, device) for name in registry.BACKENDS}
    others = {name: reason or f"comes after {chosen}" for name, reason in others.items() if name != chosen}
    return Service(op, device, chosen, others)


def check(op: str, device: str) -> Check:
    """Value and gradients of ``op`` on its serving backend in float32 against the reference in float64."""
    case = cases()[op]
    try:
        backend = registry.choose(op, torch.device(device))
        value, gradients = _run(case, device, torch.float32, None)
        expected, expected_gradients = _run(case, device, torch.float64, "reference")
    except (RuntimeError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        return Check(op, device, "", float("nan"), 0.0, float("nan"), 0.0, f"{type(error).__name__}: {text}")
    return Check(
        op,
        device,
        backend,
        _error(value, expected),
        case.forward_tolerance,
        max(map(_error, gradients, expected_gradients), default=0.0),
        case.gradient_tolerance,
    )


def verdict(checks: list[Check]) -> str:
    """One line: what failed, or that all is well and on what it runs."""
    failed = [c for c in checks if not c.passed]
    if failed:
        names = ", ".join(dict.fromkeys(c.op for c in failed))
        return f"{len(failed)} of {len(checks)} checks failed: {names}"
    slow = [c.op for c in checks if c.backend == "reference"]
    if not slow:
        return f"all {len(checks)} checks passed"
    what = "every op" if len(slow) == len(checks) else ", ".join(dict.fromkeys(slow))
    line = (
        f"all {len(checks)} checks passed; on the reference backend (plain torch, correct and slow): {what}"
    )
    serves, reason = registry.available("cpu")
    return line if serves else f"{line}; cpu: {reason}"


def cases() -> dict[str, Case]:
    """The self-check's input for every op.

    Sampling positions keep clear of voxel boundaries, where gradients jump and no two precisions agree.
    """
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    def between(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=draw)

    def off_lattice(scale: int, *shape: int) -> Tensor:
        return torch.randint(-scale * 16, scale * 16, shape, generator=draw) / 16 + 1 / 32

    image = normal(2, 2, 7, 8, 9)
    moved = off_lattice(2, 2, 3, 6, 7, 8)
    affine = torch.cat([torch.eye(3), torch.full((3, 1), 0.25)], 1).repeat(2, 1, 1)
    grid = between(-1.1, 1.1, 2, 5, 6, 7, 3)
    fixed, warped = normal(1, 1, 12, 13, 14), normal(1, 1, 12, 13, 14)
    displacement = 0.3 * normal(1, 3, 8, 9, 10)
    points = between(-1, 1, 300, 3)
    hashed = HashGrid(levels=4, features=2, base=3, finest=17, log2_table_size=9)
    spec = FieldSpec(ndim=3, encoding=hashed, hidden=(16, 16), out=3)
    parameters = [0.3 * normal(*shape) for shape in spec.parameter_shapes()]
    sine = FieldSpec(hidden=(16, 16), activation="sine", omega=(3.0, 1.5))
    both = [0.3 * normal(*shape) for _ in range(2) for shape in sine.parameter_shapes()]
    return {
        "grid_sample": Case(
            (image, grid),
            lambda t, b: kernels.grid_sample(t[0], t[1], align_corners=True, backend=b),
            1e-5,
            1e-4,
        ),
        "warp": Case((image, moved, affine), lambda t, b: kernels.warp(*t, backend=b), 1e-5, 1e-4),
        "warp_with_gradient": Case(
            (image, moved, affine),
            lambda t, b: torch.cat([x.flatten() for x in kernels.warp_with_gradient(*t, backend=b)]),
            1e-5,
            1e-4,
        ),
        "lncc": Case((fixed, warped), lambda t, b: kernels.lncc(t[0], t[1], window=5, backend=b), 1e-5, 1e-3),
        "ssim": Case((fixed, warped), lambda t, b: kernels.ssim(t[0], t[1], window=5, backend=b), 1e-5, 1e-3),
        "box_mean": Case(
            (image,), lambda t, b: kernels.box_mean(t[0], window=(2, 3, 5), backend=b), 1e-6, 1e-6
        ),
        "jacobian_determinant": Case(
            (displacement,), lambda t, b: kernels.jacobian_determinant(*t, backend=b), 1e-5, 1e-5
        ),
        "jacobian_loss": Case(
            (displacement,), lambda t, b: kernels.jacobian_loss(t[0], threshold=0.5, backend=b), 1e-5, 1e-4
        ),
        "jacobian_penalty": Case(
            (0.4 * normal(200, 3, 3),),
            lambda t, b: kernels.jacobian_penalty(t[0], threshold=0.5, backend=b),
            1e-5,
            1e-4,
        ),
        "diffusion_loss": Case(
            (displacement,), lambda t, b: kernels.diffusion_loss(*t, backend=b), 1e-5, 1e-5
        ),
        "bending_loss": Case((displacement,), lambda t, b: kernels.bending_loss(*t, backend=b), 1e-5, 1e-5),
        "refine": Case(
            (moved[:1], image[:1, :1, :6, :7, :8], image[:1, 1:]),
            lambda t, b: kernels.refine(t[0], t[1], t[2], steps=2, window=5, backend=b),
            1e-3,
            0.0,
        ),
        "fourier_encode": Case(
            (points, normal(3, 16)), lambda t, b: kernels.fourier_encode(*t, backend=b), 2e-5, 2e-5
        ),
        "hash_encode": Case(
            (points, parameters[0]),
            lambda t, b: kernels.hash_encode(t[0], t[1], hashed, backend=b),
            1e-5,
            1e-4,
        ),
        "field": Case(
            (points, *parameters), lambda t, b: kernels.field(t[0], list(t[1:]), spec, backend=b), 1e-5, 1e-4
        ),
        "field_jet": Case(
            (points, *parameters),
            lambda t, b: torch.cat(
                [v.flatten() for v in kernels.field_jet(t[0], list(t[1:]), spec, backend=b)]
            ),
            1e-5,
            1e-3,
        ),
        "gradient_inverse_consistency": Case(
            (points, *both),
            lambda t, b: kernels.gradient_inverse_consistency(t[0], t[1:7], t[7:], sine, backend=b),
            1e-5,
            1e-4,
        ),
        "conv_relu_conv": Case(
            (displacement, normal(10, 3, 3, 3, 3), normal(10), normal(3, 10, 3, 3, 3), normal(3)),
            lambda t, b: kernels.conv_relu_conv(*t, backend=b),
            1e-5,
            1e-4,
        ),
        "table_adam": Case(
            (parameters[0], normal(*parameters[0].shape).relu(), *torch.zeros(2, *parameters[0].shape)),
            _adam_step,
            1e-5,
            0.0,
        ),
    }


def _adam_step(tensors: tuple[Tensor, ...], backend: str | None) -> Tensor:
    table, grad, mean, square = [t.detach().clone() for t in tensors]
    steps = torch.zeros(len(table), dtype=torch.int32, device=table.device)
    kernels.table_adam(table, grad, mean, square, steps, lr=0.1, backend=backend)
    return table


def _run(
    case: Case, device: str, dtype: torch.dtype, backend: str | None
) -> tuple[Tensor, tuple[Tensor, ...]]:
    tensors = tuple(t.to(device, dtype).requires_grad_() for t in case.tensors)
    value = case.call(tensors, backend)
    upstream = torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
    if not value.requires_grad:  # an op without derivatives
        return value, ()
    return value.detach(), torch.autograd.grad(value, tensors, upstream.to(device, dtype))


def _error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference relative to the largest expected magnitude; infinite unless all is finite."""
    if not bool(actual.isfinite().all()):
        return float("inf")
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((actual.double() - expected).abs().max() / scale)
