"""The registered ops on the triton backend: schemas, and torch.compile in one graph."""

from __future__ import annotations

import pytest
import torch

from neuralreg import kernels
from neuralreg.kernels.backends import registry

from .calls import Call, calls, results
from .common import assert_near, leaf, serving
from .test_ops import Recorder, copied, name_of

ON = serving("lncc", "triton")
pytestmark = pytest.mark.skipif(
    not ON, reason=f"triton serves nothing here: {registry.available('triton')[1]}"
)
CHECKED = ("lncc to one image", "lncc mask", "lncc recompute", "ssim", "ssim map")


def call_of(case: str) -> Call:
    if case.startswith("ssim"):
        images = [leaf(torch.rand(1, 2, 6, 7, 8)) for _ in range(2)]
        return kernels.ssim, [*images, 5], {"reduction": "none" if "map" in case else "mean"}
    return calls(torch.float32)[case]


@pytest.mark.skipif(not registry.interpreted, reason="the calls are on the CPU")
@pytest.mark.parametrize("case", CHECKED)
def test_opcheck(case: str) -> None:
    with Recorder() as recorder:
        results(call_of(case), "triton")
    assert len(recorder.seen) == 2
    for op, args, kwargs in recorder.seen:
        backward = name_of(op).endswith("backward")
        torch.library.opcheck(
            op, copied(args, not backward), kwargs, test_utils=("test_schema", "test_faketensor")
        )


@pytest.mark.skipif(not registry.interpreted, reason="the calls are on the CPU")
@pytest.mark.parametrize("case", ["lncc", "ssim"])
def test_compiles_in_one_graph(case: str) -> None:
    call = call_of(case)
    expected = results(call, "triton")
    torch._dynamo.reset()
    compiled = torch.compile(call[0], fullgraph=True, backend="aot_eager")
    for one, other in zip(results(call, "triton", compiled), expected, strict=True):
        assert_near(one, other, 1e-6)
