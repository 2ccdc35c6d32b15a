"""The choices of NePhi and its published settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from neuralreg.losses import POINTWISE, SIMILARITIES, WINDOWED
from neuralreg.networks.encoder import NORMS
from neuralreg.precision import PRODUCTS

SAMPLERS = ("random", "patches", "lattice")
REFINED = ("codes", "decoders", "both")
STAGED = ("scales", "strides", "windows")
ARCHITECTURE = (
    *("widths", "norm", "global_code", "local_code", "local_block", "head", "context"),
    *("frequencies", "sigma", "hidden", "first_omega", "omega"),
)


@dataclass(frozen=True)
class Options:
    """Every choice of NePhi. The defaults are preset ``paper``: the released settings for lungs."""

    # The codes
    widths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)  # of the strided blocks
    norm: str = "group"  # batch: the released variant; none
    global_code: int = 32
    local_code: int = 32
    local_block: int = -1  # whose lattice the local codes have; -1: nearest 16 points an axis
    head: int = 256  # hidden width before the global code
    context: bool = False  # coarser blocks are added to what the local branch reads
    # The two decoders
    frequencies: int = 128
    sigma: float = 1.0
    hidden: tuple[int, ...] = (128, 128, 128)
    first_omega: float = 1.0
    omega: float = 30.0
    # Where they are asked
    sampler: str = "random"  # points anywhere; patches or a lattice, whose points have neighbours
    point_share: float = 0.02  # of the voxels, for random points and the lattice
    max_points: int = 100_000
    # By stage, which share the training evenly; the last number holds for the stages that are left
    scales: tuple[int, ...] = (1,)  # how often images are shrunk first, for patches and lattices
    strides: tuple[int, ...] = (0,)  # of the lattice; 0: the smallest that leaves so many points
    windows: tuple[int, ...] = (5,)  # of lncc, ssim and mind
    patches: int = 8
    patch_side: int = 16
    regulariser_share: float = 1e-4  # of the voxels
    regulariser_bounds: tuple[int, int] = (10, 500)  # fewest and most of its points
    # What is asked of them
    similarity: str = "ncc"  # global, as nmi; or mse, l1, and with neighbours lncc, ssim, mind
    regulariser: str = "inverse"  # gradient inverse consistency, or diffusion
    derivative: str = "exact"  # or differences
    regulariser_weight: float = 10.0
    prior_weight: float = 0.01
    # How they learn
    lr: float = 1e-4  # of the encoder
    decoder_lr: float = 1e-4
    final_lr: float = 1.0  # factor that the rate falls to, linearly
    # How one pair is fitted: refinement behind a prediction, or an auto-decoder from nothing
    refined: str = "both"  # codes, decoders or both
    refine_lr: float = 1e-3  # of the decoders
    refine_code_lr: float = 1e-3
    refine_final_lr: float = 0.1
    refine_scales: tuple[int, ...] = (-1,)  # stages of their own; -1: as in the last stage of the training
    refine_strides: tuple[int, ...] = (-1,)
    refine_windows: tuple[int, ...] = (-1,)
    refine_points: int = 0  # of the regulariser; 0: as in the training
    refine_weight: float = -1.0  # of the regulariser; -1: as in the training
    iterations: int = 300  # without a prediction
    precision: str = "fp32"  # of the decoders' products while they or the codes are fitted; or bf16

    def __post_init__(self) -> None:
        for name, choices in (
            ("norm", NORMS),
            ("sampler", SAMPLERS),
            ("similarity", SIMILARITIES),
            ("regulariser", ("inverse", "diffusion")),
            ("derivative", ("exact", "differences")),
            ("refined", REFINED),
            ("precision", tuple(PRODUCTS)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("max_points", "patches", "patch_side", "frequencies", "head", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (*("global_code", "local_code", "regulariser_weight", "prior_weight"),):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be below 0, got {getattr(self, name)}")
        for name in ("lr", "decoder_lr", "refine_lr", "refine_code_lr", "omega", "first_omega", "sigma"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("final_lr", "refine_final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if not 0 < self.point_share <= 1 or not 0 <= self.regulariser_share <= 1:
            raise ValueError(
                f"needs 0 < point_share <= 1 and 0 <= regulariser_share <= 1, got {self.point_share}, "
                f"{self.regulariser_share}"
            )
        if (
            len(self.regulariser_bounds) != 2
            or not 1 <= self.regulariser_bounds[0] <= self.regulariser_bounds[1]
        ):
            raise ValueError(f"regulariser_bounds must be low,high from 1, got {self.regulariser_bounds}")
        for name, least in (("scales", 1), ("strides", 0), ("windows", 1)):
            for chosen, values in ((name, getattr(self, name)), (f"refine_{name}", self.refinement(name))):
                if not values or min(values) < least:
                    raise ValueError(
                        f"{chosen} must be one or more numbers of at least {least}, got {getattr(self, chosen)}"
                    )
        if self.refine_points < 0 or (self.refine_weight < 0 and self.refine_weight != -1):
            raise ValueError(
                f"refine_points must be at least 0, refine_weight at least 0 or -1, got {self.refine_points}, "
                f"{self.refine_weight}"
            )
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths must be one or more numbers of at least 1, got {self.widths}")
        if not 1 <= len(self.hidden) <= 8 or not all(1 <= width <= 256 for width in self.hidden):
            raise ValueError(f"hidden must be 1 to 8 widths of 1 to 256, got {self.hidden}")
        if not -1 <= self.local_block < len(self.widths):
            raise ValueError(
                f"local_block must name one of {len(self.widths)} blocks or be -1, got {self.local_block}"
            )
        if not self.global_code and not self.local_code:
            raise ValueError(
                "one of global_code, local_code must be above 0: without codes all pairs are one"
            )
        if self.sampler == "random" and self.similarity in WINDOWED:
            raise ValueError(
                f"similarity {self.similarity} compares neighbours, which random points do not have: take "
                f"sampler=patches or lattice, or similarity={', '.join(POINTWISE)}"
            )
        if self.sampler == "random" and max(*self.scales, *self.refine_scales) > 1:
            raise ValueError("scales and refine_scales belong to sampler patches or lattice")
        if self.regulariser == "diffusion" and self.derivative != "exact":
            raise ValueError(
                "derivative differences belongs to regulariser inverse: diffusion has exact ones"
            )

    def refinement(self, name: str) -> tuple[int, ...]:
        """One of STAGED in the fit of one pair."""
        last = getattr(self, name)[-1:]
        return tuple(last[0] if value == -1 and last else value for value in getattr(self, f"refine_{name}"))

    def of_one_pair(self) -> Options:
        """The same with the stages and the regulariser of the fit of one pair."""
        chosen: dict[str, Any] = {name: self.refinement(name) for name in STAGED}
        if self.refine_points:
            chosen["regulariser_bounds"] = (self.refine_points, self.refine_points)
        if self.refine_weight != -1:
            chosen["regulariser_weight"] = self.refine_weight
        return replace(self, **chosen)

    @property
    def stages(self) -> int:
        """How many stages the training has."""
        return max(len(getattr(self, name)) for name in STAGED)

    def stage(self, done: float) -> Options:
        """The same with the one scale, stride and window of the stage that is on after this share of the training."""
        now = min(int(done * self.stages), self.stages - 1)
        one: dict[str, Any] = {}
        for name in STAGED:
            values = getattr(self, name)
            one[name] = (values[min(now, len(values) - 1)],)
        return replace(self, **one)


# Local codes that see the whole image, smaller decoders, windows on shrunken images: chosen on pairs of six hippocampi
# that were not trained on.
_FAST = Options(
    widths=(16, 32, 32, 32, 32, 32),
    context=True,
    frequencies=32,
    hidden=(64, 64),
    sampler="lattice",
    scales=(2, 1),
    strides=(2, 3),
    windows=(3,),
    similarity="lncc",
    regulariser_bounds=(50, 500),
    regulariser_weight=1.0,
    prior_weight=1e-4,
    lr=3e-4,
    decoder_lr=3e-4,
    final_lr=0.1,
    refine_lr=5e-4,
    refine_code_lr=1e-2,
    refine_scales=(2, 1),
    refine_strides=(1, 2),
    refine_windows=(3, 5),
    refine_points=1500,  # with 50 the noise of the draw costs more Dice than the points cost time
    refine_weight=0.8,
)

PRESETS = {
    "fast": _FAST,
    "paper": Options(),
    # For synthetic shapes of about 128 x 128 pixels: slower sines, for maps smoother than those of anatomy
    "shapes": Options(
        widths=(16, 32, 32, 32, 32, 32),
        context=True,
        frequencies=32,
        hidden=(64, 64),
        omega=10.0,
        point_share=0.1,
        regulariser_bounds=(128, 500),
        regulariser_weight=1.0,
        prior_weight=1e-4,
        lr=1e-3,
        decoder_lr=5e-4,
        final_lr=0.1,
        refine_code_lr=2e-2,
        refine_points=500,
    ),
}
