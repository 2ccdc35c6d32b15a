"""How nearly two neural fields undo each other, by the derivative of one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .backends import registry
from .field import chosen_backend, field_jet, field_tensors
from .ops import op
from .spec import FieldSpec, flatten, unflatten

Jet = Callable[[Tensor], tuple[Tensor, Tensor]]


# Returns the value, and behind each other the gradients that are wanted, of x, `there` and `back`: a volume's with its
# channels last.
@op("gradient_inverse_consistency_forward")
def _forward(
    x: Tensor,
    there: list[Tensor],
    back: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    return registry.implementation("gradient_inverse_consistency", backend)(
        x, there, back, ints, floats, want
    )


@_forward.register_fake
def _(
    x: Tensor,
    there: list[Tensor],
    back: list[Tensor],
    ints: list[int],
    floats: list[float],
    want: list[bool],
    backend: str,
) -> tuple[Tensor, Tensor]:
    numbers = sum(t.numel() for t, w in zip([x, *there, *back], want, strict=True) if w)
    return x.new_empty(()), x.new_empty(numbers)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, there, back, ints, floats, ctx.want, _ = inputs
    ctx.shapes, ctx.there = [t.shape for t in (x, *there, *back)], len(there)
    ctx.volume = unflatten(ints, floats).volume_index
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _grad(ctx: Any, grad: Tensor | None, _: None) -> tuple[Any, ...]:
    found: list[Tensor | None] = [None] * len(ctx.shapes)
    if grad is not None:
        sizes = [shape.numel() if want else 0 for shape, want in zip(ctx.shapes, ctx.want, strict=True)]
        parts = (ctx.saved_tensors[0] * grad).split(sizes)
        for number, (part, shape, want) in enumerate(zip(parts, ctx.shapes, ctx.want, strict=True)):
            if want and ctx.volume is not None and number == 1 + ctx.volume:
                found[number] = part.view(*shape[1:], shape[0]).movedim(-1, 0)
            elif want:
                found[number] = part.view(shape)
    return found[0], found[1 : 1 + ctx.there], found[1 + ctx.there :], None, None, None, None


_forward.register_autograd(_grad, setup_context=_setup)


def gradient_inverse_consistency(
    x: Tensor,
    params: Sequence[Tensor],
    inverse_params: Sequence[Tensor],
    spec: FieldSpec,
    *,
    latent: Tensor | None = None,
    volume: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Mean squared entry of d(psi(phi(x)) - x)/dx over points and both orders of the maps (GradICON, Tian et al. 2023).

    ``phi(x) = x + u(x)`` and ``psi(x) = x + v(x)`` are fields of one spec that share their latents. Exact, from both
    Jacobians: the derivative is ``Ju + Jv + Jv Ju`` with Jv taken at phi(x).

    Args:
        x: (N, ndim) coordinates; ndim is 2 or 3.
        params, inverse_params: tensors of u and of v, as for :func:`field`.
        spec: of both fields; out is ndim.
        latent, volume: of both fields, as for :func:`field`.
        backend: "cpu", "reference", ...; None chooses.

    Returns:
        A scalar, NaN without points. Differentiable once in x, every parameter and both latents.

    The cpu backend computes the gradient along with the value, while the activations of a block of points are at hand,
    so that the backward only multiplies. Memory beyond inputs: once the gradients that are wanted, from the forward to
    the backward, and as :func:`field_jet` for two fields. Other backends put their own jets together.

    Raises:
        ValueError: a shape or dtype does not fit the spec.
    """
    name = "gradient_inverse_consistency"
    if spec.ndim not in (2, 3) or spec.out != spec.ndim:
        raise ValueError(f"{name}: needs ndim 2 or 3 and out == ndim, got {spec.ndim}, {spec.out}")
    there = field_tensors(name, x, list(params), spec, latent, volume)
    field_tensors(name, x, list(inverse_params), spec, latent, volume)
    chosen = chosen_backend("field_jet", x, spec, backend)
    if not registry.serves(name, chosen):

        def jet_of(own: Sequence[Tensor]) -> Jet:
            return lambda p: field_jet(p, list(own), spec, latent=latent, volume=volume, backend=chosen)

        return consistency_of_jets(jet_of(params), jet_of(inverse_params), x)
    back = list(inverse_params)
    wanted = torch.is_grad_enabled()
    want = [wanted and t.requires_grad for t in (x, *there, *back)]
    return _forward(x, there, back, *flatten(spec), want, chosen)[0]


def consistency_of_jets(jet: Jet, inverse_jet: Jet, x: Tensor) -> Tensor:
    """:func:`gradient_inverse_consistency` of any two maps that give displacements (N, ndim) and Jacobians."""
    terms = []
    for first, second in ((jet, inverse_jet), (inverse_jet, jet)):
        u, inner = first(x)
        _, outer = second(x + u)
        terms.append((inner + outer + outer @ inner).square().mean())
    return torch.stack(terms).mean()
