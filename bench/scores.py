"""One evaluator for all tools: overlap, landmark distances, folds and smoothness of a transform on a pair."""

from __future__ import annotations

from neuralreg.bench.pairs import RealPair
from neuralreg.images import Image
from neuralreg.metrics import dice, mean_dice, regularity, tre
from neuralreg.transforms import Transform

SCORES = (
    *("dice", "dice_fine", "folds_percent", "folds_percent_mask", "sdlogj_mask"),
    *("tre_mean_mm", "tre_sd_mm", "tre_median_mm"),
)


def score(pair: RealPair, transform: Transform) -> dict[str, float]:
    """The figures of SCORES that the pair has a truth for.

    dice: mean over the pair's labels, nearest neighbour. dice_fine: the same on the label maps of a finer grid.
    folds_percent: voxels with det <= 0 by central differences, on the whole fixed grid and inside the pair's mask.
    sdlogj_mask: standard deviation of log det inside the mask where det > 0. tre: landmarks, in millimetres.
    """
    result = {"dice": overlap(transform, pair.fixed_labels, pair.moving_labels, pair.labels)}
    if pair.fine_labels is not None:
        result["dice_fine"] = overlap(transform, *pair.fine_labels, pair.labels)
    result["folds_percent"] = regularity(transform.displacement)["folds_percent"]
    inside = regularity(transform.displacement, pair.mask)
    result["folds_percent_mask"], result["sdlogj_mask"] = inside["folds_percent"], inside["sdlogj"]
    if pair.landmarks is not None:
        fixed, moving = pair.landmarks
        distances = tre(transform.transform_points(fixed, "LPS"), moving)
        result |= {f"tre_{name}_mm": distances[name] for name in ("mean", "sd", "median")}
    return result


def overlap(transform: Transform, fixed: Image, moving: Image, labels: tuple[int, ...]) -> float:
    """Mean Dice of the moving labels, warped by nearest neighbour, and the fixed ones."""
    return mean_dice(dice(fixed, transform.warp(moving, fixed.geometry, "nearest"), labels))
