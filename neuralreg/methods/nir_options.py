"""The choices of NIR and their published settings."""

from __future__ import annotations

from dataclasses import dataclass, replace

from neuralreg.losses import POINTWISE, POOLED, SIMILARITIES, WINDOWED
from neuralreg.memory import Holding
from neuralreg.precision import PRODUCTS

ENCODINGS = ("grid", "fourier", "octaves", "none")
OUTPUTS = ("displacement", "velocity")
INTEGRATORS = ("rk4", "euler", "squaring")
WHOLE_LATTICES = ("downsize", "center", "whole")
SAMPLERS = ("downsize", "center", "jitter", "continuous", "patches", "random", "whole")


@dataclass(frozen=True)
class Options:
    """Every choice of NIR. The defaults are preset ``fast``."""

    # The field
    encoding: str = "grid"  # multi-resolution features; fourier: random ones; octaves: 2^0 .. 2^7; none
    activation: str = ""  # relu, sine, tanh, softplus, silu; "": relu behind a grid, sine otherwise
    levels: int = 3
    features: int = 8
    base: int = 6
    finest: int = 36  # vertices an axis of the finest level; fewer where its cells would fall below min_cell
    min_cell: float = 4.0  # voxels along the longest axis; 0: any
    log2_table_size: int = 17
    table_range: float = 0.01
    frequencies: int = 128
    sigma: float = 1.0
    octaves: int = 8
    omega: float = 10.0
    initial_omega: float = 30.0
    start_at_zero: bool = True
    hidden: tuple[int, ...] = (32,)
    output: str = "displacement"  # or velocity, whose flow is followed
    bounded: bool = True  # a velocity passes through tanh
    integrator: str = (
        "rk4"  # of a velocity: rk4, euler, or squaring, for which the sample is a lattice of the grid
    )
    flow_time: float = 0.2
    flow_steps: int = 4
    squarings: int = 4  # of the sampled lattice's velocity
    # Where an iteration looks
    sampler: str = "downsize"  # one of SAMPLERS, or two with + between
    # how often the images are shrunk, in turn; every entry has the same share of the iterations
    scales: tuple[int, ...] = (4, 2, 2, 2, 2, 2, 1, 1)
    stride: int = 0  # voxels between lattice points; 0: the smallest that leaves at most max_points
    max_points: int = 300_000  # also the number of random points
    recompute: bool = False  # encode points again in the backward pass, however large the table is
    patches: int = 8
    patch_side: int = 32
    # What it compares
    similarity: str = "lncc"  # or ssim, ncc (global), mse, l1, nmi (global), mind
    lncc_window: int = 5  # also SSIM's and MIND's
    patch_window: int = 9  # on patches
    padding: str = "same"  # of the windows: same or valid
    zero_rule: bool = False  # windows without content count by squared differences (with valid padding)
    dropout: float = 0.0  # share of the windows left out at random
    nir_compat: bool = False  # read as the released code does, with corners not aligned
    # What it asks of the map
    jacobian: str = "lattice"  # differences on lattices, where the points form one, or analytic everywhere
    jacobian_weight: float = 20.0
    jacobian_threshold: float = 0.4
    diffusion_weight: float = 0.4
    bending_weight: float = 0.4
    # How it is fitted
    precision: str = "fp32"  # of the layers' products while it is; or bf16
    iterations: int = 280
    lr: float = 5e-3  # of the layers
    table_lr: float = 3e-2  # of the grid's features
    final_lr: float = 0.1
    patience: int = 0  # iterations without progress that end a stage; 0: never
    hybrid: bool = False  # two fields: the second on top of the first, which is frozen
    first_share: float = 0.5  # of the iterations, for the first of two fields
    second_sampler: str = "patches"

    def __post_init__(self) -> None:
        for name, choices in (
            ("encoding", ENCODINGS),
            ("output", OUTPUTS),
            ("integrator", INTEGRATORS),
            ("similarity", SIMILARITIES),
            ("padding", ("same", "valid")),
            ("jacobian", ("lattice", "analytic")),
            ("precision", tuple(PRODUCTS)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        least = (
            ("iterations", "max_points", "lncc_window", "patch_window", "patches", "patch_side"),
            ("flow_steps", "squarings", "octaves", "frequencies"),
        )
        for name in (*least[0], *least[1]):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "stride",
            "patience",
            "jacobian_weight",
            "diffusion_weight",
            "bending_weight",
            "min_cell",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be one or more numbers of at least 1, got {self.scales}")
        if self.lr <= 0 or self.table_lr <= 0 or not 0 <= self.final_lr <= 1:
            raise ValueError(f"needs lr, table_lr > 0 and 0 <= final_lr <= 1, got {self.lr}, {self.final_lr}")
        if not 0 <= self.dropout < 1 or not 0 < self.first_share < 1:
            raise ValueError(
                f"needs 0 <= dropout < 1 and 0 < first_share < 1, got {self.dropout}, {self.first_share}"
            )
        for option in ("sampler", "second_sampler"):
            for name in getattr(self, option).split("+"):
                if name not in SAMPLERS:
                    raise ValueError(
                        f"{option}: {name!r} is not one of {', '.join(SAMPLERS)}, nor such names with + between"
                    )
                if name == "random" and (self.similarity in WINDOWED or self.zero_rule):
                    raise ValueError(
                        f"{option} random draws points without neighbours, similarity {self.similarity} needs windows: "
                        f"take similarity={', '.join(POINTWISE)}, or another sampler"
                    )
        squared = self.output == "velocity" and self.integrator == "squaring"
        if squared and (
            self.sampler not in WHOLE_LATTICES or self.jacobian != "lattice" or self.hybrid or self.nir_compat
        ):
            raise ValueError(
                f"integrator squaring needs one lattice over the grid: sampler {', '.join(WHOLE_LATTICES)}, jacobian "
                "lattice, neither hybrid nor nir_compat; take rk4 or euler"
            )
        if self.zero_rule and self.similarity != "lncc":
            raise ValueError(f"zero_rule belongs to similarity lncc, not to {self.similarity}")
        if self.dropout and self.similarity in POOLED:
            raise ValueError(
                f"dropout leaves windows or voxels out of a mean; similarity {self.similarity} is none"
            )
        if self.similarity == "mind" and self.padding != "same":
            raise ValueError("similarity mind describes voxels up to the border: take padding=same")


# Released code: windows that fit, zero rule, dropout 0.2, last layer not started at zero; Fourier scale 1 and learning
# rate 1e-3 over 3000 iterations are its YAML's, weight 10 its function's default. Which of them stand behind the
# paper's tables is not known.
_PAPER = Options(
    encoding="fourier",
    hidden=(256, 256, 256, 256),
    iterations=3000,
    lr=1e-3,
    lncc_window=9,
    patch_window=18,
    padding="valid",
    zero_rule=True,
    dropout=0.2,
    stride=3,
    jacobian_weight=10.0,
    jacobian_threshold=0.0,
    diffusion_weight=0.0,
    bending_weight=0.0,
    scales=(1,),
    start_at_zero=False,
)

_DIFFEOMORPHIC = Options(
    output="velocity",
    integrator="squaring",
    bounded=False,
    flow_time=1.0,
    diffusion_weight=1.0,
    bending_weight=0.5,
    iterations=240,
)

PRESETS = {
    "fast": Options(),
    "fast-diffeomorphic": _DIFFEOMORPHIC,
    # Windows that hold a few vessels, a smoother map, more time on the finest scale; chosen on the README's lung pair
    "fast-lung": replace(
        _DIFFEOMORPHIC,
        lncc_window=7,
        diffusion_weight=3.5,
        iterations=180,
        scales=(4, 2, 2, 2, 1, 1, 1, 1),
    ),
    "paper-displacement": _PAPER,
    "paper-diffeomorphic": replace(_PAPER, output="velocity"),
    # 200 iterations for each field; the length of the second phase is ours
    "paper-hybrid": replace(_PAPER, hybrid=True, iterations=400),
}


# Bytes a point of an iteration, measured (docs/limits.md): of a displacement on a lattice, and what choices add.
_POINT = 150.0
_SIMILARITY = {"nmi": 55.0, "mind": 1050.0}
_SAMPLER = {"jitter": 95.0, "continuous": 95.0, "patches": 195.0}
_JET, _JET_OF_A_FLOW, _SQUARING, _HYBRID = 215.0, 45.0, 190.0, 75.0


def holding(options: Options) -> Holding:
    """The memory of a fit. Layers and their widths are not in it: the field computes them again."""
    names = {*options.sampler.split("+"), *(options.second_sampler.split("+") if options.hybrid else ())}
    squared = options.output == "velocity" and options.integrator == "squaring"
    point = _POINT + _SIMILARITY.get(options.similarity, 0.0)
    point += max(_SAMPLER.get(name, 0.0) for name in names)
    if options.jacobian == "analytic" or names & {"jitter", "continuous", "random"}:
        jets = 2 if options.bending_weight else 1
        point += jets * (_JET + (_JET_OF_A_FLOW if options.output == "velocity" else 0.0))
    if squared:
        point += _SQUARING
    if options.hybrid:
        point += _HYBRID
    return Holding(point, voxel=66.0 if squared else 52.0)
