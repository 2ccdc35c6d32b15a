"""What comes in: two images, their masks and how their intensities are scaled, read and checked once for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from neuralreg.images import Image, check_pair, check_registrable, read_image, read_mask, scale_intensity

ROLES = ("fixed", "moving")


@dataclass(frozen=True)
class Inputs:
    """Of a registration, the fixed one first in each pair.

    Attributes:
        images: as read.
        scaled: intensities brought to [0, 1].
        masks: bool (*sp), or None.
        scaling: what was done to the intensities, by role.
    """

    images: tuple[Image, Image]
    scaled: tuple[Image, Image]
    masks: tuple[Tensor | None, Tensor | None]
    scaling: dict[str, Any]


def read_inputs(
    fixed: Any,
    moving: Any,
    fixed_mask: Any = None,
    moving_mask: Any = None,
    *,
    window: tuple[float, float] | None = None,
    quantiles: tuple[float, float] | None = None,
    nan_to: float | None = None,
) -> Inputs:
    """Reads, checks and scales; the arguments are those of :func:`neuralreg.register`.

    Raises:
        InputError: something about a file, or about the two together.
    """
    images, masks, scaled = [], [], []
    scaling: dict[str, Any] = {}
    for role, source in zip(ROLES, (fixed, moving), strict=True):
        images.append(read_image(source, role=f"{role} image", nan_to=nan_to))
    check_pair(images[0].geometry, images[1].geometry)
    limits = {} if quantiles is None else {"quantiles": quantiles}
    for role, image, given in zip(ROLES, images, (fixed_mask, moving_mask), strict=True):
        check_registrable(image, f"{role} image")
        mask = None if given is None else read_mask(given, role=f"{role} mask", like=image.geometry).data
        values, scaling[role] = scale_intensity(image, window=window, mask=mask, **limits)
        masks.append(mask)
        scaled.append(Image(values, image.affine))
    return Inputs((images[0], images[1]), (scaled[0], scaled[1]), (masks[0], masks[1]), scaling)
