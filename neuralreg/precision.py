"""In which precision a fit multiplies: float32, or bfloat16 where a kernel has such products.

The map is asked in float32 once it is fitted: rounded products would roughen it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from neuralreg.errors import InputError
from neuralreg.fields import Field
from neuralreg.kernels.backends import native, registry

# What a precision is called in a FieldSpec.
PRODUCTS = {"fp32": "full", "bf16": "bfloat16"}


def check_precision(options: Any, device: torch.device) -> None:
    """That the precision in a method's options, where it has one, can be had on a device.

    Raises:
        InputError: the backend that is chosen there has no such products, or has to take longer over them than over
            float32. One that was asked for by name counts all the same, the reference too, which emulates them.
    """
    if getattr(options, "precision", "fp32") == "fp32":
        return
    chosen = registry.choose("field", device)
    if registry.asked_for(chosen):
        return
    if chosen == "cpu" and not native.multiplies_bfloat16():
        raise InputError(
            "precision bf16 needs a GPU, or a CPU that multiplies bfloat16 (AVX512-BF16), which this one does not; "
            "leave it out, or set NEURALREG_BACKEND=cpu to have its numbers all the same, slower than float32"
        )
    if chosen == "reference":
        raise InputError(
            f"precision bf16: no kernel for {device.type} is chosen by itself here, and plain torch only emulates it; "
            "set NEURALREG_BACKEND to cuda, triton or reference"
        )


@contextlib.contextmanager
def multiplying(map_: nn.Module, precision: str) -> Iterator[None]:
    """Inside it the map's fields multiply in ``precision``, afterwards in full."""
    _multiply(map_, PRODUCTS[precision])
    try:
        yield
    finally:
        _multiply(map_, "full")


def _multiply(map_: nn.Module, products: str) -> None:
    for module in map_.modules():
        if isinstance(module, Field):
            module.spec = replace(module.spec, products=products)
