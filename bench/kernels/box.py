"""box_mean, forward and backward, against average pooling in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, gradient_step, smooth_pair

WINDOW = 5


def cases(setup: Setup) -> Iterator[Case]:
    """Window 5, which MIND has, at every size; gradient to the image."""
    for size in setup.volumes():
        pair = smooth_pair(size, setup.device, setup.dtype)

        def truth(pair: tuple[Tensor, Tensor] = pair) -> tuple[Tensor, ...]:
            exact = (pair[0].double(), pair[1].double())
            mean = gradient_step(
                lambda f, w: weighted(f, kernels.box_mean(w, WINDOW, backend="reference")), exact, (1,)
            )
            return mean()

        contenders = {
            "neuralreg": gradient_step(lambda f, w: weighted(f, kernels.box_mean(w, WINDOW)), pair, (1,)),
            "torch avg_pool": gradient_step(lambda f, w: weighted(f, pooled(w)), pair, (1,)),
        }
        name = f"{'x'.join(map(str, size))} window {WINDOW}"
        yield Case("box_mean", name, contenders, truth, 1e-5, 4.0 * pair[0].numel() * 4)


def weighted(weights: Tensor, means: Tensor) -> Tensor:
    """A number whose gradient differs from voxel to voxel."""
    return (weights * means).mean()


def pooled(image: Tensor) -> Tensor:
    """Average pooling along one axis after the other; the border is left out of the count."""
    ndim = image.ndim - 2
    pool = F.avg_pool2d if ndim == 2 else F.avg_pool3d
    for axis in range(ndim):
        size = [1] * ndim
        size[axis] = WINDOW
        image = pool(image, size, 1, [n // 2 for n in size], count_include_pad=False)
    return image
