"""Pictures of NePhi's studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.methods.nephi import dense_displacement
from neuralreg.training.data import Batch, Pairs
from neuralreg.two_way import TwoWayField
from neuralreg.writing import atomic_path

MEMORY = ("contender", "stage", "size", "images_mb", "limit_mb", "extra_mb")
LINES = 8  # pixels between the lines of a warped grid


def draw_shapes(
    pairs: Pairs, maps: Callable[[Batch], Any], chosen: list[tuple[int, int]], stage: str, path: Path
) -> None:
    """Two columns, a pair each: moving, fixed, and either one warped by a stage's maps, with their grids."""
    places = [k for pair in chosen for k, other in enumerate(pairs.pairs) if tuple(other) == pair]
    pyplot = _pyplot()
    picture, axes = pyplot.subplots(4, len(places), figsize=(2.2 * len(places), 9.4), layout="constrained")
    for column, place in enumerate(places):
        batch = pairs.batch([place])
        forward, backward = maps(batch)
        rows = (
            ("moving", batch.moving, None),
            ("fixed", batch.fixed, None),
            (f"moving, warped: {stage}", kernels.warp(batch.moving, forward[None]), forward),
            ("fixed, warped back", kernels.warp(batch.fixed, backward[None]), backward),
        )
        for axis, (title, image, displacement) in zip(axes[:, column], rows, strict=True):
            axis.imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            if displacement is not None:
                _grid(axis, displacement)
            height, width = image.shape[2:]
            axis.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
            axis.set_title(title, fontsize="small")
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
        axis.imshow(warped.numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set(title=f"{share:.2f}", xticks=[], yticks=[])
    _save(picture, path)


def draw_memory(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Peak memory over the cube's edge: a line a contender and stage, and what the two images take.

    A cross at what a process was allowed stands for a cube that took more.

    Raises:
        InputError: the rows are not those of ``memory``.
    """
    if missing := [name for name in MEMORY if name not in rows[0]]:
        raise InputError(f"no table of NePhi's memory: columns {', '.join(missing)} are missing")
    pyplot = _pyplot()
    picture, axis = pyplot.subplots(figsize=(7, 5), layout="constrained")
    names = list(dict.fromkeys(row["contender"] for row in rows))
    images: dict[int, float] = {}
    for name, stage in dict.fromkeys((row["contender"], row["stage"]) for row in rows):
        mine = [row for row in rows if (row["contender"], row["stage"]) == (name, stage)]
        sizes = [int(row["size"]) for row in mine]
        images |= {size: float(row["images_mb"]) for size, row in zip(sizes, mine, strict=True)}
        found = [row["extra_mb"] != "" for row in mine]
        figures = [float(row["extra_mb" if ok else "limit_mb"]) for row, ok in zip(mine, found, strict=True)]
        style = {"color": f"C{names.index(name)}", "linestyle": "-" if stage == "train" else "--"}
        fitted = range(sum(found))  # a contender ends with the first cube that took more
        line = [sizes[k] for k in fitted], [figures[k] for k in fitted]
        axis.plot(*line, label=f"{name}, {stage}", **style)
        for size, figure, ok in zip(sizes, figures, found, strict=True):
            axis.plot(size, figure, "o" if ok else "x", color=style["color"], markersize=5 if ok else 10)
    if any(row["extra_mb"] == "" for row in rows):
        axis.plot([], [], "x", color="black", label="more than the process was allowed")
    order = sorted(images)
    axis.plot(order, [images[size] for size in order], ":", color="gray", label="the two images")
    axis.set(
        xlabel="edge of the cube (voxels)",
        ylabel="peak memory beyond importing torch (MB)",
        yscale="log",
        xticks=order,
    )
    picture.legend(loc="outside lower center", ncols=2)
    _save(picture, path)


def _grid(axis: Any, displacement: Tensor) -> None:
    """Every LINES-th line of pixels where the map takes it."""
    rows, columns = displacement.shape[1:]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    y, x = y + displacement[0], x + displacement[1]
    for line in range(0, rows, LINES):
        axis.plot(x[line].numpy(), y[line].numpy(), color="tab:orange", linewidth=0.5)
    for line in range(0, columns, LINES):
        axis.plot(x[:, line].numpy(), y[:, line].numpy(), color="tab:orange", linewidth=0.5)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(picture: Any, path: Path) -> None:
    with atomic_path(path) as temporary:
        picture.savefig(temporary, dpi=120)
    _pyplot().close(picture)
