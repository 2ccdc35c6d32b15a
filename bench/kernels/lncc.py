"""lncc, forward and backward, against the formulations that people use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, gradient_step, smooth_pair

EPS = 1e-5


def cases(setup: Setup) -> Iterator[Case]:
    """Window 9 at every size with the peers, windows 5 and 15 and the gradient to both images at one size."""
    for size in setup.volumes():
        yield case(size, 9, setup, compiled=not setup.quick)
    for window in (5, 15):
        yield case(setup.main, window, setup, peers=False)
    yield case(setup.main, 9, setup, wanted=(0, 1), peers=False)


def case(
    size: tuple[int, ...],
    window: int,
    setup: Setup,
    wanted: tuple[int, ...] = (1,),
    peers: bool = True,
    compiled: bool = False,
) -> Case:
    pair = smooth_pair(size, setup.device, setup.dtype)

    def ours(fixed: Tensor, warped: Tensor, **options: object) -> Tensor:
        return kernels.lncc(fixed, warped, window, eps=EPS, **options)  # type: ignore[arg-type]

    contenders = {
        "neuralreg": gradient_step(lambda f, w: ours(f, w, recompute=False), pair, wanted),
        "neuralreg recompute": gradient_step(lambda f, w: ours(f, w, recompute=True), pair, wanted),
    }
    if peers:
        contenders["torch cumsum"] = gradient_step(lambda f, w: cumulative(f, w, window), pair, wanted)
        if compiled:
            compiled_sums = torch.compile(cumulative, dynamic=False)
            contenders["torch.compile of cumsum"] = gradient_step(
                lambda f, w: compiled_sums(f, w, window), pair, wanted
            )
        contenders["torch separable conv"] = gradient_step(lambda f, w: separable(f, w, window), pair, wanted)
        if importlib.util.find_spec("monai"):
            from monai.losses import LocalNormalizedCrossCorrelationLoss

            # MONAI clamps the variances where the others add eps to their product: another function by a
            # little, which the error shows.
            monai = LocalNormalizedCrossCorrelationLoss(len(size), window, smooth_nr=0.0, smooth_dr=EPS)
            contenders["MONAI"] = gradient_step(lambda f, w: -monai(w, f), pair, wanted)

    def truth() -> tuple[Tensor, ...]:
        exact = tuple(image.double() for image in pair)
        return gradient_step(lambda f, w: ours(f, w, backend="reference"), exact, wanted)()

    voxels = pair[0].numel()
    moved = {1: 2 + 1 + 2, 2: 2 + 1 + 4}[
        len(wanted)
    ]  # read both forward, again backward; write the gradients
    side = "one image" if len(wanted) == 1 else "both images"
    name = f"{'x'.join(map(str, size))} window {window}, gradient to {side}"
    return Case("lncc", name, contenders, truth, 1e-3, 4.0 * voxels * moved)


def _value(sums: tuple[Tensor, ...], voxels: float) -> Tensor:
    f, w, ff, ww, fw = sums
    c, vf, vw = fw - f * w / voxels, ff - f * f / voxels, ww - w * w / voxels
    return (c * c / (vf * vw + EPS)).mean()


def cumulative(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """Cumulative sums along every axis: the fastest form in plain torch on a CPU."""

    def box(x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            pad = [0, 0] * (x.ndim - 1 - axis) + [(window - 1) // 2 + 1, window // 2]
            prefix = F.pad(x, pad).cumsum(axis)
            length = x.shape[axis]
            x = prefix.narrow(axis, window, length) - prefix.narrow(axis, 0, length)
        return x

    products = (fixed, warped, fixed * fixed, warped * warped, fixed * warped)
    return _value(tuple(box(x) for x in products), float(window ** (fixed.ndim - 2)))


def separable(fixed: Tensor, warped: Tensor, window: int) -> Tensor:
    """Convolutions with ones along every axis, the five products as a batch."""
    ndim = fixed.ndim - 2
    x = torch.cat([fixed, warped, fixed * fixed, warped * warped, fixed * warped])
    convolve = F.conv2d if ndim == 2 else F.conv3d
    for axis in range(ndim):
        shape = [1] * ndim
        shape[axis] = window
        x = convolve(x, x.new_ones(1, 1, *shape), padding=[n // 2 for n in shape])
    return _value(tuple(x.split(len(fixed))), float(window**ndim))
