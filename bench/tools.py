"""The registration tools as commands: every one reads two images from files and leaves a transform in a file."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from neuralreg.bench import peers
from neuralreg.bench.pairs import RealPair
from neuralreg.errors import InputError
from neuralreg.images import Geometry, Image, lps_flip, read_geometry, write_image
from neuralreg.registration import METHODS, method_module
from neuralreg.transforms import Transform, load_transform

GREEDY_FLAGS = {"n": "100x100x40"}
BASELINES = {
    "plain-nir": "plain_nir",
    "idir": "idir",
}  # modules here that take the words of ``neuralreg register``
DEFAULTS = {
    "plain-nir": "paper-displacement",
    "idir": "bending",
    "greedy": "4x4x4",
    **dict.fromkeys(METHODS, "fast"),
    **{name: next(iter(peers.adapter(name).SETTINGS)) for name in peers.NAMES},
}


@dataclass(frozen=True)
class Settings:
    """What the command line says for all tools."""

    iterations: int | None = None
    seed: int = 0
    threads: int = 1
    options: tuple[str, ...] = ()
    masks: bool = False


@dataclass(frozen=True)
class Tool:
    """``kind``, ``kind:setting`` or ``kind:setting[name=value;name=value]``: greedy:4x4x4, nir:fast[levels=8]."""

    kind: str
    setting: str
    options: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        extra = ";".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.kind}:{self.setting}".rstrip(":") + (f"[{extra}]" if extra else "")

    def missing(self) -> str | None:
        """Why the tool cannot run here; None where it can."""
        if self.kind in peers.NAMES:
            return peers.missing(self.kind)
        return None if self.kind != "greedy" or _greedy() else NO_GREEDY

    @property
    def ours(self) -> bool:
        """Whether it is a method of neuralreg."""
        return self.kind in METHODS

    @property
    def version(self) -> str:
        """Of a peer's package, where a Python has it; empty for anything else."""
        if self.kind == "greedy" and (found := _greedy()) and found[-1].endswith("greedy.py"):
            asked = [found[0], "-c", "import importlib.metadata as m; print(m.version('picsl_greedy'))"]
            return subprocess.run(asked, capture_output=True, text=True).stdout.strip()
        return peers.version(self.kind, peers.python()) or "" if self.kind in peers.NAMES else ""

    def command(self, task: Task, settings: Settings) -> list[str] | None:
        """The command line that registers, once the files that it needs are there; None: there is nothing to run."""
        make = _peer_command if self.kind in peers.NAMES else COMMANDS.get(self.kind, _neuralreg)
        return make(self, task, settings)

    def transform(self, task: Task) -> Transform:
        """What the command found."""
        if self.kind == "identity":
            zero = torch.zeros(task.fixed_grid.ndim, *task.fixed_grid.shape)
            return Transform(zero, task.fixed_grid, task.moving_grid, task.initial)
        found = load_transform(task.result).dense()
        if self.kind == "greedy" or self.kind in peers.NAMES:  # their warps end where the start begins
            return Transform(found.displacement, found.fixed, task.moving_grid, task.initial)
        return found


@dataclass(frozen=True)
class Task:
    """A pair as files in a folder, where the tool leaves its result too."""

    folder: Path
    fixed: Path
    moving: Path
    fixed_grid: Geometry
    moving_grid: Geometry
    mask: Path
    initial: np.ndarray | None
    window: tuple[float, float] | None

    @property
    def result(self) -> Path:
        return self.folder / "transform.nii.gz"

    @classmethod
    def write(cls, pair: RealPair, folder: Path) -> Task:
        """Writes into the folder whatever of the pair is no file yet."""
        files = []
        for role, image in (("fixed", pair.fixed), ("moving", pair.moving)):
            if isinstance(image, Image):
                write_image(folder / f"{role}.nii.gz", image.data, image.affine)
                image = folder / f"{role}.nii.gz"
            files.append(image)
        grids = [read_geometry(file) for file in files]
        write_image(folder / "mask.nii.gz", pair.mask, grids[0].affine)
        if pair.initial is not None:
            flip = lps_flip(grids[0].ndim)
            np.savetxt(folder / "initial_lps.txt", flip @ pair.initial @ flip, "%.17g")
        mask = folder / "mask.nii.gz"
        return cls(folder, files[0], files[1], grids[0], grids[1], mask, pair.initial, pair.window)


