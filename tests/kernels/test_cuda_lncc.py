"""The CUDA kernels of lncc, run on the CPU by tests/cuda_on_cpu, against the reference in float64."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import lncc

from ..cuda_on_cpu.build import Library
from ..cuda_on_cpu.fixtures import kernels, library  # noqa: F401 (fixtures)
from .calls import results
from .common import On, assert_near, assert_relative, leaf
from .lncc_oracle import gradients, pair

REFERENCE = On("reference", "cpu")
CUDA = On("cuda", "cpu")


def check(fixed: Tensor, warped: Tensor, *args: Any, **options: Any) -> None:
    """Value and gradients as the reference has them."""
    expected = gradients(REFERENCE, fixed, warped, *args, **options)
    for actual, wanted in zip(gradients(CUDA, fixed, warped, *args, **options), expected, strict=True):
        assert_near(actual, wanted, 1e-9)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, (2, 3, 5), (7, 5, 9)], ids=str)
def test_windows(window: Any, padding: str) -> None:
    check(*pair(1, 1, 7, 5, 9), window, padding=padding)


@pytest.mark.parametrize("window", [9, 18, 41, (1, 30, 6)], ids=str)
def test_windows_larger_than_the_volume(window: Any) -> None:
    check(*pair(1, 1, 7, 6, 11), window)


@pytest.mark.parametrize(
    "shape", [(2, 3, 6, 5, 4), (1, 1, 1, 6, 5), (1, 2, 7, 1, 1), (3, 2, 9, 1), (1, 1, 1, 13), (1, 1, 37, 70)]
)
def test_batches_channels_and_axes_of_size_one(shape: tuple[int, ...]) -> None:
    check(*pair(*shape), 3)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_several_tiles_and_chunks(padding: str) -> None:
    check(*pair(1, 1, 30, 35, 67), (9, 6, 11), padding=padding)


@pytest.mark.parametrize("eps_mode", ["product", "clamp", "each"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
def test_eps_modes(eps_mode: str, squared: bool, eps: float) -> None:
    fixed, warped = pair(1, 1, 6, 5, 7)
    check(fixed, 1 - warped, 3, eps_mode=eps_mode, squared=squared, eps=eps, numerator_eps=0.01)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("recompute", [True, False])
def test_mask(channels: int, padding: str, recompute: bool) -> None:
    fixed, warped = pair(2, 2, 6, 7, 5)
    mask = torch.rand(2, channels, 6, 7, 5) < 0.5
    check(fixed, warped, (3, 2, 4), padding=padding, mask=mask, recompute=recompute)
    spoilt = torch.where(mask, fixed, float("nan")), torch.where(mask, warped, -3e5)
    expected = gradients(CUDA, fixed, warped, 3, mask=mask, recompute=recompute)
    for actual, wanted in zip(
        gradients(CUDA, *spoilt, 3, mask=mask, recompute=recompute), expected, strict=True
    ):
        assert torch.equal(actual, wanted)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_zero_rule(reduction: str) -> None:
    fixed, warped = pair(1, 1, 12, 9, 10)
    fixed[..., 5:, :, :] = 0
    warped[..., 7:, 6:] -= 1
    check(fixed, warped, 3, zero_rule=True, reduction=reduction)


def test_mean_of_nothing_and_empty_batches() -> None:
    fixed, warped = pair(1, 1, 5, 5, 5)
    for value in gradients(CUDA, fixed, warped, 3, mask=torch.zeros_like(fixed)):
        assert torch.count_nonzero(value) == 0
    value, grad, _ = gradients(CUDA, fixed[:0], warped[:0], 3)
    assert value == 0
    assert grad.shape == (0, 1, 5, 5, 5)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_to_one_image(recompute: bool, reduction: str) -> None:
    # More planes than a slab of the recomputing pass has.
    fixed, warped = pair(1, 2, 41, 4, 6)
    _, both_f, both_w = gradients(REFERENCE, fixed, warped, (9, 3, 2), reduction=reduction)
    options = {"recompute": recompute, "reduction": reduction, "backend": "cuda"}
    only_f, only_w = leaf(fixed), leaf(warped)
    lncc(only_f, warped, (9, 3, 2), **options).sum().backward()
    lncc(fixed, only_w, (9, 3, 2), **options).sum().backward()
    assert_relative(only_f.grad, both_f, 1e-11)
    assert_relative(only_w.grad, both_w, 1e-11)
    check(fixed, warped, (9, 3, 2), **{k: v for k, v in options.items() if k != "backend"})


def test_upstream_gradient_of_one_of_the_saved() -> None:
    fixed, warped = pair(1, 1, 6, 5, 7)
    f, w = leaf(fixed), leaf(warped)
    value = lncc(f, w, 3, backend="cuda", recompute=False)
    (only,) = torch.autograd.grad(value, [f])
    assert_relative(only, gradients(REFERENCE, fixed, warped, 3)[1], 1e-11)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("window", [9, 4])
def test_float32(offset: float, window: int) -> None:
    fixed, warped = (x.float() + offset for x in pair(1, 1, 31, 18, 33))
    expected = gradients(REFERENCE, fixed.double(), warped.double(), window)
    for recompute in (False, True):
        actual = gradients(CUDA, fixed, warped, window, recompute=recompute)
        assert all(a.dtype == torch.float32 for a in actual)
        assert_near(actual[0], expected[0], 1e-6)
        assert_relative(actual[1], expected[1], 1e-5)
        assert_relative(actual[2], expected[2], 1e-5)


def test_float32_with_a_huge_offset() -> None:
    fixed, warped = (1e4 + 100 * x.float() for x in pair(1, 1, 17, 18, 19))
    options: dict[str, Any] = {"padding": "valid", "flat_tol": 1e-9}
    expected = gradients(REFERENCE, fixed.double(), warped.double(), 5, **options)
    actual = gradients(CUDA, fixed, warped, 5, **options)
    assert_near(actual[0], expected[0], 1e-4)
    assert_relative(actual[1], expected[1], 1e-3)
    assert_relative(actual[2], expected[2], 1e-3)


@pytest.mark.parametrize("eps", [1e-5, 0.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_flat_windows_are_exactly_zero(eps: float, dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 30, 40, 50, dtype=dtype)
    fixed[..., 9:21, 12:30, 10:38] = 0  # behind texture in every direction of the running sums
    values = lncc(fixed, warped, 5, eps=eps, reduction="none", backend="cuda")
    assert torch.count_nonzero(values[..., 11:19, 14:28, 12:36]) == 0
    grads = gradients(CUDA, fixed, warped, 5, eps=eps)[1:]
    for grad in grads:
        assert torch.isfinite(grad).all()
        assert torch.count_nonzero(grad[..., 13:17, 16:26, 14:34]) == 0
    constant = torch.full((1, 1, 12, 11, 10), 0.3, dtype=dtype)
    for tensor in gradients(CUDA, constant, constant, 5, padding="valid", eps=eps):
        assert torch.count_nonzero(tensor) == 0


def test_nan_spreads_to_the_mean() -> None:
    fixed, warped = pair(1, 1, 9, 8, 40)
    fixed[0, 0, 4, 4, 35] = float("nan")
    assert lncc(fixed, warped, 3, backend="cuda").isnan()
    values = lncc(fixed, warped, 3, backend="cuda", reduction="none")
    assert values[0, 0, 4, 4, 34:37].isnan().all()
    assert not values[..., :32].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types(dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 12, 11, 10, dtype=dtype)
    value, _, grad_w = gradients(CUDA, fixed, warped, 5)
    expected = gradients(REFERENCE, fixed.double(), warped.double(), 5)
    assert value.dtype == torch.float32
    assert grad_w.dtype == dtype
    assert_near(value, expected[0], 1e-6)
    assert_relative(grad_w, expected[2], torch.finfo(dtype).eps)
    assert lncc(fixed, warped, 5, reduction="none", backend="cuda").dtype == dtype


def test_same_bits_for_any_order_of_threads_and_blocks(kernels: Library) -> None:  # noqa: F811
    fixed, warped = pair(2, 1, 20, 21, 35, dtype=torch.float32)
    mask = torch.rand(2, 1, 20, 21, 35) < 0.9

    def compute() -> list[Tensor]:
        return [
            lncc(fixed, warped, 9, reduction="none", backend="cuda"),
            *gradients(CUDA, fixed, warped, 9),
            *gradients(CUDA, fixed, warped, 4, padding="valid", mask=mask, recompute=True),
        ]

    kernels.order(0)
    expected = compute()
    for order in (1, 2, 3):
        kernels.order(order)
        for one, other in zip(compute(), expected, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("recompute", [True, False])
def test_windows_beyond_shared_memory_give_the_same_bits(kernels: Library, recompute: bool) -> None:  # noqa: F811
    fixed, warped = pair(1, 2, 37, 19, 34)
    options = {"mask": torch.rand(1, 2, 37, 19, 34) < 0.8, "recompute": recompute}
    expected = gradients(CUDA, fixed, warped, (5, 4, 9), **options)
    kernels.shared_memory(12 * 1024)  # too small for any tile
    for one, other in zip(gradients(CUDA, fixed, warped, (5, 4, 9), **options), expected, strict=True):
        assert_near(one, other, 1e-13)


def test_gradcheck_and_opcheck() -> None:
    fixed, warped = pair(1, 2, 4, 5, 4)
    inputs = leaf(fixed), leaf(warped)
    assert torch.autograd.gradcheck(
        lambda f, w: lncc(f, w, (4, 3, 2), eps_mode="each", backend="cuda"), inputs, fast_mode=True
    )
    options = ([3, 3, 3], "same", True, 1e-5, "product", 0.0, 1e-6, False, True, True, True, "cuda")
    torch.library.opcheck(torch.ops.neuralreg.lncc_forward, (*inputs, None, *options))


def test_drawn_options(kernels: Library) -> None:  # noqa: F811
    from .test_random_options import described, draw_lncc

    done = 0
    while done < 40:
        call = draw_lncc()
        if call[1][0].numel() > 12000:
            continue
        done += 1
        kernels.shared_memory(random.choice([99 * 1024, 60 * 1024, 8 * 1024]))
        for one, other in zip(results(call, "cuda"), results(call, "reference"), strict=True):
            try:
                assert_near(one, other, 1e-8)
            except AssertionError as error:
                raise AssertionError(f"{described(call)}: {error}") from None


def test_an_axis_that_is_too_long_is_refused() -> None:
    image = torch.rand(1, 1, 1, 70000)
    with pytest.raises(RuntimeError, match="more than 65535 voxels"):
        lncc(image, image, 3, backend="cuda")
