"""The tables of README.md: which kept rows stand behind every figure, and how it is worded.

A cell names figures of rows in braces (:class:`neuralreg.bench.report.Line`). No figure is typed here.
"""

from __future__ import annotations

from neuralreg.bench.report import Block, Line, Rows, kernel, tool

RUN = "2026-11-21-xeon-2core-{}.csv"
FULL = "160x192x224"
REGISTRATION = RUN.format("registration")


def _op(
    name: str, file: str, case: str, peer: str, how: str, *, monai: bool = False, memory: str = ""
) -> Line:
    """One op: ours, torch's best form (``how`` says which), MONAI where it was measured."""
    path = RUN.format(file)
    rows = {"ours": kernel(path, case), "torch": kernel(path, case, peer)}
    if monai:
        rows |= {"monai": kernel(path, case, "MONAI"), "again": kernel(path, case, "neuralreg recompute")}
    cells = (
        name,
        "{ours.median_ms:time}",
        "{torch.median_ms:time}" + (f" ({how})" if how else ""),
        "{monai.median_ms:time}" if monai else "-",
        memory or "{ours.extra_mb:memory}; {torch.extra_mb:memory}",
    )
    return Line(cells, rows)


LNCC = f"lncc, {FULL} window 9, gradient to one image"
KERNELS = Block(
    ("op", "neuralreg", "best torch formulation", "MONAI", "extra memory"),
    (
        _op(
            *("`lncc`, window 9", "lncc", LNCC, "torch cumsum", "cumulative sums, eager"),
            monai=True,
            memory="{ours.extra_mb:memory}; {again.extra_mb:memory} with `recompute`; "
            "cumulative sums {torch.extra_mb:memory}",
        ),
        _op(
            *("the same, another run", "lncc-compiled", LNCC),
            *("torch.compile of cumsum", "cumulative sums, `torch.compile`"),
        ),
        _op(
            *("`ssim`, window 11", "ssim", f"ssim, {FULL} window 11, gradient to one image"),
            *("torch separable conv", "separable convolutions"),
        ),
        _op(
            *("`warp`, gradient to the displacement", "sampling", f"warp, {FULL}, gradient to u"),
            *("torch grid_sample", "`grid_sample` with its identity grid"),
        ),
        _op(
            *("`grid_sample` at 1e5 random points", "sampling"),
            *(
                f"grid_sample, 100000 scattered points in {FULL}, gradient to the grid",
                "torch grid_sample",
                "",
            ),
        ),
        _op("`jacobian_loss`", "jacobian", f"jacobian_loss, {FULL}", "torch", "slices"),
        _op("`refine_step` (OFG's inner iteration)", "refine", f"refine_step, {FULL}", "torch", ""),
    ),
)


def _field(name: str, shown: str, case: str, how: str, peer: str = "torch", compiled: bool = False) -> Line:
    """One field: ours and torch, which a field of very many points has no memory for."""
    path, rows = RUN.format("field"), {}
    rows["ours"] = kernel(path, f"field, {case}")
    cells = ("{ours.median_ms:time}", "not run", "{ours.extra_mb:memory}")
    if peer:
        rows["torch"] = kernel(path, f"field, {case}", peer)
        words = f" ({how})" if how else ""
        cells = (
            cells[0],
            "{torch.median_ms:time}" + words,
            "{ours.extra_mb:memory}; {torch.extra_mb:memory}",
        )
    if compiled:
        rows["graph"] = kernel(path, f"field, {case}", "torch.compile")
        cells = (cells[0], "{torch.median_ms:time} ({graph.median_ms:time} compiled)", cells[2])
    return Line((name, shown, *cells), rows)


DOUBLE = ("double backward", "torch, double backward")
FIELDS = Block(
    ("field", "points", "neuralreg", "torch", "extra memory"),
    (
        _field(
            *("hash 16x2 + 64-64, value", "259,200", "hash 16x2, 64-64, 259200 points, value", ""),
            compiled=True,
        ),
        _field(
            *("the same, value and Jacobian", "50,000", "hash 16x2, 64-64, 50000 points, value and Jacobian"),
            *DOUBLE,
        ),
        _field("sine 5x256, value", "50,000", "sine 5x256, 50000 points, value", ""),
        _field(
            *("the same, value and Jacobian", "50,000", "sine 5x256, 50000 points, value and Jacobian"),
            *DOUBLE,
        ),
        _field(
            *("sine 3x256, value and Jacobian", "80,000", "sine 3x256, 80000 points, value and Jacobian"),
            *DOUBLE,
        ),
        _field(*("the same", "1,000,000", "sine 3x256, 1000000 points, value and Jacobian", ""), peer=""),
    ),
)


def _reached(where: str, what: str, pairs: str, contender: str, words: str, start: str) -> Line:
    rows = {"a": tool(REGISTRATION, pairs, contender), "before": tool(REGISTRATION, pairs, "identity")}
    return Line((where, what, words, start), rows)


