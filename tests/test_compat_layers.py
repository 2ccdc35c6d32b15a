"""The drop-in layers against the originals: MONAI's where it is installed, VoxelMorph's formulas written here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import compat

from .kernels.common import assert_near, leaf

SIZES = {2: (9, 12), 3: (7, 6, 8)}


def pair(ndim: int, channels: int = 2) -> tuple[Tensor, Tensor]:
    size = SIZES[ndim]
    return (
        torch.rand(2, channels, *size, dtype=torch.float64),
        1.5 * torch.randn(2, ndim, *size, dtype=torch.float64),
    )


def compare(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The same values, and gradients to every input."""
    found = []
    for layer in (ours, theirs):
        leaves = [leaf(t) for t in inputs]
        value = layer(*leaves)
        weights = torch.linspace(1, 2, value.numel(), dtype=value.dtype).view_as(value)
        grads = torch.autograd.grad(
            (value * weights).sum(), leaves, allow_unused=True, materialize_grads=True
        )
        found.append((value, *grads))
    for one, other in zip(*found, strict=True):
        assert_near(one, other, 1e-9)


def transformer(src: Tensor, flow: Tensor, mode: str = "bilinear") -> Tensor:
    """VoxelMorph's: identity plus flow, scaled to [-1, 1] axis by axis, last axis first, zeros outside."""
    size = flow.shape[2:]
    points = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij")) + flow
    axes = [2 * (points[:, k] / (n - 1) - 0.5) for k, n in enumerate(size)]
    return F.grid_sample(src, torch.stack(axes[::-1], -1), mode, align_corners=True)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_spatial_transformer(ndim: int, mode: str) -> None:
    compare(compat.SpatialTransformer(SIZES[ndim], mode), lambda s, f: transformer(s, f, mode), *pair(ndim))


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("nsteps", [0, 1, 7])
def test_vec_int(ndim: int, nsteps: int) -> None:
    def theirs(vec: Tensor) -> Tensor:
        vec = vec / 2**nsteps
        for _ in range(nsteps):
            vec = vec + transformer(vec, vec)
        return vec

    compare(compat.VecInt(SIZES[ndim], nsteps), theirs, pair(ndim)[1])


def test_a_saved_state_of_the_original_loads() -> None:
    layer = compat.VecInt((5, 6), 3)
    layer.load_state_dict({"transformer.grid": torch.zeros(1, 2, 5, 6)})
    with pytest.raises(RuntimeError, match="weight"):
        layer.load_state_dict({"transformer.weight": torch.zeros(1)})
    assert not layer.state_dict()


@pytest.mark.parametrize("size", [SIZES[2], SIZES[3], (1, 6, 7), (5, 1)], ids=str)
@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
def test_warp_against_monai(size: tuple[int, ...], mode: str, padding_mode: str) -> None:
    blocks = pytest.importorskip("monai.networks.blocks", reason="MONAI is not installed (extra bench)")
    image = torch.rand(2, 2, *size, dtype=torch.float64)
    ddf = 1.5 * torch.randn(2, len(size), *size, dtype=torch.float64)
    compare(compat.Warp(mode, padding_mode), blocks.Warp(mode, padding_mode), image, ddf)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("options", [{}, {"num_steps": 3, "padding_mode": "border"}], ids=str)
@pytest.mark.filterwarnings("ignore:monai.networks.blocks.Warp")
def test_dvf2ddf_against_monai(ndim: int, options: dict[str, Any]) -> None:
    blocks = pytest.importorskip("monai.networks.blocks", reason="MONAI is not installed (extra bench)")
    compare(compat.DVF2DDF(**options), blocks.DVF2DDF(**options), pair(ndim)[1])


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_the_formula_of_monais_warp(padding_mode: str) -> None:
    """Where MONAI is not installed: torch's grid_sample with the ends at the centres."""
    image, ddf = pair(3)

    def theirs(image: Tensor, ddf: Tensor) -> Tensor:
        size = ddf.shape[2:]
        points = torch.stack(torch.meshgrid(*[torch.arange(n) for n in size], indexing="ij")) + ddf
        axes = [points[:, k] * 2 / (n - 1) - 1 for k, n in enumerate(size)]
        return F.grid_sample(image, torch.stack(axes[::-1], -1), "bilinear", padding_mode, align_corners=True)

    compare(compat.Warp(padding_mode=padding_mode), theirs, image, ddf)


@pytest.mark.parametrize(
    ("error", "make", "message"),
    [
        (NotImplementedError, lambda: compat.Warp("bicubic"), "bicubic"),
        (NotImplementedError, lambda: compat.Warp(jitter=True), "jitter"),
        (ValueError, lambda: compat.Warp(1), "mode"),
        (ValueError, lambda: compat.Warp(padding_mode="wrap"), "wrap"),
        (ValueError, lambda: compat.DVF2DDF(0), "num_steps"),
        (ValueError, lambda: compat.VecInt((4, 5), -1), "nsteps"),
        (ValueError, lambda: compat.SpatialTransformer((4,)), "size"),
        (ValueError, lambda: compat.SpatialTransformer((4, 5), "cubic"), "cubic"),
        (ValueError, lambda: compat.Warp()(torch.rand(1, 1, 4, 5), torch.rand(1, 2, 4, 4)), "ddf"),
        (NotImplementedError, lambda: compat.Warp()(torch.rand(1, 1, 4), torch.rand(1, 1, 4)), "axes"),
        (
            ValueError,
            lambda: compat.SpatialTransformer((4, 5))(torch.rand(1, 1, 4, 6), torch.rand(1, 2, 4, 5)),
            "src",
        ),
    ],
)
def test_what_cannot_be_honoured(error: type[Exception], make: Callable[[], Any], message: str) -> None:
    with pytest.raises(error, match=message):
        make()
