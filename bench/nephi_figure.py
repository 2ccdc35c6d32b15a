"""Pictures of NePhi's studies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.methods.nephi import dense_displacement
from neuralreg.training.data import Batch, Pairs
from neuralreg.two_way import TwoWayField
from neuralreg.writing import atomic_path

LINES = 8  # pixels between the lines of a warped grid


def draw_shapes(
    pairs: Pairs, maps: Callable[[Batch], Any], chosen: list[tuple[int, int]], path: Path
) -> None:
    """Two columns, a pair each: moving, fixed, warped with the map's grid, and the fixed image warped back."""
    places = [k for pair in chosen for k, other in enumerate(pairs.pairs) if tuple(other) == pair]
    pyplot = _pyplot()
    picture, axes = pyplot.subplots(4, len(places), figsize=(3 * len(places), 12), layout="constrained")
    for column, place in enumerate(places):
        batch = pairs.batch([place])
        forward, backward = maps(batch)
        rows = (
            ("moving", batch.moving, None),
            ("fixed", batch.fixed, None),
            ("moving, warped", kernels.warp(batch.moving, forward[None]), forward),
            ("fixed, warped back", kernels.warp(batch.fixed, backward[None]), backward),
        )
        for axis, (title, image, displacement) in zip(axes[:, column], rows, strict=True):
            axis.imshow(image[0, 0], cmap="gray", vmin=0, vmax=1)
            if displacement is not None:
                _grid(axis, displacement)
            axis.set(title=title, xticks=[], yticks=[])
    _save(picture, path)


def draw_between(fields: list[TwoWayField], shares: list[float], moving: Tensor, path: Path) -> None:
    """A column a share: the moving image warped by the forward map, its middle plane where it has three axes."""
    shape = tuple(moving.shape[2:])
    pyplot = _pyplot()
    size = (3 * len(fields), 3.4)
    picture, axes = pyplot.subplots(1, len(fields), figsize=size, layout="constrained", squeeze=False)
    for axis, field, share in zip(axes[0], fields, shares, strict=True):
        with torch.no_grad():
            displacement = dense_displacement(field, shape)
        warped = kernels.warp(moving, displacement[None])[0, 0]
        if len(shape) == 3:
            warped = warped[shape[0] // 2]
        axis.imshow(warped, cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{share:.2f}", xticks=[], yticks=[])
    _save(picture, path)


def draw_memory(rows: list[dict[str, Any]], path: Path) -> None:
    """Peak memory over the cube's edge: a line a contender and stage, and what the two images take."""
    pyplot = _pyplot()
    picture, axis = pyplot.subplots(figsize=(7, 5), layout="constrained")
    kept = [row for row in rows if row["extra_mb"] != ""]
    for name, stage in dict.fromkeys((row["contender"], row["stage"]) for row in kept):
        mine = [row for row in kept if (row["contender"], row["stage"]) == (name, stage)]
        style = {"linestyle": "-" if stage == "train" else "--", "marker": "o"}
        axis.plot(
            [row["size"] for row in mine],
            [row["extra_mb"] for row in mine],
            label=f"{name}, {stage}",
            **style,
        )
    sizes = sorted({row["size"] for row in kept})
    images = {row["size"]: row["images_mb"] for row in kept}
    axis.plot(sizes, [images[size] for size in sizes], ":", color="gray", label="the two images")
    axis.set(
        xlabel="edge of the cube (voxels)", ylabel="peak memory beyond importing torch (MB)", yscale="log"
    )
    axis.legend()
    _save(picture, path)


def _grid(axis: Any, displacement: Tensor) -> None:
    """Every LINES-th line of pixels where the map takes it."""
    rows, columns = displacement.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y + displacement[0], x + displacement[1]
    for line in range(0, rows, LINES):
        axis.plot(x[line], y[line], color="tab:orange", linewidth=0.5)
    for line in range(0, columns, LINES):
        axis.plot(x[:, line], y[:, line], color="tab:orange", linewidth=0.5)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(picture: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)
    _pyplot().close(picture)
