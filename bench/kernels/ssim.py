"""ssim, forward and backward, against separable convolutions in torch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from neuralreg import kernels
from neuralreg.bench.harness import Case, Setup, gradient_step, smooth_pair
from neuralreg.kernels.ssim import gaussian

WINDOW, SIGMA, C1, C2 = 11, 1.5, 1e-4, 9e-4


def cases(setup: Setup) -> Iterator[Case]:
    """Window 11, sigma 1.5 at every size; gradient to the warped image."""
    for size in setup.volumes():
        pair = smooth_pair(size, setup.device, setup.dtype)

        def truth(pair: tuple[Tensor, Tensor] = pair) -> tuple[Tensor, ...]:
            exact = (pair[0].double(), pair[1].double())
            return gradient_step(lambda f, w: kernels.ssim(f, w, WINDOW, backend="reference"), exact, (1,))()

        contenders = {
            "neuralreg": gradient_step(lambda f, w: kernels.ssim(f, w, WINDOW, recompute=False), pair, (1,)),
            "neuralreg recompute": gradient_step(
                lambda f, w: kernels.ssim(f, w, WINDOW, recompute=True), pair, (1,)
            ),
            "torch separable conv": gradient_step(separable, pair, (1,)),
        }
        name = f"{'x'.join(map(str, size))} window {WINDOW}, gradient to one image"
        yield Case("ssim", name, contenders, truth, 1e-3, 4.0 * pair[0].numel() * 5)


def separable(fixed: Tensor, warped: Tensor) -> Tensor:
    """Convolutions along every axis, the five products as a batch."""
    ndim = fixed.ndim - 2
    x = torch.cat([fixed, warped, fixed * fixed, warped * warped, fixed * warped])
    convolve = F.conv2d if ndim == 2 else F.conv3d
    for axis in range(ndim):
        shape = [1] * ndim
        shape[axis] = WINDOW
        x = convolve(
            x, x.new_tensor(gaussian(WINDOW, SIGMA)).view(1, 1, *shape), padding=[n // 2 for n in shape]
        )
    f, w, ff, ww, fw = x.split(len(fixed))
    c, v = fw - f * w, ff - f * f + ww - w * w
    return ((2 * f * w + C1) * (2 * c + C2) / ((f * f + w * w + C1) * (v + C2))).mean()
