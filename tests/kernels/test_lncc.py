"""What lncc computes, on every backend, against windows summed one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from neuralreg.kernels import lncc
from neuralreg.kernels.backends.registry import BackendError

from .common import On, assert_near, serving, strided
from .lncc_oracle import gradients, lncc_map, pair

ON = serving("lncc")
SHAPES = [(2, 3, 6, 5, 4), (1, 1, 1, 6, 5), (1, 2, 7, 1, 1), (3, 2, 9, 1), (1, 1, 1, 13)]
WINDOWS_3D = [1, 2, 3, 4, 9, 18, (2, 3, 5), (1, 4, 9), (3, 1, 1)]


def oracle(fixed: Tensor, warped: Tensor, window: Any, **options: Any) -> tuple[Tensor, Tensor]:
    if options.get("mask") is not None:
        options["mask"] = options["mask"].numpy()
    values, counted = lncc_map(fixed.double().numpy(), warped.double().numpy(), window, **options)
    return torch.from_numpy(values), torch.from_numpy(counted)


def check_against_oracle(on: On, fixed: Tensor, warped: Tensor, window: Any, **options: Any) -> None:
    values, counted = oracle(fixed, warped, window, **options)
    assert_near(on(lncc, fixed, warped, window, reduction="none", **options), values, 1e-9)
    mean = values.sum() / max(int(counted.sum()), 1)
    assert_near(on(lncc, fixed, warped, window, **options), mean, 1e-9)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("window", WINDOWS_3D, ids=str)
def test_same_padding(on: On, window: Any) -> None:
    check_against_oracle(on, *pair(1, 1, 7, 6, 11), window)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, (2, 3, 5), (7, 5, 9)], ids=str)
def test_valid_padding(on: On, window: Any) -> None:
    check_against_oracle(on, *pair(1, 1, 7, 5, 9), window, padding="valid")


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_window_18_in_two_dimensions(on: On, padding: str) -> None:
    check_against_oracle(on, *pair(2, 1, 23, 20), 18, padding=padding)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batches_channels_and_axes_of_size_one(on: On, shape: tuple[int, ...]) -> None:
    check_against_oracle(on, *pair(*shape), 3)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("eps_mode", ["product", "clamp", "each"])
@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("numerator_eps", [0.0, 0.01])
def test_eps_modes(on: On, eps_mode: str, squared: bool, eps: float, numerator_eps: float) -> None:
    fixed, warped = pair(1, 1, 6, 5, 7)
    warped = 1 - warped  # negative correlation shows in the unsquared values
    check_against_oracle(
        on, fixed, warped, 3, eps_mode=eps_mode, squared=squared, eps=eps, numerator_eps=numerator_eps
    )


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float64], ids=str)
def test_mask(on: On, channels: int, padding: str, dtype: torch.dtype) -> None:
    fixed, warped = pair(2, 2, 6, 7, 5)
    mask = (torch.rand(2, channels, 6, 7, 5) < 0.5).to(dtype) * 3
    check_against_oracle(on, fixed, warped, (3, 2, 4), padding=padding, mask=mask)


@pytest.mark.parametrize("on", ON)
def test_sparse_mask_has_flat_windows_of_fewer_than_two_voxels(on: On) -> None:
    fixed, warped = pair(1, 1, 8, 8)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1, 1] = mask[..., 5, 5] = mask[..., 5, 6] = 1
    values, counted = oracle(fixed, warped, 3, mask=mask)
    assert int(counted.sum()) == 3
    assert int((values != 0).sum()) == 2
    check_against_oracle(on, fixed, warped, 3, mask=mask)


@pytest.mark.parametrize("on", ON)
def test_values_outside_the_mask_do_not_matter(on: On) -> None:
    fixed, warped = pair(1, 1, 7, 8, 6)
    mask = torch.rand(1, 1, 7, 8, 6) < 0.6
    expected = gradients(on, fixed, warped, 3, mask=mask)
    spoilt = torch.where(mask, fixed, 1e6), torch.where(mask, warped, -3e5)
    for actual, wanted in zip(gradients(on, *spoilt, 3, mask=mask), expected, strict=True):
        assert_near(actual, wanted, 1e-12)
    assert torch.count_nonzero(expected[1][~mask]) == 0
    assert torch.count_nonzero(expected[2][~mask]) == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_zero_rule(on: On, dtype: torch.dtype) -> None:
    fixed, warped = pair(1, 1, 12, 9, 10, dtype=dtype)
    fixed[..., 5:, :, :] = 0
    warped[..., :, :4, :] = 0
    warped[..., 7:, 6:] -= 1  # negative sums leave the mean as well
    values, counted = oracle(fixed, warped, 3, zero_rule=True)
    assert 0 < int(counted.sum()) < counted.numel()
    # float32 sums of [0, 1] values: a few roundings of 6e-8, divided by a variance of a quarter of them
    bound = 1e-9 if dtype == torch.float64 else 1e-5
    assert_near(on(lncc, fixed, warped, 3, zero_rule=True, reduction="none"), values, bound)
    assert_near(on(lncc, fixed, warped, 3, zero_rule=True), values.sum() / counted.sum(), bound)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("masked", [True, False])
def test_mean_of_nothing_is_zero(on: On, masked: bool) -> None:
    fixed, warped = pair(1, 1, 5, 5, 5)
    options: dict[str, Any] = {"mask": torch.zeros_like(fixed)} if masked else {"zero_rule": True}
    for result in gradients(on, fixed if masked else -fixed, warped, 3, **options):
        assert torch.count_nonzero(result) == 0


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("eps_mode", ["product", "clamp", "each"])
@pytest.mark.parametrize("constant", [0.0, 0.7, 1e4])
def test_flat_windows_count_zero_and_have_no_gradient(
    on: On, dtype: torch.dtype, eps_mode: str, constant: float
) -> None:
    fixed, warped = pair(1, 1, 14, 9, 8, dtype=dtype)
    fixed[..., 7:, :, :] = constant
    options = {"eps_mode": eps_mode, "padding": "valid", "numerator_eps": 0.01, "eps": 0.0}
    values, grad_f, grad_w = gradients(on, fixed, warped, 3, reduction="none", **options)
    expected, counted = oracle(fixed, warped, 3, **options)
    assert bool(counted.all())
    assert torch.count_nonzero(values[:, :, 7:]) == 0
    assert torch.count_nonzero(expected[:, :, :5]) > 0
    assert bool(values.isfinite().all() and grad_f.isfinite().all() and grad_w.isfinite().all())
    # voxels from 9 on lie in flat windows only
    assert torch.count_nonzero(grad_f[:, :, 9:]) == 0
    assert torch.count_nonzero(grad_w[:, :, 9:]) == 0
    assert torch.count_nonzero(grad_w[:, :, :7]) > 0
    mean = on(lncc, fixed, warped, 3, **options)
    assert_near(mean, values.double().sum() / values.numel(), 1e-6)


@pytest.mark.parametrize("on", ON)
def test_constant_images_are_finite(on: On) -> None:
    constant = torch.full((1, 1, 9, 10, 11), 12345.678)
    varying = torch.rand_like(constant)
    for fixed, warped in [(constant, varying), (varying, constant), (constant, constant)]:
        for result in gradients(on, fixed, warped, 5, padding="valid"):
            assert torch.count_nonzero(result) == 0
        for result in gradients(on, fixed, warped, 5):
            assert bool(result.isfinite().all())


@pytest.mark.parametrize("on", ON)
def test_strides(on: On) -> None:
    fixed, warped = pair(2, 2, 6, 5, 7)
    mask = torch.rand(2, 1, 6, 5, 7) < 0.8
    expected = gradients(on, fixed, warped, 3, mask=mask)
    for f, w, m in zip(strided(fixed), strided(warped)[::-1], strided(mask.double()), strict=True):
        assert not f.is_contiguous()
        for actual, wanted in zip(gradients(on, f, w, 3, mask=m), expected, strict=True):
            assert_near(actual, wanted, 1e-12)
    one = fixed[:1].expand(2, -1, -1, -1, -1)
    assert_near(on(lncc, one, warped, 3), on(lncc, one.contiguous(), warped, 3), 1e-12)


@pytest.mark.parametrize("on", ON)
def test_empty_batch(on: On) -> None:
    empty = torch.zeros(0, 1, 6, 5, 7)
    value, grad_f, grad_w = gradients(on, empty, empty, 3)
    assert value.item() == 0
    assert grad_f.shape == empty.shape
    assert grad_w.shape == empty.shape
    assert on(lncc, empty, empty, 3, reduction="none").shape == (0, 1, 6, 5, 7)
    assert on(lncc, empty, empty, 3, reduction="none", padding="valid").shape == (0, 1, 4, 3, 5)


@pytest.mark.parametrize("on", ON)
def test_non_finite_voxels_do_not_crash(on: On) -> None:
    fixed, warped = pair(1, 1, 9, 8, 7, dtype=torch.float32)
    fixed[..., 4, 4, 4], warped[..., 2, 2, 2] = float("nan"), float("inf")
    values, _, _ = gradients(on, fixed, warped, 3, reduction="none")
    assert not bool(values.isfinite().all())


@pytest.mark.parametrize("on", ON)
def test_an_image_is_perfectly_like_its_affine_image(on: On) -> None:
    fixed, _ = pair(1, 1, 9, 10, 11)
    for factor, expected in [(2.0, 1.0), (-2.0, -1.0)]:
        value = on(lncc, fixed, 3 + factor * fixed, 5, padding="valid", squared=False, eps=0.0)
        assert_near(value, torch.tensor(expected), 1e-10)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "shapes differ": ({"warped": torch.rand(1, 1, 5, 6, 8)}, "shape"),
    "three axes": (dict.fromkeys(("fixed", "warped"), torch.rand(5, 6, 7)), "fixed|shape|-D"),
    "window 0": ({"window": 0}, "window"),
    "two windows for three axes": ({"window": (3, 3)}, "window"),
    "window larger than a valid volume": ({"window": 6, "padding": "valid"}, "window"),
    "padding": ({"padding": "reflect"}, "padding.*reflect"),
    "eps_mode": ({"eps_mode": "sum"}, "eps_mode.*sum"),
    "reduction": ({"reduction": "sum"}, "reduction.*sum"),
    "mask shape": ({"mask": torch.ones(1, 1, 5, 6, 6)}, "mask"),
    "mask channels": ({"mask": torch.ones(1, 3, 5, 6, 7)}, "mask"),
    "dtypes differ": ({"warped": torch.rand(1, 1, 5, 6, 7).double()}, "dtype"),
    "integers": (dict.fromkeys(("fixed", "warped"), torch.ones(1, 1, 5, 6, 7).int()), "float"),
}


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments(on: On, case: str) -> None:
    changes, message = WRONG[case]
    arguments = {"fixed": torch.rand(1, 1, 5, 6, 7), "warped": torch.rand(1, 1, 5, 6, 7), **changes}
    with pytest.raises(ValueError, match=f"(?s)^(?!.*\n).*({message})"):
        on(lncc, arguments.pop("fixed"), arguments.pop("warped"), **arguments)


def test_unknown_backend() -> None:
    image = torch.rand(1, 1, 5, 6, 7)
    with pytest.raises(BackendError, match="abacus"):
        lncc(image, image, 3, backend="abacus")
