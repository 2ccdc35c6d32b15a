"""On-the-fly guidance: a displacement, refined a few steps by an optimiser, becomes its own supervision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from neuralreg import kernels
from neuralreg.losses import POOLED, SIMILARITIES, similarity

REGULARISERS: dict[str, Callable[[Tensor], Tensor]] = {
    "diffusion": kernels.diffusion_loss,
    "bending": kernels.bending_loss,
    "jacobian": kernels.jacobian_loss,
}


@dataclass(frozen=True)
class Energy:
    """``regularisation`` * regulariser(u) - similarity(fixed, moving warped by u), means over the batch's pairs.

    similarity: one of :data:`neuralreg.losses.SIMILARITIES`, of every pair by itself: "lncc" (squared, boxes of
    ``window`` voxels), "ssim", "mind", or without a window "mse", "l1", "ncc", "nmi". regulariser: "diffusion",
    "bending" or "jacobian" (relu(-det), which counts folds alone).

    Raises:
        ValueError: an unknown name, or a number out of range.
    """

    similarity: str = "lncc"
    window: int = 9
    regulariser: str = "diffusion"
    regularisation: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (("similarity", SIMILARITIES), ("regulariser", tuple(REGULARISERS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.window < 1 or not self.regularisation >= 0:
            raise ValueError(
                f"needs window >= 1 and regularisation >= 0, got {self.window} and {self.regularisation}"
            )

    def parts(self, fixed: Tensor, moving: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
        """Similarity and regulariser, without the weight."""
        warped = kernels.warp(moving, displacement)
        # what is one number of all values is that of each pair
        size = 1 if self.similarity in POOLED else len(fixed)
        items = zip(fixed.split(size), warped.split(size), strict=True)
        alike = torch.stack([similarity(self.similarity, *item, window=self.window) for item in items]).mean()
        return alike, REGULARISERS[self.regulariser](displacement)

    def __call__(self, fixed: Tensor, moving: Tensor, displacement: Tensor) -> Tensor:
        alike, rough = self.parts(fixed, moving, displacement)
        return self.regularisation * rough - alike


@dataclass(frozen=True)
class OnTheFlyGuidance:
    """Xin et al., On-the-Fly Guidance Training for Medical Image Registration (MICCAI 2024, arXiv 2308.15216).

    ``loss, refined = guidance(fixed, moving, displacement)`` takes what any network predicts, refines a detached copy
    by Adam (amsgrad) on the field itself, and asks the prediction to be where the refined field is::

        refined = optimiser(stop_gradient(u))            energy: regularisation * regulariser - similarity
        loss    = mean((u - refined)^2) + smoothness * diffusion_loss(u)

    No gradient passes through the inner loop, no memory is shared between ``u`` and ``refined``, and the similarity
    is not part of the loss.

    Attributes:
        steps: of the inner optimiser, at least 1; the paper recommends 5 to 10.
        lr: its learning rate, about the voxels that a step can move.
        window: of LNCC, SSIM and MIND, voxels along every axis.
        regularisation: weight of the regulariser inside the loop.
        smoothness: weight of the diffusion of the prediction in the loss; 0.02 in the paper.
        similarity: one of :data:`neuralreg.losses.SIMILARITIES`.
        regulariser: "diffusion", "bending" or "jacobian".
        decay: the inner rate is lr * (1 - done)^decay, ``done`` being the share of the training that the call is told;
            0 keeps it. The paper's code lets it follow its outer schedule, of power 0.9.

    "lncc" with "diffusion" runs in ``kernels.refine``, one fused pass a step; all others run over the fused warp,
    similarity and regulariser with torch's Adam, which costs a few times more a step.
    """

    steps: int = 10
    lr: float = 0.1
    window: int = 9
    regularisation: float = 1.0
    smoothness: float = 0.02
    similarity: str = "lncc"
    regulariser: str = "diffusion"
    decay: float = 0.9

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(
                f"steps must be at least 1, got {self.steps}; without guidance train unsupervised"
            )
        for name in ("lr", "smoothness", "decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        _ = self.energy  # its own checks

    @property
    def energy(self) -> Energy:
        return Energy(self.similarity, self.window, self.regulariser, self.regularisation)

    def __call__(
        self, fixed: Tensor, moving: Tensor, displacement: Tensor, done: float = 0.0
    ) -> tuple[Tensor, Tensor]:
        """The loss and what it draws towards.

        Args:
            fixed: (B, C, *spatial), 2-D or 3-D.
            moving: (B, C, *any).
            displacement: (B, ndim, *spatial), the network's prediction with its graph, in fixed voxels, channel k
                along tensor axis k, added to the identity: VoxelMorph's and TransMorph's convention.
            done: share of the training that is done, 0 to 1; only ``decay`` looks at it.

        Returns:
            loss: scalar, mean over batch, channels and voxels, differentiable in ``displacement`` alone.
            refined: like ``displacement`` (float32 for half types), without gradient, a tensor of its own.

        Memory beyond inputs and outputs: three fields and two images in the fused loop, whatever the number of
        steps; otherwise those of one step's graph.

        Raises:
            ValueError: shapes that do not fit together, or ``done`` outside 0 to 1.
        """
        refined = self.refine(fixed, moving, displacement, done)
        prediction = displacement.to(refined.dtype)
        smooth = kernels.diffusion_loss(prediction)
        return functional.mse_loss(prediction, refined) + self.smoothness * smooth, refined

    @torch.no_grad()
    def refine(self, fixed: Tensor, moving: Tensor, displacement: Tensor, done: float = 0.0) -> Tensor:
        """The inner loop alone: arguments and ``refined`` as above. Every item of a batch is refined by itself."""
        if not 0 <= done <= 1:
            raise ValueError(f"done must be a share from 0 to 1, got {done}")
        refined = displacement
        for refined in self.walk(fixed, moving, displacement, done):  # noqa: B007 (the last one counts)
            pass
        return refined

    @torch.no_grad()
    def walk(
        self, fixed: Tensor, moving: Tensor, displacement: Tensor, done: float = 0.0
    ) -> Iterator[Tensor]:
        """The inner loop step by step: the field after each of them, which the next one changes in place."""
        start = displacement.detach()
        start = start.to(torch.promote_types(start.dtype, torch.float32))
        fixed, moving = fixed.detach().to(start.dtype), moving.detach().to(start.dtype)
        lr = self.lr * (1 - done) ** self.decay
        if self.similarity == "lncc" and self.regulariser == "diffusion":
            state = kernels.refine_state(start, fixed, moving, lr, self.window, self.regularisation)
            for _ in range(self.steps):
                kernels.refine_step(state)
                yield state.displacement
            return
        u = start.clone(memory_format=torch.contiguous_format).requires_grad_()
        optimiser = torch.optim.Adam([u], lr=lr, amsgrad=True)
        for _ in range(self.steps):
            with torch.enable_grad():
                # The sum over the items, whose gradients then do not depend on how many they are
                value = len(u) * self.energy(fixed, moving, u)
                (u.grad,) = torch.autograd.grad(value, u)
            optimiser.step()
            yield u.detach()
