"""The networks that OFG trains: shapes, sizes, windows of attention, and how other networks are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.networks import TransMorph, VoxelMorph, predict
from neuralreg.networks.transmorph import SwinBlock, join, split

GRIDS = [(1, 1), (1, 7), (33, 21), (16, 24), (13, 1, 9), (17, 18, 21)]


def small(kind: type, ndim: int) -> nn.Module:
    if kind is VoxelMorph:
        return VoxelMorph(ndim, (4, 8, 8), (8, 8, 8, 8, 4))
    return TransMorph(ndim, 8, (2, 2), (2, 4), window=3, full_channels=4)


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("kind", [VoxelMorph, TransMorph])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_any_shape_gives_a_small_displacement_and_gradients(kind: type, grid: tuple[int, ...]) -> None:
    network = small(kind, len(grid))
    moving, fixed = torch.rand(2, 2, 1, *grid)
    u = network(moving, fixed)
    assert u.shape == (2, len(grid), *grid)
    assert 0 < float(u.detach().abs().max()) < 1e-3
    u.square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in network.parameters())
    again = torch.cat([network(moving[k : k + 1], fixed[k : k + 1]) for k in range(2)])
    assert torch.allclose(u, again, atol=1e-8)  # no statistics over the batch


@pytest.mark.parametrize("kind", [VoxelMorph, TransMorph])
def test_every_parameter_counts(kind: type) -> None:
    network = small(kind, 3)
    nn.init.normal_(network.flow.weight, std=0.1)
    moving, fixed = torch.rand(2, 1, 1, 25, 26, 27)
    network(moving, fixed).square().sum().backward()
    without = [name for name, p in network.named_parameters() if not bool((p.grad != 0).any())]
    # Instance norm takes away what a bias adds
    assert [name for name in without if not name.endswith("conv.bias")] == []


def test_sizes() -> None:
    assert count(VoxelMorph(3)) == 274_387  # the count that VoxelMorph's setting is published with
    assert count(VoxelMorph(2)) == 91_578
    assert count(TransMorph(3)) == 1_224_215
    assert count(TransMorph(3, 48, (2, 2, 4, 2), (4, 4, 8, 8))) > 8e6


def test_order_of_the_images_matters() -> None:
    network = VoxelMorph(2, (4,), (4, 4))
    nn.init.normal_(network.flow.weight, std=0.1)
    moving, fixed = torch.rand(2, 1, 1, 9, 9)
    assert not torch.allclose(network(moving, fixed), network(fixed, moving))


def test_a_velocity_is_integrated() -> None:
    plain, flowing = VoxelMorph(2, (4,), (4, 4)), VoxelMorph(2, (4,), (4, 4), diffeomorphic=True, squarings=5)
    nn.init.normal_(plain.flow.weight, std=1.0)
    flowing.load_state_dict(plain.state_dict())
    moving, fixed = torch.rand(2, 1, 1, 12, 11)
    with torch.no_grad():
        velocity, u = plain(moving, fixed), flowing(moving, fixed)
    assert torch.equal(u, kernels.integrate(velocity, 5))
    assert float((u - velocity).abs().max()) > 0.01


@pytest.mark.parametrize("grid", [(8, 12), (4, 8, 12)], ids=str)
def test_windows_split_and_join(grid: tuple[int, ...]) -> None:
    x = torch.arange(2 * 3 * torch.tensor(grid).prod()).reshape(2, *grid, 3)
    window = [4, 2, 3][: len(grid)]
    windows = split(x, window)
    assert windows.shape[2] == torch.tensor(window).prod()
    assert torch.equal(join(windows, list(grid), window), x)
    first = x[0][tuple(slice(0, w) for w in window)]
    assert torch.equal(windows[0, 0], first.flatten(0, -2))


def reach(block: SwinBlock, grid: tuple[int, ...], at: tuple[int, ...]) -> set[tuple[int, ...]]:
    """The tokens that change when one does."""
    x = torch.randn(1, *grid, 4)
    other = x.clone()
    other[(0, *at)] += 1
    changed = (block.attend(x) - block.attend(other)).abs().amax(-1)[0] > 1e-7
    return {tuple(place) for place in changed.nonzero().tolist()}


@pytest.mark.parametrize("grid", [(8, 6), (7, 5), (3, 4)], ids=str)
def test_attention_stays_in_its_windows(grid: tuple[int, ...]) -> None:
    """Windows of 4, shifted by 2 or not, on grids that they do and do not divide: no token sees across the border."""
    torch.manual_seed(1)
    for shifted in (False, True):
        block = SwinBlock(2, 4, 2, 4, shifted)
        nn.init.normal_(block.qkv.weight)

        def same(a: int, b: int, n: int, shifted: bool = shifted) -> bool:
            move = 2 if shifted and n > 4 else 0
            return (a - move) // 4 == (b - move) // 4

        for at in ((0, 0), (1, 3), (grid[0] - 1, grid[1] - 1)):
            everything = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
            wanted = {
                p for p in everything if all(same(a, b, n) for a, b, n in zip(p, at, grid, strict=True))
            }
            assert reach(block, grid, at) == wanted


def test_attention_is_softmax_of_products_and_bias() -> None:
    block = SwinBlock(2, 6, 2, 3, shifted=True)  # one window: nothing is shifted
    nn.init.normal_(block.bias)
    x = torch.randn(1, 2, 3, 6)
    q, k, v = block.qkv(x.reshape(6, 6)).view(6, 3, 2, 3).permute(1, 2, 0, 3)
    bias = torch.empty(2, 6, 6)
    for a in range(6):
        for b in range(6):
            bias[:, a, b] = block.bias[:, a // 3 - b // 3 + 2, a % 3 - b % 3 + 2]
    y = ((q @ k.mT / 3**0.5 + bias).softmax(-1) @ v).movedim(0, 1).reshape(6, 6)
    assert torch.allclose(block.attend(x).reshape(6, 6), block.out(y), atol=1e-6)


class Probe(nn.Module):
    """Remembers what it was called with and returns what it was told."""

    def __init__(self, output: object):
        super().__init__()
        self.output, self.inputs = output, ()

    def forward(self, *inputs: Tensor) -> object:
        self.inputs = inputs
        return self.output


def test_calls_of_voxelmorph_and_transmorph() -> None:
    fixed, moving = torch.rand(2, 2, 1, 5, 6)
    u = torch.rand(2, 2, 5, 6)
    for output in (u, (moving, u), [moving, u]):
        pair, stacked = Probe(output), Probe(output)
        assert predict(pair, fixed, moving) is u
        assert pair.inputs[0] is moving
        assert pair.inputs[1] is fixed
        assert predict(stacked, fixed, moving, "stacked") is u
        assert torch.equal(stacked.inputs[0], torch.cat([moving, fixed], 1))


@pytest.mark.parametrize("output", [torch.rand(2, 3, 5, 6), (1, 2, 3), {"flow": 0}, None])
def test_something_else_comes_back(output: object) -> None:
    fixed, moving = torch.rand(2, 2, 1, 5, 6)
    with pytest.raises(ValueError, match=r"Probe must return a displacement \(2, 2, 5, 6\)"):
        predict(Probe(output), fixed, moving)


def test_bad_sizes() -> None:
    for make, words in (
        (lambda: VoxelMorph(4), "ndim must be 2 or 3"),
        (lambda: VoxelMorph(3, (8, 8), (8,)), "at least as many decoder channels"),
        (lambda: TransMorph(3, 8, (2, 2), (3, 2)), "must divide"),
        (lambda: TransMorph(3, 8, (2,), (2, 2)), "for every stage"),
        (
            lambda: predict(Probe(None), torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4), "both"),
            "call must be",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            make()
