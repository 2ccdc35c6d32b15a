"""Sizes of a field's Triton launches: blocks of points, slots of rows, the places of the weights."""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import torch

from neuralreg.kernels.spec import FieldSpec

from . import registry
from .triton_encoding import in_triton, wide
from .triton_plan import parts, power_of_two


@dataclass(frozen=True)
class Layout:
    """Sizes of a field's launches and the constants of its kernels."""

    spec: FieldSpec
    dtype: torch.dtype
    jet: bool
    share: int  # elements of a slot at most, if a block of 16 points lets it; fewer with gates
    most: int  # points of a block at most

    @property
    def planes(self) -> int:
        """Sets of rows: values, and tangents."""
        return 1 + self.spec.ndim if self.jet else 1

    @property
    def stride(self) -> int:
        """Elements between the inputs of two points."""
        return 16 * parts(self.spec.inputs, 16)

    @property
    def slots(self) -> int:
        return len(self.spec.hidden) * (2 if self.spec.gated else 1) + 1

    @functools.cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where the layers' weights begin among all parameters, the biases behind each, and the end."""
        starts = [0]
        for widths in (self.spec.widths, self.spec.gate_widths):
            for fan_in, fan_out in itertools.pairwise(widths):
                starts.append(starts[-1] + fan_out * (fan_in + 1))
        return tuple(starts)

    @functools.cached_property
    def constants(self) -> dict[str, Any]:
        spec = self.spec
        count = len(spec.hidden)
        width, out = (max(16, power_of_two(w)) for w in (max(spec.hidden), spec.out))
        row = max(width, out)
        fitting = self.share // ((self.planes + spec.gated) * row)  # gates are held beside the rows
        block = max(16, min(self.most, 1 << (fitting.bit_length() - 1) if fitting else 16))
        return {
            "HIDDEN": spec.hidden,
            "OFFSETS": self.offsets[: count + 1],
            "OMEGAS": spec.omega,
            "GATE_OFFSETS": self.offsets[count + 1 : -1],
            "GATE_OMEGAS": spec.gate_omega,
            "KIND": spec.activation,
            "SKIP": spec.skip,
            "GATED": spec.gated,
            "OUTPUT": spec.output,
            "INPUTS": spec.inputs,
            "ENCODED": spec.encoded,
            "OUT": spec.out,
            "D": self.planes - 1,
            "W": width,
            "BW": row,
            "WO": out,
            "BP": block,
            "BK": 32 if self.dtype == torch.bfloat16 else 16,
            "TILE": min(width, 64),
            "ACC": in_triton(self.dtype),
            "PLAIN": registry.interpreted and self.dtype == torch.bfloat16,
        }

    @property
    def block(self) -> int:
        return self.constants["BP"]

    @property
    def slot(self) -> int:
        return self.planes * self.block * self.constants["BW"]

    @property
    def warps(self) -> int:
        return 4 if self.slot < 4096 else 8

    def chunk(self, n: int, workspace: int, backward: bool) -> int:
        """Points that go through together: whole blocks."""
        size = self.dtype.itemsize + (wide(self.dtype).itemsize if backward else 0)
        fitting = workspace // (self.planes * self.stride * size * self.block)
        return self.block * max(1, min(fitting, parts(n, self.block)))


layout_of = functools.lru_cache(maxsize=256)(Layout)
