"""ssim on every backend, against windows summed one by one in numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralreg.kernels import ssim

from .common import On, assert_near, assert_relative, assert_same_for_any_threads, leaf, serving, strided
from .lncc_oracle import pair

ON = serving("ssim")
REFERENCE = On("reference", "cpu")


def oracle(
    fixed: Tensor, warped: Tensor, window: Any, sigma: Any = 1.5, padding: str = "same", data_range: float = 1
) -> Tensor:
    """The map, every window gathered on its own and its moments centred before they are squared."""
    ndim = fixed.ndim - 2
    windows = [window] * ndim if isinstance(window, int) else list(window)
    sigmas = [sigma] * ndim if isinstance(sigma, (int, float)) else list(sigma)
    weights = np.ones(())
    for taps, width in zip(windows, sigmas, strict=True):
        line = np.exp(-0.5 * ((np.arange(taps) - (taps - 1) / 2) / width) ** 2)
        weights = np.multiply.outer(weights, line / line.sum())
    pads = [((w - 1) // 2, w // 2) if padding == "same" else (0, 0) for w in windows]
    images = [np.pad(x.double().numpy(), [(0, 0), (0, 0), *pads]) for x in (fixed, warped)]
    sizes = [n - w + 1 for n, w in zip(images[0].shape[2:], windows, strict=True)]
    result = np.empty((*fixed.shape[:2], *sizes))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    for index in itertools.product(*[range(n) for n in result.shape]):
        box = tuple(slice(i, i + w) for i, w in zip(index[2:], windows, strict=True))
        f, w = (x[index[:2]][box] for x in images)
        mf, mw = (weights * f).sum(), (weights * w).sum()
        variances = (weights * ((f - mf) ** 2 + (w - mw) ** 2)).sum()
        covariance = (weights * (f - mf) * (w - mw)).sum()
        result[index] = (2 * mf * mw + c1) * (2 * covariance + c2)
        result[index] /= (mf**2 + mw**2 + c1) * (variances + c2)
    return torch.from_numpy(result)


def gradients(on: On, fixed: Tensor, warped: Tensor, *args: Any, **options: Any) -> list[Tensor]:
    f, w = leaf(fixed), leaf(warped)
    on(ssim, f, w, *args, **options).backward()
    return [f.grad, w.grad]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(
    ("shape", "window", "sigma"),
    [
        ((2, 2, 6, 5, 7), 3, 1.5),
        ((1, 1, 5, 9, 11), (4, 5, 2), (0.7, 1.5, 3.0)),
        ((1, 2, 12, 13), 11, 1.5),
        ((1, 1, 7, 1, 1), (5, 1, 1), 1.0),
        ((1, 1, 3, 4, 25), 1, 1.0),
    ],
    ids=str,
)
def test_values(on: On, padding: str, shape: Any, window: Any, sigma: Any) -> None:
    fixed, warped = pair(*shape)
    options = {"sigma": sigma, "padding": padding, "data_range": 2.0}
    expected = oracle(fixed, warped, window, **options)
    assert_near(on(ssim, fixed, warped, window, reduction="none", **options), expected, 1e-10)
    assert_near(on(ssim, fixed, warped, window, **options), expected.mean(), 1e-10)


@pytest.mark.parametrize("on", ON)
def test_windows_larger_than_the_volume(on: On) -> None:
    fixed, warped = pair(1, 1, 4, 3, 5)
    assert_near(on(ssim, fixed, warped, 11, reduction="none"), oracle(fixed, warped, 11), 1e-10)


@pytest.mark.parametrize("on", ON)
def test_an_image_is_like_itself(on: On) -> None:
    image = pair(1, 1, 9, 8, 7)[0]
    assert_near(on(ssim, image, image, 5), torch.tensor(1.0), 1e-12)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("wants", [(True, True), (True, False), (False, True)], ids=str)
def test_gradcheck(on: On, recompute: bool, padding: str, reduction: str, wants: tuple[bool, bool]) -> None:
    images = [x.requires_grad_(want) for x, want in zip(pair(2, 1, 3, 4, 5), wants, strict=True)]

    def value(f: Tensor, w: Tensor) -> Tensor:
        return on(ssim, f, w, (2, 3, 4), padding=padding, reduction=reduction, recompute=recompute)

    assert torch.autograd.gradcheck(value, images)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_float32_gradient(on: On, offset: float) -> None:
    """Moments are float64, so what is left are the roundings of inputs and results."""
    fixed, warped = (x.float() + offset for x in pair(1, 2, 17, 20, 19))
    expected = gradients(REFERENCE, fixed.double(), warped.double(), 11)
    for actual, wanted in zip(gradients(on, fixed, warped, 11), expected, strict=True):
        assert_relative(actual, wanted, 2e-6)


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_types_are_computed_wider(on: On, dtype: torch.dtype) -> None:
    fixed, warped = (x.to(dtype) for x in pair(1, 1, 9, 8, 10))
    value = on(ssim, fixed, warped, 5)
    assert value.dtype == torch.float32
    assert_near(value, REFERENCE(ssim, fixed.double(), warped.double(), 5), 1e-5)
    assert gradients(on, fixed, warped, 5)[0].dtype == dtype


@pytest.mark.parametrize("on", ON)
def test_strides_do_not_matter(on: On) -> None:
    fixed, warped = pair(1, 2, 5, 6, 7)
    expected = on(ssim, fixed, warped, 3, reduction="none")
    for f, w in zip(strided(fixed), strided(warped), strict=True):
        assert torch.equal(on(ssim, f, w, 3, reduction="none"), expected)


@pytest.mark.parametrize("on", ON)
def test_empty_constant_and_not_finite(on: On) -> None:
    empty = torch.empty(0, 1, 4, 5, 6)
    assert on(ssim, empty, empty, 3) == 0
    constant = torch.full((1, 1, 8, 9, 7), 0.25)
    assert_near(on(ssim, constant, constant, 3, padding="valid"), torch.tensor(1.0), 1e-6)
    assert all(torch.isfinite(g).all() for g in gradients(on, constant, constant, 3))
    spoiled = constant.clone()
    spoiled[0, 0, 4, 4, 3] = float("nan")
    assert on(ssim, spoiled, constant, 3).isnan()


@pytest.mark.parametrize("on", ON)
def test_any_number_of_threads_gives_the_same_bits(on: On) -> None:
    fixed, warped = (x.float() for x in pair(1, 1, 35, 40, 33))
    assert_same_for_any_threads(
        lambda: [on(ssim, fixed, warped, 5), *gradients(on, fixed, warped, 5, recompute=False)]
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"window": 0}, "window"),
        ({"window": (3, 3)}, "window"),
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": (1.0, 2.0)}, "sigma"),
        ({"data_range": -1.0}, "data_range"),
        ({"padding": "reflect"}, "padding"),
        ({"reduction": "sum"}, "reduction"),
        ({"window": 7, "padding": "valid"}, "larger than the volume"),
    ],
    ids=str,
)
def test_wrong_arguments(options: dict[str, Any], words: str) -> None:
    fixed, warped = pair(1, 1, 5, 6, 7)
    with pytest.raises(ValueError, match=words):
        ssim(fixed, warped, **options)


def test_wrong_images() -> None:
    fixed, warped = pair(1, 1, 5, 6, 7)
    with pytest.raises(ValueError, match="shape"):
        ssim(fixed, warped[..., :-1])
    with pytest.raises(ValueError, match="dtype"):
        ssim(fixed, warped.float())
    with pytest.raises(ValueError, match="floating"):
        ssim(fixed.int(), warped.int())
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ssim(fixed[0, 0], warped[0, 0])
