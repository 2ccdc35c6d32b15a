"""What OFG's training can be told: the network, the mode, the guidance; and the presets."""

from __future__ import annotations

from dataclasses import dataclass

from neuralreg.methods.ofg_guidance import Energy, OnTheFlyGuidance
from neuralreg.networks import CALLS

MODES = ("unsupervised", "ofg", "self-training", "optimised-self-training", "weakly-supervised")
TAUGHT = ("self-training", "optimised-self-training")
# What may be changed when a prediction is refined; the number of steps is given beside them
REFINEMENT = ("similarity", "window", "regulariser", "regularisation", "inner_lr")
NETWORKS = ("voxelmorph", "transmorph")


@dataclass(frozen=True)
class Options:
    """Of the training of a registration network; the defaults are the paper's.

    Raises:
        ValueError: a value out of range, or options that contradict each other.
    """

    mode: str = "ofg"  # one of MODES
    # The network
    network: str = "voxelmorph"  # or transmorph, or module:Class, which is called with the grid's shape
    call: str = (
        "pair"  # network(moving, fixed), or stacked: network(cat([moving, fixed], 1)), for module:Class
    )
    encoder: tuple[int, ...] = (8, 32, 32, 32)  # VoxelMorph's channels
    decoder: tuple[int, ...] = (32, 32, 32, 32, 32, 8, 8)
    diffeomorphic: bool = False  # VoxelMorph predicts a velocity
    embedding: int = 32  # TransMorph's sizes
    depths: tuple[int, ...] = (2, 2, 2)
    heads: tuple[int, ...] = (2, 4, 8)
    attention_window: int = 4
    # What images are compared by, in the loss of the modes that have it and in the inner loop
    similarity: str = "lncc"  # or ssim, mind, mse, l1, ncc, nmi
    window: int = 9
    regulariser: str = "diffusion"  # or bending, jacobian
    regularisation: float = 1.0
    # The guidance
    steps: int = 10
    inner_lr: float = 0.1
    inner_decay: float = 0.9  # power of the inner rate's fall with the training; 0: none
    smoothness: float = 0.02  # of the prediction, beside the distance to what supervises it
    # The other modes
    teacher: str = ""  # weights file whose network supervises self-training
    dice_weight: float = 1.0  # weakly-supervised
    # How it is trained
    two_way: bool = False  # every pair in both directions
    lr: float = 1e-4
    power: float = 0.9  # of the learning rate's fall: (1 - done)^power

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")
        if self.network not in NETWORKS and self.network.count(":") != 1:
            raise ValueError(f"network must be {', '.join(NETWORKS)} or module:Class, got {self.network!r}")
        if self.call not in CALLS or (self.call != "pair" and self.network in NETWORKS):
            raise ValueError(
                f"call must be one of {', '.join(CALLS)}, stacked only with module:Class, got {self.call!r}"
            )
        if self.diffeomorphic and self.network != "voxelmorph":
            raise ValueError(f"diffeomorphic belongs to network voxelmorph, not to {self.network}")
        if bool(self.teacher) != (self.mode in TAUGHT):
            raise ValueError(
                f"teacher=WEIGHTS belongs to the modes {', '.join(TAUGHT)}, which need it; mode is {self.mode}"
            )
        if not self.lr > 0 or not self.power >= 0 or not self.dice_weight >= 0:
            raise ValueError(
                f"needs lr > 0, power >= 0 and dice_weight >= 0, got {self.lr}, {self.power}, {self.dice_weight}"
            )
        _ = self.guidance  # its own checks

    @property
    def guidance(self) -> OnTheFlyGuidance:
        return OnTheFlyGuidance(
            self.steps,
            self.inner_lr,
            self.window,
            self.regularisation,
            self.smoothness,
            self.similarity,
            self.regulariser,
            self.inner_decay,
        )

    @property
    def energy(self) -> Energy:
        return self.guidance.energy


PRESETS = {
    # For minutes on a CPU; chosen in short runs on hippocampi at half resolution, on subjects of the training set.
    # Both directions in one step keep a batch of one pair from drifting into a common shift.
    # Five inner steps reached more than ten there, at less cost.
    "fast": Options(lr=1e-3, two_way=True, regularisation=3.0, steps=5, inner_lr=0.3, inner_decay=0.0),
    "paper": Options(),
}
