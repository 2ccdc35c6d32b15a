"""NePhi: a prediction that is refined, and one pair that is fitted without a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.methods import nephi
from neuralreg.methods.nephi_losses import regulariser_points
from neuralreg.metrics import dice
from neuralreg.pair import Pair
from tests.small_nephi import SMALL, batch_of, discs, waken


@pytest.mark.parametrize("refined", ["codes", "decoders", "both"])
def test_refinement_moves_what_was_asked_and_lowers_the_loss(refined: str) -> None:
    shape = (24, 24)
    pair = Pair(discs(shape, 5.0)[0], discs(shape, 8.0)[0], torch.eye(2, 3))
    trainee = nephi.make_trainee(SMALL, shape, 2, 0)
    waken(trainee, 0.02)
    before = nephi.predict(trainee, pair)
    network = {name: value.clone() for name, value in trainee.module.state_dict().items()}
    options = replace(SMALL, refined=refined, refine_lr=1e-2, refine_code_lr=1e-2)
    after, history = nephi.fit_trained(trainee, pair, options, refine=30)
    assert len(history) == 30
    first, last = (sum(h["loss"] for h in part) for part in (history[:5], history[-5:]))
    assert last < first
    assert torch.equal(before.latent, after.latent) == (refined == "decoders")
    assert torch.equal(before.volume, after.volume) == (refined == "decoders")
    same = all(torch.equal(a, b) for a, b in zip(before.there.weights, after.there.weights, strict=True))
    assert same == (refined == "codes")
    assert all(torch.equal(network[name], value) for name, value in trainee.module.state_dict().items())
    with pytest.raises(InputError, match="hidden cannot change"):
        nephi.fit_trained(trainee, pair, replace(SMALL, hidden=(8,)), refine=1)


def test_refinement_goes_through_its_stages_with_a_rate_for_codes_and_one_for_decoders() -> None:
    shape = (24, 24)
    pair = Pair(discs(shape, 5.0)[0], discs(shape, 8.0)[0], torch.eye(2, 3))
    options = replace(
        SMALL, sampler="lattice", refine_scales=(2, 1), refine_strides=(1, 2), refine_final_lr=1.0
    )
    trainee = nephi.make_trainee(options, shape, 2, 0)
    waken(trainee, 0.02)
    _, history = nephi.fit_trained(trainee, pair, options, refine=6)
    assert [one["scale"] for one in history] == [2, 2, 2, 1, 1, 1]
    before = nephi.predict(trainee, pair)
    quick = replace(options, refine_lr=1e-3, refine_code_lr=4e-3)
    after, _ = nephi.fit_trained(trainee, pair, quick, refine=1)
    # Adam's first step is its rate, wherever there is a gradient
    moved = [(a - b).abs().max() for a, b in ((before.latent, after.latent), (before.volume, after.volume))]
    torch.testing.assert_close(torch.stack(moved), torch.full((2,), 4e-3), rtol=1e-2, atol=0)
    weights = zip(before.there.weights, after.there.weights, strict=True)
    torch.testing.assert_close(
        max((a - b).abs().max() for a, b in weights), torch.tensor(1e-3), rtol=1e-2, atol=0
    )


def test_without_a_network_the_codes_of_one_pair_are_fitted() -> None:
    shape = (28, 24)
    (fixed, inside), (moving, other) = discs(shape, 6.0), discs(shape, 9.0, shift=1.0)
    options = replace(SMALL, iterations=120, refine_lr=1e-2, refine_code_lr=1e-2)
    pair = Pair(fixed, moving, torch.eye(2, 3))
    field, history = nephi.fit(pair, options, seed=0)
    u = nephi.dense_displacement(field, shape).detach()
    moved = kernels.warp(other[None, None].float(), u[None], mode="nearest")[0, 0].long()
    assert dice(inside, moved)[1] > dice(inside, other)[1] + 0.15
    assert len(history) == 120
    assert history[-1]["similarity"] > history[0]["similarity"]


def test_stages_share_the_training_and_a_fit_of_one_pair_goes_on_with_the_last() -> None:
    options = replace(SMALL, sampler="lattice", scales=(4, 2, 1), strides=(3,), windows=(5, 3))
    found = [options.stage(done) for done in (0.0, 0.33, 0.34, 0.67, 1.0)]
    assert [one.scales + one.windows for one in found] == [(4, 5), (4, 5), (2, 3), (1, 3), (1, 3)]
    assert {one.strides for one in found} == {(3,)}
    assert options.of_one_pair().scales == (1,)
    chosen = replace(options, refine_scales=(2, -1), refine_strides=(1,), refine_windows=(7,)).of_one_pair()
    assert (chosen.scales, chosen.strides, chosen.windows) == ((2, 1), (1,), (7,))
    assert chosen.of_one_pair() == chosen
    assert chosen.stages == 2
    assert (chosen.regulariser_bounds, chosen.regulariser_weight) == (
        options.regulariser_bounds,
        options.regulariser_weight,
    )
    chosen = replace(options, refine_points=70, refine_weight=0.0).of_one_pair()
    assert (chosen.regulariser_weight, regulariser_points(chosen, (24, 20))) == (0.0, 70)
    trainee = nephi.make_trainee(options, (24, 20), 2, 0)
    batch = batch_of((torch.rand(1, 1, 24, 20), torch.rand(1, 1, 24, 20)))
    similarity = []
    for done in (0.0, 1.0):
        trainee.rate(done)
        similarity.append(
            float(trainee.losses(batch, torch.Generator().manual_seed(0))["similarity"].detach())
        )
    assert similarity[0] != similarity[1]