def parse_tools(words: str) -> list[Tool]:
    """The tools of a list with commas between, those within brackets aside.

    Raises:
        InputError: an unknown tool, setting or a word that is none.
    """
    tools = []
    for word in re.split(r",(?![^\[]*\])", words):
        if not word.strip():
            continue
        match = re.fullmatch(r"\s*([\w-]+)(?::([^\[\]]+))?(?:\[([^\]]*)\])?\s*", word)
        if match is None:
            raise InputError(f"tool {word!r}: write kind:setting or kind:setting[name=value;name=value]")
        kind, setting, extra = match.groups()
        pairs = [part.partition("=") for part in (extra or "").split(";") if part.strip()]
        if not all(equals and value for _, equals, value in pairs):
            raise InputError(f"tool {word!r}: options are name=value with semicolons between")
        options = {name.strip(): value.strip() for name, _, value in pairs}
        tool = Tool(kind, setting or DEFAULTS.get(kind, ""), options)
        _check(tool)
        tools.append(tool)
    if not tools:
        raise InputError("no tool is named")
    return tools


def _check(tool: Tool) -> None:
    known = [*METHODS, *COMMANDS, *peers.NAMES]
    if tool.kind not in known:
        raise InputError(f"there is no tool {tool.kind!r}; tools are {', '.join(known)}")
    if tool.kind == "greedy" and not re.fullmatch(r"\d+(x\d+)*", tool.setting):
        raise InputError(f"greedy takes the radius of its windows, such as 4x4x4, got {tool.setting!r}")
    if tool.kind == "identity" and (tool.setting or tool.options):
        raise InputError("identity takes no setting: it is the start value")
    presets = method_module(tool.kind).PRESETS if tool.kind in METHODS else None
    if tool.kind == "plain-nir":
        presets = {DEFAULTS["plain-nir"]: None}
    elif tool.kind == "idir":
        presets = dict.fromkeys(("bending", "jacobian"))
    elif tool.kind in peers.NAMES:
        presets = peers.adapter(tool.kind).SETTINGS
    if presets is not None and tool.setting not in presets:
        raise InputError(
            f"{tool.kind} has no preset {tool.setting!r}; choose from {', '.join(sorted(presets))}"
        )


def _neuralreg(tool: Tool, task: Task, settings: Settings) -> list[str]:
    """``neuralreg register``, or a baseline, which takes the same words."""
    baseline = BASELINES.get(tool.kind)
    module = [f"neuralreg.bench.{baseline}"] if baseline else ["neuralreg", "register"]
    command = [sys.executable, "-m", *module, "--fixed", str(task.fixed), "--moving", str(task.moving)]
    if tool.kind == "idir":
        command += ["--preset", tool.setting]
    if baseline is None:
        command += ["--method", tool.kind, "--preset", tool.setting, "--device", "cpu", "--quiet"]
        command += ["--summary", str(task.folder / "summary.json")]
    command += ["--transform-out", str(task.result)]
    command += ["--threads", str(settings.threads)]
    own = dict(tool.options)
    flags = {"seed": settings.seed, "iterations": settings.iterations}
    flags |= {} if baseline else {"precision": None}
    for name, value in flags.items():
        chosen = own.pop(name, value)
        command += [] if chosen is None else [f"--{name}", str(chosen)]
    command += [] if task.window is None else [f"--window={task.window[0]:g},{task.window[1]:g}"]
    if task.initial is not None:
        command += ["--initial-transform", str(task.folder / "initial_lps.txt")]
    command += ["--fixed-mask", str(task.mask)] if settings.masks else []
    common = [word for word in settings.options if word.partition("=")[0].strip() not in own]
    for word in [*common, *(f"{name}={value}" for name, value in own.items())]:
        command += ["--option", word]
    return command


