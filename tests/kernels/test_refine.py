"""refine on every backend, against a loop of public ops and torch.optim.Adam in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import diffusion_loss, lncc, refine, refine_state, refine_step, warp

from .common import On, assert_near, assert_same_for_any_threads, leaf, serving, strided

REFINE = serving("refine")
SIZES = [[9, 8, 11], [13, 12], [1, 6, 5], [5, 1, 40], [3, 3, 33], [1, 20], [1, 1, 1]]


def images(
    sizes: list[int], batch: int = 2, channels: int = 1, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Displacement, fixed, and a moving image of another size."""
    u = 0.7 * torch.randn(batch, len(sizes), *sizes, dtype=torch.float64)
    fixed = torch.rand(batch, channels, *sizes, dtype=torch.float64)
    moving = torch.rand(batch, channels, *[n + 2 for n in sizes], dtype=torch.float64)
    return [x.to(dtype) for x in (u, fixed, moving)]


def energies(u: Tensor, fixed: Tensor, moving: Tensor, window: Any, weight: float) -> Tensor:
    """Item by item, of public functions in plain torch."""
    items = zip(u.split(1), fixed.split(1), moving.split(1), strict=True)
    on = On("reference", "cpu")
    return torch.stack(
        [weight * on(diffusion_loss, d) - on(lncc, f, on(warp, m, d), window) for d, f, m in items]
    )


def loop(
    u: Tensor, fixed: Tensor, moving: Tensor, steps: int, window: Any = 9, weight: float = 1.0, **adam: Any
) -> tuple[Tensor, list[Tensor]]:
    """The field after ``steps`` of torch's Adam, and the energies on the way."""
    u = leaf(u)
    optimiser = torch.optim.Adam([u], **{"lr": 0.1, "amsgrad": True, **adam})
    history = []
    for _ in range(steps):
        optimiser.zero_grad()
        energy = energies(u, fixed, moving, window, weight)
        energy.sum().backward()
        optimiser.step()
        history.append(energy.detach())
    return u.detach(), history


@pytest.mark.parametrize("on", REFINE)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("amsgrad", [True, False])
def test_equals_a_loop_with_torchs_adam(on: On, sizes: list[int], amsgrad: bool) -> None:
    u, fixed, moving = images(sizes, channels=1 + amsgrad)
    before = u.clone()
    actual = on(refine, u, fixed, moving, 6, 0.1, 5, 0.7, amsgrad)
    expected, _ = loop(u, fixed, moving, 6, 5, 0.7, amsgrad=amsgrad)
    assert_near(actual, expected, 1e-10)
    if max(sizes) > 1:
        assert float((actual - u).abs().max()) > 0.2
    assert torch.equal(u, before)


@pytest.mark.parametrize("on", REFINE)
def test_options_reach_the_loop(on: On) -> None:
    u, fixed, moving = images([7, 8, 6], batch=1)
    options: dict[str, Any] = {"lr": 0.03, "betas": (0.8, 0.95), "eps": 1e-3}
    actual = on(refine, u, fixed, moving, 4, window=(3, 4, 7), regularisation=0.0, **options)
    assert_near(actual, loop(u, fixed, moving, 4, (3, 4, 7), 0.0, **options)[0], 1e-10)
    assert_near(on(refine, u, fixed, moving, 3), loop(u, fixed, moving, 3)[0], 1e-10)
    assert torch.equal(on(refine, u, fixed, moving, 0), u)
    smooth = on(refine, u, 0 * fixed, moving, 3, regularisation=2.0)  # the diffusion alone
    assert_near(smooth, loop(u, 0 * fixed, moving, 3, 9, 2.0)[0], 1e-10)


@pytest.mark.parametrize("on", REFINE)
def test_steps_one_by_one_with_energies_and_a_changing_rate(on: On) -> None:
    u, fixed, moving = images([8, 7, 9])
    state = refine_state(u, fixed, moving, window=5, backend=on.backend)
    addresses = [
        t.data_ptr() for t in (state.displacement, state.mean, state.square, state.largest, state.work)
    ]
    found = [refine_step(state) for _ in range(3)]
    expected, history = loop(u, fixed, moving, 3, 5)
    for one, other in zip(found, history, strict=True):
        assert one.dtype == torch.float64
        assert_near(one, other, 1e-12)
    assert_near(state.displacement, expected, 1e-10)
    assert state.step.tolist() == [3]
    after = [t.data_ptr() for t in (state.displacement, state.mean, state.square, state.largest, state.work)]
    assert after == addresses
    state.lr = 0.0
    refine_step(state)
    assert_near(state.displacement, expected, 1e-10)
    assert state.step.tolist() == [4]


@pytest.mark.parametrize("on", REFINE)
def test_the_energy_falls(on: On) -> None:
    coarse = torch.rand(2, 1, 5, 5, 5)
    fixed, moving = torch.nn.functional.interpolate(coarse, size=(20, 18, 16), mode="trilinear").split(1)
    state = refine_state(torch.zeros(1, 3, 20, 18, 16), fixed, 0.7 * fixed + 0.3 * moving, backend=on.backend)
    history = [float(refine_step(state)) for _ in range(10)]
    assert history[-1] < history[0] - 0.005
    assert history == sorted(history, reverse=True)


