"""Drop-in names for other libraries' losses and layers, computed by neuralreg's kernels."""

from .monai import DVF2DDF, LocalNormalizedCrossCorrelationLoss, Warp
from .voxelmorph import NCC, SpatialTransformer, VecInt

__all__ = [
    "DVF2DDF",
    "NCC",
    "LocalNormalizedCrossCorrelationLoss",
    "SpatialTransformer",
    "VecInt",
    "Warp",
]