def _greedy_command(tool: Tool, task: Task, settings: Settings) -> list[str]:
    """Windowed correlation, the published default of iterations, the whole precision of the warp."""
    ndim = task.fixed_grid.ndim
    radius = "x".join(tool.setting.split("x")[:ndim])
    command = [*(_greedy() or ["greedy"]), "-d", str(ndim), "-m", "NCC", radius]
    for name, value in {**GREEDY_FLAGS, **tool.options}.items():
        command += [f"-{name}", *value.split()]
    moving = task.moving if task.initial is None else _aligned(task)
    command += ["-i", str(task.fixed), str(moving), "-o", str(task.result), "-wp", "0"]
    command += ["-gm", str(task.mask)] if settings.masks else []
    return [*command, "-threads", str(settings.threads), "-V", "0"]


def _peer_command(tool: Tool, task: Task, settings: Settings) -> list[str]:
    """An adapter's script. Peers that know no start get the moving image behind it, as greedy does."""
    if task.fixed_grid.ndim != 3:
        raise InputError(f"{tool}: 3-D images alone")
    same = task.initial is None and task.moving_grid.same_grid(task.fixed_grid)
    moving = task.moving if same else _aligned(task)
    files = (task.fixed, moving, task.result)
    return peers.command(tool.kind, *files, settings.threads, tool.setting, tool.options)


def _aligned(task: Task) -> Path:
    """The moving image behind the start, on the fixed grid, by cubic B-splines within its own range of values.

    greedy's own start (-it) reads the moving image linearly and takes 0 outside, which costs it accuracy.
    """
    try:
        import SimpleITK
    except ImportError:
        raise InputError("a peer with a start needs SimpleITK: pip install 'neuralreg[itk]'") from None
    ndim = task.fixed_grid.ndim
    matrix = np.eye(ndim + 1) if task.initial is None else np.loadtxt(task.folder / "initial_lps.txt")
    start = SimpleITK.AffineTransform(matrix[:-1, :-1].flatten().tolist(), matrix[:-1, -1].tolist())
    fixed = SimpleITK.ReadImage(str(task.fixed))
    moving = SimpleITK.ReadImage(str(task.moving), SimpleITK.sitkFloat32)
    values = SimpleITK.GetArrayViewFromImage(moving)
    low, high = float(values.min()), float(values.max())
    aligned = SimpleITK.Resample(moving, fixed, start, SimpleITK.sitkBSpline, low)
    path = task.folder / "moving_aligned.nii.gz"
    SimpleITK.WriteImage(SimpleITK.Clamp(aligned, SimpleITK.sitkFloat32, low, high), str(path))
    return path


NO_GREEDY = (
    "no greedy executable on PATH, no picsl_greedy in this Python or that of NEURALREG_PEERS, "
    "and NEURALREG_GREEDY is not set"
)


def _greedy() -> list[str] | None:
    """NEURALREG_GREEDY (an executable, or a Python that has picsl_greedy), greedy on PATH, or picsl_greedy here or in
    the Python of NEURALREG_PEERS.
    """
    script = str(Path(__file__).with_name("greedy.py"))
    named = os.environ.get("NEURALREG_GREEDY")
    if named:
        found = shlex.split(named)
        if shutil.which(found[0]) is None:
            raise InputError(f"NEURALREG_GREEDY: there is no executable {found[0]!r}")
        return [*found, script] if Path(found[-1]).name.startswith("python") else found
    if executable := shutil.which("greedy"):
        return [executable]
    if importlib.util.find_spec("picsl_greedy"):
        return [sys.executable, script]
    other = peers.python()
    if other == sys.executable:
        return None
    asked = [other, "-I", "-c", "import picsl_greedy"]
    return [other, script] if subprocess.run(asked, capture_output=True).returncode == 0 else None


COMMANDS: dict[str, Callable[[Tool, Task, Settings], list[str] | None]] = {
    "identity": lambda tool, task, settings: None,
    "greedy": _greedy_command,
    "plain-nir": _neuralreg,
    "idir": _neuralreg,
}
