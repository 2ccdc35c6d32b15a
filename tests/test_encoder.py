"""NePhi's encoder: sizes, normalisation, codes that see the pair."""

from __future__ import annotations

import pytest
import torch

from neuralreg.errors import InputError
from neuralreg.methods.nephi import NePhi
from neuralreg.methods.nephi_options import PRESETS
from neuralreg.networks.encoder import Encoder, halved, local_block_of, normalisation


def test_the_released_network_has_its_parameters_and_lattice() -> None:
    shape = (175, 175, 175)
    with torch.device("meta"):
        encoder = Encoder(shape)
    assert encoder.lattice == (22, 22, 22)
    assert halved(shape, 6) == (3, 3, 3)
    count = sum(p.numel() for p in encoder.parameters())
    assert count == pytest.approx(2_986_000, rel=2e-3)
    with torch.device("meta"):
        decoder = NePhi(PRESETS["paper"], (16, 16, 16)).there
    assert sum(p.numel() for p in decoder.parameters()) == 140_419


@pytest.mark.parametrize("shape", [(7, 12), (9, 8, 13), (1, 16)])
@pytest.mark.parametrize("norm", ["group", "batch", "none"])
@pytest.mark.parametrize("context", [False, True])
def test_codes_of_any_shape(shape: tuple[int, ...], norm: str, context: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder(
        shape,
        widths=(4, 8, 8),
        global_code=3,
        local_code=5,
        local_block=1,
        head=6,
        norm=norm,
        context=context,
    )
    codes, volumes = encoder(torch.rand(2, 2, *shape))
    assert codes.shape == (2, 3)
    assert volumes.shape == (2, 5, *halved(shape, 2)) == (2, 5, *encoder.lattice)
    (codes.sum() + volumes.sum()).backward()
    assert all(p.grad is not None for p in encoder.parameters())


def test_with_context_a_local_code_sees_the_whole_image() -> None:
    shape = (64, 64)
    reach = {}
    for context in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(shape, widths=(4, 4, 4, 4, 4), norm="none", local_block=0, context=context)
        images = torch.rand(1, 2, *shape, requires_grad=True)
        encoder(images)[1][0, :, 2, 2].sum().backward()
        reach[context] = int(images.grad[0].abs().sum((0, 1)).nonzero().max())
    assert reach[False] < 10
    assert reach[True] > 32


@pytest.mark.parametrize("missing", ["global_code", "local_code"])
def test_a_code_of_width_0_has_no_branch(missing: str) -> None:
    encoder = Encoder((16, 16), widths=(4, 8), **{missing: 0})
    found = dict(zip(("global_code", "local_code"), encoder(torch.rand(1, 2, 16, 16)), strict=True))
    assert found.pop(missing) is None
    assert found.popitem()[1] is not None


def test_group_normalisation_does_not_mix_the_pairs_of_a_batch() -> None:
    torch.manual_seed(0)
    encoder = Encoder((16, 16), widths=(8, 16))
    images = torch.rand(3, 2, 16, 16)
    together = encoder(images)
    for index in range(3):
        for ours, alone in zip(together, encoder(images[index : index + 1]), strict=True):
            torch.testing.assert_close(ours[index], alone[0], rtol=1e-4, atol=1e-5)


def test_the_block_of_the_local_codes_follows_the_longest_axis() -> None:
    assert [local_block_of((n, 8, 8)) for n in (16, 64, 175, 256, 512)] == [0, 1, 2, 3, 4]


def test_wrong_images_and_names_are_told() -> None:
    encoder = Encoder((16, 16), widths=(4,))
    with pytest.raises(ValueError, match=r"takes \(B, 2, \(16, 16\)\) images"):
        encoder(torch.rand(1, 2, 16, 15))
    with pytest.raises(ValueError, match="norm must be one of"):
        normalisation(2, 8, "layer")
    with pytest.raises(ValueError, match="local_block"):
        Encoder((16, 16), widths=(4,), local_block=1)


def test_batch_normalisation_over_gloo_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(InputError, match="take norm=group"):
        normalisation(3, 8, "batch")
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "nccl")
    assert isinstance(normalisation(3, 8, "batch"), torch.nn.SyncBatchNorm)
