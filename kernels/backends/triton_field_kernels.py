"""A field's layers in Triton: one kernel forward, one backward, each from the encoded inputs of a chunk of points.

Programs are persistent and take blocks of points. The rows of a block go from layer to layer through slots of the
program's own in the `work` buffer, small enough for the cache: a tile of registers cannot be cut along the dimension
that the next product sums over. The layers' z stands in `wide`, in the type of the sums, for the backward, which
computes the block anew first. Slots are planes (1 + D, BP, BW): hidden layer l of the main stack has slot l, of the
modulator L + l; the last one holds gradients (in `work`) and what skips bring back to the first layer (in `wide`).

A barrier stands wherever a slot is read after it was written, or written after it was read: its readers hold the
elements in another layout than its writers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_encoding_kernels import pick
from .triton_field_layers import (
    activated,
    add_bias,
    add_outer,
    along,
    bias_of,
    dense,
    get,
    put,
    tanh,
)


@triton.jit
def layer_forward(
    work, wide, layers, layer, a, a_plane, a_stride, n_rows, own, own_wide, K,
    KMAX: tl.constexpr, FIRST: tl.constexpr, SAVE: tl.constexpr, GATE: tl.constexpr, HIDDEN: tl.constexpr,
    OFFSETS: tl.constexpr, OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr, MODULATED: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Hidden layer `layer` of the modulator (GATE) or of the main stack, which it multiplies (MODULATED)."""
    SLOT: tl.constexpr = (1 + D) * BP * BW
    LAYERS: tl.constexpr = len(HIDDEN)
    N = pick(HIDDEN, layer, tl.int32)
    w = pick(OFFSETS, layer, tl.int64)
    z, t0, t1, t2 = dense(
        work, a, a_plane, a_stride, n_rows, layers, w, K, 1, N, K, D, KMAX, W, BP, BK, ACC, PLAIN
    )
    z += bias_of(layers, w + N * K, N, W, ACC)
    slot = (LAYERS if GATE else 0) + layer
    if SAVE:
        put(wide, own_wide + slot * SLOT, z, t0, t1, t2, D, BW, BP, W)
    v, slope, _ = activated(z, layer, OMEGAS, KIND, ACC)
    t0, t1, t2 = slope * t0, slope * t1, slope * t2
    if MODULATED:
        g, g0, g1, g2 = get(work, own + (LAYERS + layer) * SLOT, D, BW, BP, W, ACC)
        t0, t1, t2 = g0 * v + g * t0, g1 * v + g * t1, g2 * v + g * t2
        v = g * v
    elif SKIP != "none" and not FIRST:
        before = 0 if SKIP == "first" else layer - 1
        s, s0, s1, s2 = get(work, own + ((LAYERS if GATE else 0) + before) * SLOT, D, BW, BP, W, ACC)
        v, t0, t1, t2 = v + s, t0 + s0, t1 + s1, t2 + s2
    put(work, own + slot * SLOT, v, t0, t1, t2, D, BW, BP, W)
    tl.debug_barrier()