DICE, TRE = "{before.dice:overlap}", "{before.tre_mean_mm:.2f} mm"
COST = "{a.cpu_s:.0f} CPU s"
MEMORY = COST + ", {a.peak_mb:.0f} MB peak"
BRAIN = (
    "Dice {a.dice:overlap}, {a.folds_percent_mask:folds} in the brain, SDlogJ {a.sdlogj_mask:overlap}; "
    + MEMORY
)
LUNG = "TRE {a.tre_mean_mm:.2f} mm, lung Dice {a.dice:overlap}, {a.folds_percent:folds}; " + COST
PLAIN = "Dice {a.dice:overlap}, {a.folds_percent:folds}; " + COST
GREEDY = "greedy 1.4.0, NCC "
KNOWN = {"a": Rows(RUN.format("demo"), {"suite": "registration", "case": "demo"})}
WORDS = "mean TRE {a.tre_before_mm:.2f} mm before, {a.tre_mean_mm:.2f} mm after"
DEMO = Block((), (Line((f"The demo at 2 mm: {WORDS}, against a map that is known exactly.",), KNOWN),))
FIGURES = Block(
    ("pairs", "tool", "result", "before"),
    (
        _reached(f"brain MR {FULL}, 30 labels, 3 pairs", "NIR `fast`", "brain1mm", "nir:fast", BRAIN, DICE),
        _reached("the same", "NIR `fast-diffeomorphic`", "brain1mm", "nir:fast-diffeomorphic", BRAIN, DICE),
        _reached("the same", GREEDY + "4x4x4, 100x100x40", "brain1mm", "greedy:4x4x4", BRAIN, DICE),
        _reached(
            "lung CT 57x78x64, 51 landmarks, translation given, window -1000,400",
            *("NIR `fast`", "lungct", "nir:fast", LUNG, TRE),
        ),
        _reached("the same", "NIR `fast-lung`", "lungct", "nir:fast-lung", LUNG, TRE),
        _reached(
            "the same", "NCF `fast`", "lungct", "ncf:fast", LUNG + "; more in [docs/ncf.md](docs/ncf.md)", TRE
        ),
        _reached("the same", GREEDY + "2x2x2", "lungct", "greedy:2x2x2", LUNG, TRE),
        _reached("lung MR, 5 lobes, 3 pairs", "NIR `fast`", "lungmr", "nir:fast", PLAIN, DICE),
        _reached("the same", "NIR `fast-lung`", "lungmr", "nir:fast-lung", PLAIN, DICE),
        _reached("the same", GREEDY + "2x2x2", "lungmr", "greedy:2x2x2", PLAIN, DICE),
        _reached(
            "hippocampus 48x64x48, 2 labels, 10 pairs", "NIR `fast`", "hippocampus", "nir:fast", PLAIN, DICE
        ),
        _reached("the same", GREEDY + "2x2x2", "hippocampus", "greedy:2x2x2", PLAIN, DICE),
        _reached(
            "brain slices 216x291 (2-D), 34 labels, 10 pairs",
            "NIR `fast`",
            "brain2d",
            "nir:fast",
            PLAIN,
            DICE,
        ),
        Line(
            (
                "`make demo`: MNI152 at 2 mm, known map",
                "NIR `fast`",
                "TRE {a.tre_mean_mm:.2f} mm, {a.folds_percent:folds}; {a.cpu_s:.0f} CPU s",
                "{a.tre_before_mm:.2f} mm",
            ),
            KNOWN,
        ),
    ),
)

SCALING = "2026-11-22-epyc-2core-memory-scaling.csv"
GROWING = {
    "NIR, step": "neuralreg nir fast",
    "NIR, register": "neuralreg nir fast, register",
    "NCF, step": "neuralreg ncf fast",
    "NePhi, training": "neuralreg nephi paper, train",
    "NePhi, refinement": "neuralreg nephi paper, refine",
    "OFG, training": "neuralreg ofg fast, train",
    "two dense fields": "torch dense-field, refine",
    "U-Net, training": "torch voxel-unet, train",
}
NOT_FIT = "more than 9 GB"


def _cube(edge: int, cells: str) -> Line:
    """A letter a contender: m measured, x stopped by the limit, - not tried."""
    words = {"x": NOT_FIT, "-": "-"}
    names = [f"c{place}" for place in range(len(cells))]
    shown = [words.get(cell, f"{{{name}.extra_mb:memory}}") for name, cell in zip(names, cells, strict=True)]
    rows = {
        name: Rows(
            SCALING, {"suite": "memory-scaling", "case": f"cube {edge}", "contender": who, "points": ""}
        )
        for name, who, cell in zip(names, GROWING.values(), cells, strict=True)
        if cell == "m"
    }
    return Line((f"{edge}^3", *shown), rows)


GROWTH = Block(
    ("cube", *GROWING),
    (
        _cube(64, "mmmmmmmm"),
        _cube(128, "mmmmmmmm"),
        _cube(192, "mmmmmxm-"),
        _cube(256, "mmmmmxm-"),
        _cube(320, "mmmmmx--"),
        _cube(640, "m----x--"),
    ),
)

README: dict[str, Block] = {"demo": DEMO, "kernels": KERNELS, "fields": FIELDS, "figures": FIGURES}
# Other documents by their file's name
PAGES: dict[str, dict[str, Block]] = {"README.md": README, "benchmarks.md": {"memory": GROWTH}}
