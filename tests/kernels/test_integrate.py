"""integrate on every backend: against closed forms, another scheme and plain autograd; its memory."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import compose, integrate
from neuralreg.kernels import integration as steps_of

from .common import On, assert_near, leaf, serving, strided
from .sampling_oracle import identity
from .test_flow import linear, smooth

ON = serving("warp")  # it is made of warps
SCHEMES = ["squaring", "euler", "rk4"]
# Largest error over a rotation by 0.3: squaring and Euler are of first order in their step, RK4 of fourth.
ERRORS = {"squaring": (7, 2e-2), "euler": (64, 2e-2), "rk4": (4, 1e-6)}


def weights(value: Tensor) -> Tensor:
    return torch.linspace(-1, 2, value.numel(), dtype=value.dtype).view_as(value)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_rotation_is_the_exponential_of_its_velocity(on: On, scheme: str) -> None:
    sizes, angle = [17, 15], 0.3
    centre = torch.tensor([8.0, 7.0]).double()
    generator = angle * torch.tensor([[0.0, -1.0], [1.0, 0.0]]).double()
    eye = torch.eye(2, dtype=torch.float64)
    velocity = linear(eye + generator, -generator @ centre, sizes)
    rotation = torch.linalg.matrix_exp(generator)
    expected = linear(rotation, centre - rotation @ centre, sizes)
    steps, bound = ERRORS[scheme]
    inside = (identity(sizes) - centre.view(2, 1, 1)).square().sum(0).sqrt() < 6  # never leaves the grid
    error = (on(integrate, velocity, steps, scheme) - expected).abs().amax(1)[0]
    assert float(error[inside].max()) < bound
    worse = (on(integrate, velocity, max(1, steps // 2), scheme) - expected).abs().amax(1)[0]
    assert float(worse[inside].max()) > 1.8 * float(error[inside].max())


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_constant_velocity_is_the_displacement(on: On, scheme: str) -> None:
    v = torch.full((2, 3, 5, 4, 6), 0.75, dtype=torch.float64)
    assert_near(on(integrate, v, 5, scheme), v, 1e-12)
    assert torch.count_nonzero(on(integrate, 0 * v, 5, scheme)) == 0


@pytest.mark.parametrize("on", ON)
def test_steps_and_schemes_agree_where_both_are_fine(on: On) -> None:
    v = smooth([16, 17, 15], 1.5)
    exact = on(integrate, v, 16, "rk4")
    assert_near(on(integrate, v, 8, "squaring"), exact, 0.05)  # every squaring interpolates
    assert_near(on(integrate, v, 64, "euler"), exact, 0.01)
    inside = (slice(None), slice(None), *[slice(3, -3)] * 3)
    there_and_back = on(compose, on(integrate, -v, 8, "rk4"), exact)[inside]
    assert float(there_and_back.abs().max()) < 0.05 * float(exact.abs().max())
    assert torch.equal(on(integrate, v, 0, "squaring"), v)
    assert_near(on(integrate, v, 1, "euler"), v, 1e-12)


@pytest.mark.parametrize("on", serving("warp", "cpu"))
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(("steps", "sizes"), [(1, [5, 6, 4]), (6, [3, 4, 5]), (16, [6, 5]), (2, [1, 6, 5])])
def test_gradient_is_that_of_plain_autograd(on: On, scheme: str, steps: int, sizes: list[int]) -> None:
    v = torch.randn(2, len(sizes), *sizes, dtype=torch.float64)
    results = []
    for where in (on, On("reference", "cpu")):
        inner = leaf(v)
        value = where(integrate, inner, steps, scheme)
        results.append([value.detach(), *torch.autograd.grad((weights(value) * value).sum(), inner)])
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 1e-11)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_gradcheck(on: On, scheme: str) -> None:
    v = smooth([5, 6], 0.8) + 0.013  # away from lattice points
    assert torch.autograd.gradcheck(lambda x: on(integrate, x, 3, scheme), (leaf(v),), fast_mode=True)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_backward_pass_holds_few_fields(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields alive at once do not grow with the steps, and few steps are made again."""
    v = torch.randn(1, 2, 6, 5, dtype=torch.float64)
    made: list[Any] = []
    most = 0
    right = steps_of._step

    def counted(*args: Any) -> Tensor:
        nonlocal most
        out = right(*args)
        made.append(weakref.ref(out))
        most = max(most, sum(ref() is not None for ref in made))
        return out

    monkeypatch.setattr(steps_of, "_step", counted)
    for steps, again in ((7, 7), (15, 23), (35, 77)):
        made.clear()
        most = 0
        steps_of.backward(torch.ones_like(v), v, steps, scheme, "cpu")
        assert len(made) == again
        assert most <= steps_of.CHECKPOINTS + 2  # the field at work and the one that it becomes


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_types_strides_and_empty_batches(on: On, scheme: str) -> None:
    v = smooth([9, 8, 7], 1.0, batch=2)
    exact = on(integrate, v, 4, scheme)
    single = on(integrate, v.float(), 4, scheme)
    assert single.dtype == torch.float32
    assert_near(single, exact, 1e-5)  # coordinates near 10 in float32
    half = leaf(v.half())
    value = on(integrate, half, 4, scheme)
    (gradient,) = torch.autograd.grad(value.sum(), half)
    assert value.dtype == gradient.dtype == torch.float16
    assert_near(value, exact, 2e-3)
    for view in strided(v):
        assert_near(on(integrate, view, 4, scheme), exact, 1e-13)
    assert on(integrate, v[:0], 4, scheme).shape == (0, 3, 9, 8, 7)
    v[0, 1, 4, 4, 4] = float("nan")
    assert bool(on(integrate, v, 4, scheme).isnan().any())


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.rand(1, 3, 5, 6),), "displacement"),
        ((torch.ones(1, 2, 5, 6).int(),), "float"),
        ((torch.rand(1, 2, 5, 6), -1), "steps"),
        ((torch.rand(1, 2, 5, 6), 0, "euler"), "steps"),
        ((torch.rand(1, 2, 5, 6), 3, "midpoint"), "scheme.*midpoint"),
    ],
)
def test_wrong_arguments(on: On, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on(integrate, *arguments)
