"""On-the-fly guidance against a loop in plain torch, and what its stop-gradient promises."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.losses import SIMILARITIES
from neuralreg.methods.ofg import Energy, OnTheFlyGuidance
from neuralreg.methods.ofg_guidance import REGULARISERS

GRIDS = [(9, 8, 10), (14, 11)]


def problem(
    grid: tuple[int, ...], batch: int = 1, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Fixed, moving, displacement: textured images and a displacement of about half a voxel."""
    fixed, moving = torch.rand(2, batch, 1, *grid, dtype=torch.float64).to(dtype)
    return fixed, moving, (0.5 * torch.randn(batch, len(grid), *grid, dtype=torch.float64)).to(dtype)


def warped(moving: Tensor, u: Tensor) -> Tensor:
    """grid_sample with VoxelMorph's grid: voxels in ij order, scaled to [-1, 1], turned around."""
    size = u.shape[2:]
    identity = torch.stack(torch.meshgrid(*[torch.arange(n, dtype=u.dtype) for n in size], indexing="ij"))
    scale = torch.tensor([n - 1 for n in size], dtype=u.dtype).view(-1, *[1] * len(size))
    grid = (2 * (identity + u) / scale - 1).movedim(1, -1).flip(-1)
    return F.grid_sample(moving, grid, align_corners=True)