@pytest.mark.parametrize("on", REFINE)
def test_every_item_is_refined_by_itself(on: On) -> None:
    u, fixed, moving = images([6, 7, 8], batch=3)
    together = on(refine, u, fixed, moving, 3, window=5)
    for b in range(3):
        part = slice(b, b + 1)
        assert_near(on(refine, u[part], fixed[part], moving[part], 3, window=5), together[part], 1e-12)


@pytest.mark.parametrize("on", REFINE)
def test_float32(on: On) -> None:
    # A gradient that rounding turns around moves a voxel by a whole step the other way; a field off the lattice,
    # where gradients do not jump, keeps all but a few clear of that.
    u, fixed, moving = images([12, 13, 14], batch=1)
    u = torch.randint(-16, 16, u.shape) / 16 + 1 / 32
    actual = on(refine, u.float(), fixed.float(), moving.float(), 4)
    expected = on(refine, u.double(), fixed.float().double(), moving.float().double(), 4)
    assert actual.dtype == torch.float32
    error = (actual.double() - expected).abs()
    assert float(error.quantile(0.99)) < 1e-4
    assert float(error.max()) < 0.1


@pytest.mark.parametrize("on", REFINE)
def test_strides_and_empty_batches(on: On) -> None:
    inputs = images([6, 5, 7])
    expected = on(refine, *inputs, 2, window=3)
    for u, fixed, moving in zip(*map(strided, inputs), strict=True):
        assert_near(on(refine, u, fixed, moving, 2, window=3), expected, 1e-12)
    assert on(refine, *[x[:0] for x in inputs], 2).shape == (0, 3, 6, 5, 7)


@pytest.mark.parametrize("on", REFINE)
def test_what_is_not_finite_stays_where_it_is(on: On) -> None:
    u, fixed, moving = images([6, 7, 30])
    clean = on(refine, u, fixed, moving, 2, window=3)
    moving[0, 0, 3, 3, 3] = float("nan")
    u[0, 1, 5, 6, 29] = float("nan")
    spoilt = on(refine, u, fixed, moving, 2, window=3)
    assert bool(spoilt[0].isnan().any())
    assert_near(spoilt[1], clean[1], 1e-12)
    far = on(refine, 1e30 * u, fixed, moving, 2, window=3)  # reads nothing but zeros
    assert bool(far[1].isfinite().all())


@pytest.mark.parametrize("on", serving("refine", "cpu"))
@pytest.mark.parametrize("sizes", [[19, 21, 17], [2, 21, 37], [33, 37]], ids=str)
def test_same_bits_for_any_number_of_threads(on: On, sizes: list[int]) -> None:
    u, fixed, moving = images(sizes, dtype=torch.float32)
    assert_same_for_any_threads(lambda: [on(refine, u, fixed, moving, 3, window=5)])


@pytest.mark.parametrize("on", REFINE)
def test_carries_no_gradient(on: On) -> None:
    u, fixed, moving = (leaf(x) for x in images([5, 6, 7]))
    assert not on(refine, u, fixed, moving, 1).requires_grad


def wrong_cases() -> dict[str, tuple[tuple[Any, ...], dict[str, Any], str]]:
    u, image, flat = torch.rand(1, 3, 5, 6, 7), torch.rand(1, 1, 5, 6, 7), torch.rand(1, 1, 5, 6)
    return {
        "two channels in 3-D": ((u[:, :2], image, image), {}, "displacement"),
        "half": ((u.half(), image.half(), image.half()), {}, "float32 or float64"),
        "integers": ((u.int(), image, image), {}, "float"),
        "flat images": ((u, flat, flat), {}, "fixed"),
        "flat moving": ((u, image, flat), {}, "moving"),
        "another grid": ((u, image[..., 1:], image), {}, "grid"),
        "two items": ((u, image.expand(2, -1, -1, -1, -1), image), {}, "fixed"),
        "channels": ((u, image, image.expand(1, 2, -1, -1, -1)), {}, "moving"),
        "dtype": ((u, image.double(), image), {}, "fixed is torch.float64"),
        "empty moving": ((u, image, image[..., :0]), {}, "empty"),
        "steps": ((u, image, image, -1), {}, "steps"),
        "window": ((u, image, image), {"window": 0}, "window"),
        "two windows": ((u, image, image), {"window": (3, 3)}, "window"),
        "lr": ((u, image, image), {"lr": -0.1}, "lr"),
        "weight": ((u, image, image), {"regularisation": -1.0}, "regularisation"),
        "beta": ((u, image, image), {"betas": (0.9, 1.0)}, "betas"),
    }


@pytest.mark.parametrize("on", REFINE)
@pytest.mark.parametrize("case", wrong_cases())
def test_wrong_arguments(on: On, case: str) -> None:
    arguments, options, message = wrong_cases()[case]
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(refine, *arguments, **options)


def test_an_image_that_is_too_large_is_told() -> None:
    u, fixed = torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 3, 3)
    with pytest.raises(ValueError, match="2\\^31"):
        refine(u, fixed, torch.zeros(1).expand(1, 1, 2**16, 2**15))
