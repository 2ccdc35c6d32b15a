"""In which precision a fit multiplies: float32, or bfloat16 where a kernel has such products.

The map is asked in float32 once it is fitted: rounded products would roughen it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from neuralreg.errors import InputError
from neuralreg.fields import Field
from neuralreg.kernels.backends import registry

# What a precision is called in a FieldSpec.
PRODUCTS = {"fp32": "full", "bf16": "bfloat16"}


def check_precision(options: Any, device: torch.device) -> None:
    """That the precision in a method's options, where it has one, can be had on a device.

    Raises:
        InputError: the backend that is chosen there has no such products. The reference, which emulates them, counts
            where it was asked for.
    """
    if getattr(options, "precision", "fp32") == "fp32":
        return
    chosen = registry.choose("field", device)
    if chosen == "cpu":
        raise InputError(
            "precision bf16 needs a GPU: the kernels for CPUs multiply in float32 alone; leave it out, or set "
            "NEURALREG_BACKEND=reference to have it emulated, slowly"
        )
    if chosen == "reference" and not registry.asked_for("reference"):
        raise InputError(
            f"precision bf16: no kernel for {device.type} is chosen by itself here, and plain torch only emulates it; "
            "set NEURALREG_BACKEND to cuda, triton or reference"
        )


def with_full_products(map_: nn.Module) -> nn.Module:
    """The map itself, whose fields multiply in full from here on."""
    for module in map_.modules():
        if isinstance(module, Field):
            module.spec = replace(module.spec, products="full")
    return map_
