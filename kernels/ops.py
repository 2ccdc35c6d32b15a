"""Registering an op with torch's dispatcher.

As ``torch.library.custom_op`` does, but a call of such an op imports torch's compiler, which takes seconds that a short
registration notices. Ops that change their arguments stay with ``custom_op``, which counts the changes for autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "neuralreg"
_library = torch.library.Library(NAMESPACE, "FRAGMENT")


class Op:
    """A registered op: call it as the function that computes it."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        schema = torch.library.infer_schema(function, mutates_args=())
        _library.define(name + schema, tags=torch.Tag.pt2_compliant_tag)
        _library.impl(name, function, "CompositeExplicitAutograd")
        self.name = f"{NAMESPACE}::{name}"
        self.overload = getattr(torch.ops.neuralreg, name).default

    def __call__(self, *arguments: Any) -> Any:
        return self.overload(*arguments)

    def register_fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` gives outputs of the right shapes without computing them, for tracing."""
        return torch.library.register_fake(self.name, function, lib=_library)

    def register_autograd(
        self, backward: Callable[..., Any], *, setup_context: Callable[..., Any] | None = None
    ) -> None:
        """``backward(ctx, *grads)`` with what ``setup_context(ctx, inputs, output)`` saved."""
        torch.library.register_autograd(self.name, backward, setup_context=setup_context, lib=_library)


def op(name: str) -> Callable[[Callable[..., Any]], Op]:
    """Decorator: the annotated function becomes the op ``neuralreg::name``, which changes none of its arguments and
    returns none of them."""
    return lambda function: Op(name, function)
