"""Where a step spends its time: exclusive seconds of its parts, by wrapping functions while a step is watched."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch

from neuralreg import correspondence, fields, kernels, networks, objective, samplers, two_way
from neuralreg.bench import plain_nir
from neuralreg.bench.steps import Step
from neuralreg.methods import ncf, nephi, nephi_losses, nir, ofg, ofg_guidance
from neuralreg.networks.encoder import Encoder

PARTS = ("sampling", "field", "warp", "loss", "regulariser", "guidance", "backward", "optimiser", "rest")

_SAMPLERS = (samplers.Downsize, samplers.Patches, samplers.RandomPoints)
_LATTICES = (samplers.Lattice, samplers.Points)
_FIELDS = (fields.Field, fields.VelocityField, fields.Stretched, fields.Composed)
# Where a part is entered. What is called inside a regulariser or the guidance is theirs, jets included; elsewhere the
# innermost part counts.
ENTRIES: dict[str, list[tuple[Any, str]]] = {
    "sampling": [
        *((kind, "draw") for kind in _SAMPLERS),
        *((kind, name) for kind in _LATTICES for name in ("coordinates", "pick", "displacement")),
        *((owner, name) for owner in (nephi,) for name in ("draw_sample", "draw_points")),
        (plain_nir, "lattice"),
    ],
    "field": [
        *((kind, name) for kind in _FIELDS for name in ("forward", "jet") if name in vars(kind)),
        *((fields.SquaredField, name) for name in ("velocity", "squared")),
        (correspondence.CorrespondenceField, "forward"),
        *((two_way.CodedMap, name) for name in ("__call__", "jet")),
        *((kind, "forward") for kind in (Encoder, networks.VoxelMorph, networks.TransMorph)),
        (plain_nir, "displace"),
    ],
    "warp": [*((kind, "warp") for kind in _LATTICES), (kernels, "warp"), (plain_nir, "read_moving")],
    "loss": [
        *((objective, name) for name in ("similarity", "zero_rule_lncc")),
        *((ncf, name) for name in ("similarity", "occupancy_loss")),
        (ofg_guidance, "similarity"),
        (plain_nir, "similarity_of"),
    ],
    "regulariser": [
        *((nir, name) for name in ("lattice_regularity", "analytic_regularity")),
        (ncf, "lattice_regularity"),
        *(
            (nephi_losses, name)
            for name in ("gradient_inverse_consistency", "difference_inverse_consistency")
        ),
        *((nephi_losses, name) for name in ("diffusion", "code_prior")),
        (ofg.kernels, "diffusion_loss"),
        (plain_nir, "folding"),
    ],
    "guidance": [(ofg_guidance.OnTheFlyGuidance, "refine")],
}
KEEPS = ("regulariser", "guidance")


class Watch:
    """A stack of parts, and the wall and CPU seconds that each was on top."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stack = device, ["rest"]
        self.seconds: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.last = self._now()

    def _now(self) -> tuple[float, float]:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    @contextmanager
    def inside(self, part: str) -> Iterator[None]:
        """What happens in the block belongs to a part."""
        self._turn()
        self.stack.append(self.stack[-1] if self.stack[-1] in KEEPS else part)
        try:
            yield
        finally:
            self._turn()
            self.stack.pop()

    def _turn(self) -> None:
        now = self._now()
        spent = self.seconds[self.stack[-1]]
        for clock, (before, after) in enumerate(zip(self.last, now, strict=True)):
            spent[clock] += after - before
        self.last = now

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def watched(*arguments: Any, **options: Any) -> Any:
            with self.inside(part):
                result = function(*arguments, **options)
            if len(self.stack) == 1:
                self.done(part, arguments, result)
            return result

        return watched

    def done(self, part: str, arguments: tuple[Any, ...], result: Any) -> None:
        """Called when a part that is not inside another one has ended."""

    def run(self, step: Step) -> None:
        """One step under watch."""
        with ExitStack() as patches:
            for part, entries in ENTRIES.items():
                for owner, name in entries:
                    wrapped = self.wrap(getattr(owner, name), part)
                    patches.enter_context(mock.patch.object(owner, name, wrapped))
            step.optimiser.zero_grad()
            self.last = self._now()
            loss = step.loss()
            with self.inside("backward"):
                loss.backward()  # type: ignore[no-untyped-call]
            with self.inside("optimiser"):
                step.optimiser.step()
            self._turn()


def parts_of(step: Step, device: torch.device) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of every part of one step, which sum up to the step's. On a GPU each part waits for the
    device."""
    watch = Watch(device)
    watch.run(step)
    return {part: (watch.seconds[part][0], watch.seconds[part][1]) for part in PARTS if part in watch.seconds}