@triton.jit
def block_forward(
    work, wide, layers, inputs, plane, stride, n_rows, own, own_wide,
    SAVE: tl.constexpr, HIDDEN: tl.constexpr, OFFSETS: tl.constexpr, OMEGAS: tl.constexpr,
    GATE_OFFSETS: tl.constexpr, GATE_OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr,
    GATED: tl.constexpr, INPUTS: tl.constexpr, ENCODED: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr,
    W: tl.constexpr, BW: tl.constexpr, WO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, ACC: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """All layers of a block, the modulator's one ahead; z of the last layer with its tangents."""
    SLOT: tl.constexpr = (1 + D) * BP * BW
    LAYERS: tl.constexpr = len(HIDDEN)
    MAIN: tl.constexpr = ENCODED if GATED else INPUTS
    if GATED:
        layer_forward(
            work, wide, layers, 0, inputs, plane, stride, n_rows, own, own_wide, INPUTS, INPUTS, True, SAVE, True,
            HIDDEN, GATE_OFFSETS, GATE_OMEGAS, "sine", SKIP, False, D, W, BW, BP, BK, ACC, PLAIN
        )  # fmt: skip
    layer_forward(
        work, wide, layers, 0, inputs, plane, stride, n_rows, own, own_wide, MAIN, MAIN, True, SAVE, False,
        HIDDEN, OFFSETS, OMEGAS, KIND, SKIP, GATED, D, W, BW, BP, BK, ACC, PLAIN
    )  # fmt: skip
    for layer in range(1, LAYERS):
        K = pick(HIDDEN, layer - 1, tl.int32)
        a = own + (layer - 1) * SLOT
        if GATED:
            layer_forward(
                work, wide, layers, layer, a + LAYERS * SLOT, BP * BW, BW, BP, own, own_wide, K, W, False, SAVE,
                True, HIDDEN, GATE_OFFSETS, GATE_OMEGAS, "sine", SKIP, False, D, W, BW, BP, BK, ACC, PLAIN
            )  # fmt: skip
        layer_forward(
            work, wide, layers, layer, a, BP * BW, BW, BP, own, own_wide, K, W, False, SAVE, False,
            HIDDEN, OFFSETS, OMEGAS, KIND, SKIP, GATED, D, W, BW, BP, BK, ACC, PLAIN
        )  # fmt: skip
    K = HIDDEN[LAYERS - 1]
    w = OFFSETS[LAYERS]
    z, t0, t1, t2 = dense(
        work,
        own + (LAYERS - 1) * SLOT,
        BP * BW,
        BW,
        BP,
        layers,
        w,
        K,
        1,
        OUT,
        K,
        D,
        W,
        WO,
        BP,
        BK,
        ACC,
        PLAIN,
    )
    return z + bias_of(layers, w + OUT * K, OUT, WO, ACC), t0, t1, t2


@triton.jit
def field_forward_kernel(
    x, work, wide, layers, y, jacobian, n, plane, stride, slots,
    HIDDEN: tl.constexpr, OFFSETS: tl.constexpr, OMEGAS: tl.constexpr, GATE_OFFSETS: tl.constexpr,
    GATE_OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr, GATED: tl.constexpr, OUTPUT: tl.constexpr,
    INPUTS: tl.constexpr, ENCODED: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, WO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """y (n, OUT) and, with a jet, jacobian (n, OUT, D), from the inputs (1 + D, n, stride) in `work`.

    A program's own slots begin `slots` elements into `work`.
    """
    own = slots + tl.program_id(0).to(tl.int64) * (len(HIDDEN) * (2 if GATED else 1) + 1) * (1 + D) * BP * BW
    column = tl.arange(0, WO)[None, :]
    block = tl.program_id(0)
    while block * BP < n:
        point = block.to(tl.int64) * BP + tl.arange(0, BP)[:, None]
        n_rows = tl.minimum(n - block * BP, BP)
        first = block.to(tl.int64) * BP * stride
        z, t0, t1, t2 = block_forward(
            work, wide, layers, first, plane, stride, n_rows, own, own, False, HIDDEN, OFFSETS, OMEGAS, GATE_OFFSETS,
            GATE_OMEGAS, KIND, SKIP, GATED, INPUTS, ENCODED, OUT, D, W, BW, WO, BP, BK, ACC, PLAIN
        )  # fmt: skip
        kept = (point < n) & (column < OUT)
        to = point * OUT + column
        if OUTPUT == "velocity":
            z, slope, _ = tanh(z, ACC)
            t0, t1, t2 = slope * t0, slope * t1, slope * t2
        elif OUTPUT == "position":
            z -= tl.load(x + to, mask=kept, other=0.0).to(ACC)
            t0 = tl.where(column == 0, t0 - 1.0, t0)
            t1 = tl.where(column == 1, t1 - 1.0, t1)
            t2 = tl.where(column == 2, t2 - 1.0, t2)
        kind = y.dtype.element_ty
        tl.store(y + to, z.to(kind), mask=kept)
        if D > 0:
            tl.store(jacobian + to * D, t0.to(kind), mask=kept)
            tl.store(jacobian + to * D + 1, t1.to(kind), mask=kept)
        if D > 2:
            tl.store(jacobian + to * D + 2, t2.to(kind), mask=kept)
        tl.debug_barrier()
        block += tl.num_programs(0)


@triton.jit
def layer_backward(
    work, wide, layers, partial, layer, v, t0, t1, t2, a, a_plane, a_stride, n_rows, own, own_wide, going, K,
    KMAX: tl.constexpr, FIRST: tl.constexpr, GATE: tl.constexpr, HIDDEN: tl.constexpr, OFFSETS: tl.constexpr,
    OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr, MODULATED: tl.constexpr, SLOTS: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr, WANT: tl.constexpr,
):  # fmt: skip
    """From the gradient of a hidden layer's output to that of its z, left in the gradients' slot, and its weights'.

    Returns what a skip takes past the layer to the one before.
    """
    SLOT: tl.constexpr = (1 + D) * BP * BW
    LAYERS: tl.constexpr = len(HIDDEN)
    at = own_wide + ((LAYERS if GATE else 0) + layer) * SLOT
    z, z0, z1, z2 = get(wide, at, D, BW, BP, W, ACC)
    if GATE:  # what the main stack has left where its z was
        g, g0, g1, g2 = get(wide, own_wide + layer * SLOT, D, BW, BP, W, ACC)
        v, t0, t1, t2 = v + g, t0 + g0, t1 + g1, t2 + g2
    if SKIP == "first" and LAYERS > 1 and not MODULATED:
        s, s0, s1, s2 = get(wide, own_wide + SLOTS * SLOT, D, BW, BP, W, ACC)
        some = layer < LAYERS - 1  # nothing of this block is there before the last layer
        s, s0 = tl.where(some, s, 0.0), tl.where(some, s0, 0.0)
        s1, s2 = tl.where(some, s1, 0.0), tl.where(some, s2, 0.0)
        if FIRST:
            v, t0, t1, t2 = v + s, t0 + s0, t1 + s1, t2 + s2
        else:
            tl.debug_barrier()
            put(wide, own_wide + SLOTS * SLOT, v + s, t0 + s0, t1 + s1, t2 + s2, D, BW, BP, W)
    past, past0, past1, past2 = v, t0, t1, t2
    s, slope, curvature = activated(z, layer, OMEGAS, KIND, ACC)
    tl.debug_barrier()
    if MODULATED:
        g, g0, g1, g2 = get(work, own + (LAYERS + layer) * SLOT, D, BW, BP, W, ACC)
        to_gate = s * v + slope * along(z0, z1, z2, t0, t1, t2, D)
        put(wide, at, to_gate, s * t0, s * t1, s * t2, D, BW, BP, W)
        v = g * v + along(g0, g1, g2, t0, t1, t2, D)
        t0, t1, t2 = g * t0, g * t1, g * t2
    v = slope * v + curvature * along(z0, z1, z2, t0, t1, t2, D)
    t0, t1, t2 = slope * t0, slope * t1, slope * t2
    put(work, own + SLOTS * SLOT, v, t0, t1, t2, D, BW, BP, W)
    tl.debug_barrier()
    if WANT:
        N = pick(HIDDEN, layer, tl.int32)
        w = pick(OFFSETS, layer, tl.int64)
        add_bias(v, partial, w + N * K, going, N, W)
        add_outer(
            work, a, a_plane, a_stride, n_rows, own + SLOTS * SLOT, partial, w, going, N, K,
            D, KMAX, W, TILE, BW, BP, BK, ACC, PLAIN
        )  # fmt: skip
    return past, past0, past1, past2


@triton.jit
def stack_backward(
    work, wide, layers, partial, grad_inputs, v, t0, t1, t2, inputs, plane, stride, n_rows, own, own_wide, going,
    IN: tl.constexpr, ADD: tl.constexpr, GATE: tl.constexpr, HIDDEN: tl.constexpr, OFFSETS: tl.constexpr,
    OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr, MODULATED: tl.constexpr, SLOTS: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, BW: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr, WANT: tl.constexpr, WANT_INPUTS: tl.constexpr,
):  # fmt: skip
    """From the gradient of a stack's last hidden layer to those of its weights and its IN inputs.

    The first ADD columns of the inputs' gradient are added to.
    """
    SLOT: tl.constexpr = (1 + D) * BP * BW
    LAYERS: tl.constexpr = len(HIDDEN)
    own_gradients = own + SLOTS * SLOT
    for back in range(1, LAYERS):
        layer = LAYERS - back
        K = pick(HIDDEN, layer - 1, tl.int32)
        a = own + ((LAYERS if GATE else 0) + layer - 1) * SLOT
        s, s0, s1, s2 = layer_backward(
            work, wide, layers, partial, layer, v, t0, t1, t2, a, BP * BW, BW, BP, own, own_wide, going, K,
            W, False, GATE, HIDDEN, OFFSETS, OMEGAS, KIND, SKIP, MODULATED, SLOTS, D, W, BW, BP, BK, TILE,
            ACC, PLAIN, WANT
        )  # fmt: skip
        v, t0, t1, t2 = dense(
            work, own_gradients, BP * BW, BW, BP, layers, pick(OFFSETS, layer, tl.int64), 1, K, K,
            pick(HIDDEN, layer, tl.int32), D, W, W, BP, BK, ACC, PLAIN
        )  # fmt: skip
        if SKIP == "previous" and not MODULATED:
            v, t0, t1, t2 = v + s, t0 + s0, t1 + s1, t2 + s2
    layer_backward(
        work, wide, layers, partial, 0, v, t0, t1, t2, inputs, plane, stride, n_rows, own, own_wide, going, IN,
        IN, True, GATE, HIDDEN, OFFSETS, OMEGAS, KIND, SKIP, MODULATED, SLOTS, D, W, BW, BP, BK, TILE, ACC, PLAIN,
        WANT
    )  # fmt: skip
    if WANT_INPUTS:
        for first in range(0, IN, W):
            v, t0, t1, t2 = dense(
                work, own_gradients, BP * BW, BW, BP, layers, OFFSETS[0] + first, 1, IN, IN - first,
                HIDDEN[0], D, W, W, BP, BK, ACC, PLAIN
            )  # fmt: skip
            column = first + tl.arange(0, W)[None, :]
            point = tl.arange(0, BP)[:, None]
            kept = (point < n_rows) & (column < IN)
            there = kept & (column < ADD)
            to = grad_inputs + inputs + point * stride + column
            tl.store(to, v + tl.load(to, mask=there, other=0.0), mask=kept)
            if D > 0:
                tl.store(to + plane, t0 + tl.load(to + plane, mask=there, other=0.0), mask=kept)
                to += 2 * plane
                tl.store(to, t1 + tl.load(to, mask=there, other=0.0), mask=kept)
            if D > 2:
                tl.store(to + plane, t2 + tl.load(to + plane, mask=there, other=0.0), mask=kept)


@triton.jit
def field_backward_kernel(
    work, wide, layers, grad, grad_jacobian, partial, grad_inputs, n, plane, stride, slots, total, started,
    HIDDEN: tl.constexpr, OFFSETS: tl.constexpr, OMEGAS: tl.constexpr, GATE_OFFSETS: tl.constexpr,
    GATE_OMEGAS: tl.constexpr, KIND: tl.constexpr, SKIP: tl.constexpr, GATED: tl.constexpr, OUTPUT: tl.constexpr,
    INPUTS: tl.constexpr, ENCODED: tl.constexpr, OUT: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
    BW: tl.constexpr, WO: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr, TILE: tl.constexpr,
    ACC: tl.constexpr, PLAIN: tl.constexpr, WANT: tl.constexpr, WANT_INPUTS: tl.constexpr,
):  # fmt: skip
    """grad_inputs (1 + D, n, stride) and a program's partial sums (programs, total) of the weights' gradients.

    Partial sums of an earlier chunk stand there already where it has `started`.
    """
    SLOT: tl.constexpr = (1 + D) * BP * BW
    LAYERS: tl.constexpr = len(HIDDEN)
    SLOTS: tl.constexpr = LAYERS * (2 if GATED else 1)
    me = tl.program_id(0).to(tl.int64)
    own = slots + me * (SLOTS + 1) * SLOT
    own_wide = me * (SLOTS + 1) * SLOT
    mine = partial + me * total
    column = tl.arange(0, WO)[None, :]
    block = tl.program_id(0)
    while block * BP < n:
        going = (block + started * tl.num_programs(0) + tl.zeros((1, 1), tl.int32)) >= tl.num_programs(0)
        point = block.to(tl.int64) * BP + tl.arange(0, BP)[:, None]
        n_rows = tl.minimum(n - block * BP, BP)
        first = block.to(tl.int64) * BP * stride
        z, z0, z1, z2 = block_forward(
            work, wide, layers, first, plane, stride, n_rows, own, own_wide, True, HIDDEN, OFFSETS, OMEGAS,
            GATE_OFFSETS, GATE_OMEGAS, KIND, SKIP, GATED, INPUTS, ENCODED, OUT, D, W, BW, WO, BP, BK, ACC, PLAIN
        )  # fmt: skip
        kept = (point < n) & (column < OUT)
        at = point * OUT + column
        v = tl.load(grad + at, mask=kept, other=0.0).to(ACC)
        t0 = v
        t1 = v
        t2 = v
        if D > 0:
            t0 = tl.load(grad_jacobian + at * D, mask=kept, other=0.0).to(ACC)
            t1 = tl.load(grad_jacobian + at * D + 1, mask=kept, other=0.0).to(ACC)
        if D > 2:
            t2 = tl.load(grad_jacobian + at * D + 2, mask=kept, other=0.0).to(ACC)
        if OUTPUT == "velocity":
            _, slope, curvature = tanh(z, ACC)
            v = slope * v + curvature * along(z0, z1, z2, t0, t1, t2, D)
            t0, t1, t2 = slope * t0, slope * t1, slope * t2
        put(work, own + SLOTS * SLOT, v, t0, t1, t2, D, BW, BP, WO)
        tl.debug_barrier()
        K = HIDDEN[LAYERS - 1]
        w = OFFSETS[LAYERS]
        if WANT:
            add_bias(v, mine, w + OUT * K, going, OUT, WO)
            add_outer(
                work, own + (LAYERS - 1) * SLOT, BP * BW, BW, BP, own + SLOTS * SLOT, mine, w, going, OUT, K,
                D, W, WO, TILE, BW, BP, BK, ACC, PLAIN
            )  # fmt: skip
        v, t0, t1, t2 = dense(
            work, own + SLOTS * SLOT, BP * BW, BW, BP, layers, w, 1, K, K, OUT, D, WO, W, BP, BK, ACC, PLAIN
        )
        stack_backward(
            work, wide, layers, mine, grad_inputs, v, t0, t1, t2, first, plane, stride, n_rows, own, own_wide, going,
            ENCODED if GATED else INPUTS, 0, False, HIDDEN, OFFSETS, OMEGAS, KIND, SKIP, GATED, SLOTS,
            D, W, BW, BP, BK, TILE, ACC, PLAIN, WANT, WANT_INPUTS
        )  # fmt: skip
        if GATED:
            tl.debug_barrier()
            v = tl.zeros((BP, W), ACC)
            stack_backward(
                work, wide, layers, mine, grad_inputs, v, v, v, v, first, plane, stride, n_rows, own, own_wide, going,
                INPUTS, ENCODED, True, HIDDEN, GATE_OFFSETS, GATE_OMEGAS, "sine", SKIP, False, SLOTS,
                D, W, BW, BP, BK, TILE, ACC, PLAIN, WANT, WANT_INPUTS
            )  # fmt: skip
        tl.debug_barrier()
        block += tl.num_programs(0)