def lncc(a: Tensor, b: Tensor, window: int) -> Tensor:
    """VoxelMorph's NCC by a convolution with ones."""
    convolve = F.conv2d if a.ndim == 4 else F.conv3d
    ones = torch.ones(1, 1, *[window] * (a.ndim - 2), dtype=a.dtype)

    def total(x: Tensor) -> Tensor:
        return convolve(x, ones, padding=window // 2)

    n = ones.numel()
    cross = total(a * b) - total(a) * total(b) / n
    return (
        cross**2 / ((total(a * a) - total(a) ** 2 / n) * (total(b * b) - total(b) ** 2 / n) + 1e-5)
    ).mean()


def diffusion(u: Tensor) -> Tensor:
    return torch.stack([u.diff(dim=axis).square().mean() for axis in range(2, u.ndim)]).mean()


def inner_loop(energy: Callable[[Tensor], Tensor], u: Tensor, steps: int, lr: float = 0.1) -> Tensor:
    """The paper's: a detached clone, a fresh Adam with amsgrad."""
    u = u.detach().clone().requires_grad_()
    optimiser = torch.optim.Adam([u], lr=lr, amsgrad=True)
    for _ in range(steps):
        optimiser.zero_grad()
        energy(u).backward()
        optimiser.step()
    return u.detach()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_refines_as_a_plain_torch_loop_does(grid: tuple[int, ...]) -> None:
    fixed, moving, u = problem(grid)
    expected = inner_loop(lambda v: 0.7 * diffusion(v) - lncc(fixed, warped(moving, v), 5), u, steps=6)
    loss, refined = OnTheFlyGuidance(steps=6, window=5, regularisation=0.7)(fixed, moving, u)
    assert float((expected - u).abs().max()) > 0.2
    assert float((refined - expected).abs().max()) < 1e-6  # eps 1e-5 of LNCC and the flat windows' rule aside
    assert abs(float(loss) - float((u - expected).square().mean() + 0.02 * diffusion(u))) < 1e-7
    single = OnTheFlyGuidance(steps=6, window=5, regularisation=0.7)(
        *(x.float() for x in (fixed, moving, u))
    )[1]
    # Adam's first steps go by the sign of gradients, which rounding can turn where they vanish
    assert float((single - expected).abs().median()) < 1e-5


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_refines_by_squared_differences(grid: tuple[int, ...]) -> None:
    fixed, moving, u = problem(grid)
    expected = inner_loop(
        lambda v: 0.3 * diffusion(v) + (fixed - warped(moving, v)).square().mean(), u, steps=5
    )
    refined = OnTheFlyGuidance(steps=5, similarity="mse", regularisation=0.3).refine(fixed, moving, u)
    assert float((refined - expected).abs().max()) < 1e-7


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_every_energy_falls_and_every_item_is_refined_alone(similarity: str, regulariser: str) -> None:
    fixed, moving, u = problem((12, 13), batch=3)
    guidance = OnTheFlyGuidance(
        steps=8, lr=0.05, window=5, similarity=similarity, regulariser=regulariser, regularisation=0.5
    )
    refined = guidance.refine(fixed, moving, u)
    with torch.no_grad():
        assert (
            float(guidance.energy(fixed, moving, refined)) < float(guidance.energy(fixed, moving, u)) - 1e-3
        )
    alone = torch.cat([guidance.refine(fixed[k : k + 1], moving[k : k + 1], u[k : k + 1]) for k in range(3)])
    assert float((refined - alone).abs().max()) < 1e-9


@pytest.mark.parametrize("similarity", ["lncc", "mse"])
def test_no_gradient_passes_through_the_inner_loop(similarity: str) -> None:
    fixed, moving, u = problem((8, 9, 7))
    for tensor in (fixed, moving, u):
        tensor.requires_grad_()
    guidance = OnTheFlyGuidance(steps=3, window=5, similarity=similarity)
    loss, refined = guidance(fixed, moving, u)
    assert not refined.requires_grad
    gradient, *images = torch.autograd.grad(loss, [u, fixed, moving], allow_unused=True)
    assert images == [None, None]
    constant = u.detach().requires_grad_()
    expected = (constant - refined).square().mean() + 0.02 * diffusion(constant)
    assert float((gradient - torch.autograd.grad(expected, constant)[0]).abs().max()) < 1e-12


@pytest.mark.parametrize("similarity", ["lncc", "mse"])
@pytest.mark.parametrize("lr", [0.1, 0.0])
def test_prediction_and_refined_share_no_memory(similarity: str, lr: float) -> None:
    fixed, moving, u = problem((8, 9))
    before = u.clone()
    refined = OnTheFlyGuidance(steps=2, lr=lr, window=5, similarity=similarity).refine(fixed, moving, u)
    assert torch.equal(u, before)
    assert refined.untyped_storage().data_ptr() != u.untyped_storage().data_ptr()
    refined += 1
    assert torch.equal(u, before)
    if not lr:
        assert torch.equal(refined, u + 1)


def test_inner_rate_falls_with_the_training() -> None:
    fixed, moving, u = problem((9, 8))
    guidance = OnTheFlyGuidance(steps=2, lr=0.2, window=5, decay=0.9)
    half = OnTheFlyGuidance(steps=2, lr=0.2 * 0.5**0.9, window=5)
    assert torch.equal(guidance.refine(fixed, moving, u, 0.5), half.refine(fixed, moving, u))
    assert torch.equal(guidance.refine(fixed, moving, u, 1.0), u)
    kept = OnTheFlyGuidance(steps=2, lr=0.2, window=5, decay=0)
    assert torch.equal(kept.refine(fixed, moving, u, 0.7), guidance.refine(fixed, moving, u))


def test_takes_half_types_strides_and_no_grad() -> None:
    fixed, moving, u = problem((8, 9, 7), dtype=torch.float32)
    half = u.to(torch.bfloat16).to(memory_format=torch.channels_last_3d).requires_grad_()
    loss, refined = OnTheFlyGuidance(steps=2, window=5)(fixed, moving, half)
    loss.backward()
    assert (refined.dtype, loss.dtype, half.grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    expected = OnTheFlyGuidance(steps=2, window=5).refine(fixed, moving, half.detach().float().contiguous())
    assert torch.equal(refined, expected)
    with torch.no_grad():
        for similarity in ("lncc", "mse"):
            assert not OnTheFlyGuidance(steps=1, similarity=similarity)(fixed, moving, u)[0].requires_grad


def test_moves_against_the_shift() -> None:
    """fixed(i) = moving(i + 1 along the first axis): channel 0 grows towards 1, in voxels."""
    moving = F.avg_pool2d(torch.rand(1, 1, 26, 26, generator=torch.Generator().manual_seed(3)), 3, 1)
    fixed = moving.roll(-1, 2)
    refined = OnTheFlyGuidance(steps=40, lr=0.1, window=5, regularisation=0.1).refine(
        fixed, moving, torch.zeros(1, 2, 24, 24)
    )
    inside = refined[0, :, 4:-4, 4:-4].flatten(1).median(1).values
    assert abs(float(inside[0]) - 1) < 0.1
    assert abs(float(inside[1])) < 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"lr": -1.0}, "lr must be at least 0"),
        ({"similarity": "mi"}, "similarity must be one of lncc, ssim, .*, got 'mi'"),
        ({"regulariser": "none"}, "regulariser must be one of diffusion, bending, jacobian, got 'none'"),
        ({"window": 0}, "window >= 1"),
        ({"regularisation": float("nan")}, "regularisation >= 0"),
    ],
)
def test_bad_options(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OnTheFlyGuidance(**options)


def test_bad_shapes() -> None:
    fixed, moving, u = problem((8, 9))
    with pytest.raises(ValueError, match="share their grid"):
        OnTheFlyGuidance()(fixed, moving, u[..., 1:])
    with pytest.raises(ValueError, match="from 0 to 1"):
        OnTheFlyGuidance()(fixed, moving, u, 1.5)


def test_energy_is_what_it_says() -> None:
    fixed, moving, u = problem((9, 8))
    expected = 2 * kernels.bending_loss(u) - kernels.ssim(fixed, kernels.warp(moving, u), 7)
    assert abs(float(Energy("ssim", 7, "bending", 2.0)(fixed, moving, u) - expected)) < 1e-12
