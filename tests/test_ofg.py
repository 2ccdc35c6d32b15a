"""OFG's trainee: every mode learns, both directions count alike, and a description rebuilds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralreg import kernels
from neuralreg.dense_field import DenseField
from neuralreg.errors import InputError
from neuralreg.fields import load_field
from neuralreg.losses import soft_dice
from neuralreg.methods import ofg
from neuralreg.methods.ofg_options import MODES, TAUGHT
from neuralreg.options import resolve
from neuralreg.pair import Pair
from neuralreg.registration import register
from neuralreg.training.data import Batch, Pairs, Source, Subject, Subjects
from neuralreg.training.loop import train
from neuralreg.training.trainee import load_trainee, save_trainee

SHAPE = (24, 21)
SMALL: dict[str, Any] = {"encoder": (8, 8), "decoder": (8, 8, 8), "window": 5, "lr": 5e-3, "steps": 4}


class OwnNetwork(nn.Module):
    """A network as users have them: made for a shape, called as TransMorph, returns (warped, displacement)."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(1, len(shape), *shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :1], self.shift.expand(len(x), *self.shift.shape[1:])


def options(mode: str = "ofg", **more: Any) -> ofg.Options:
    return resolve(ofg.PRESETS, "paper", {**SMALL, "mode": mode, **more}, "ofg")


def blob(centre: tuple[float, float], shape: tuple[int, ...] = SHAPE) -> Tensor:
    axes = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in shape], indexing="ij")
    x, y = (axis - c for axis, c in zip(axes, centre, strict=True))
    return 0.8 * (-(x**2 + y**2) / 30).exp() + 0.1 * torch.sin(0.8 * x) * torch.cos(0.6 * y) + 0.1


def batch(count: int = 2) -> Batch:
    """Patterns about two voxels apart, with a disc for a label."""
    fixed = torch.stack([blob((11, 9 + k))[None] for k in range(count)])
    moving = torch.stack([blob((13, 10 - k))[None] for k in range(count)])
    return Batch(fixed, moving, (fixed > 0.5).long(), (moving > 0.5).long())


def taught(folder: Path, mode: str) -> dict[str, Any]:
    """The options that a mode needs beyond its name: the weights of a trained network where it has a teacher."""
    if mode not in TAUGHT:
        return {}
    teacher = ofg.make_trainee(options("unsupervised"), SHAPE, 2, seed=1)
    nn.init.normal_(teacher.module.flow.weight, std=0.03)
    save_trainee(teacher, folder / "teacher.pt")
    return {"teacher": str(folder / "teacher.pt")}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns(mode: str, tmp_path: Path) -> None:
    trainee = ofg.make_trainee(options(mode, **taught(tmp_path, mode)), SHAPE, 2, seed=0)
    optimiser, pairs, history = trainee.optimiser(), batch(), []
    start = trainee.displacement(pairs.fixed, pairs.moving)
    for _ in range(40):
        losses = trainee.losses(pairs, torch.Generator())
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    end = trainee.displacement(pairs.fixed, pairs.moving)
    with torch.no_grad():
        energy = [float(trainee.options.energy(pairs.fixed, pairs.moving, u)) for u in (start, end)]
    if mode == "self-training":  # its supervision stays what it was
        assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    else:  # the guidance never stands in its loss, and still
        assert energy[1] < energy[0] - 0.03
    if mode == "weakly-supervised":
        assert history[-1]["dice"] > history[0]["dice"] + 0.05
    assert not end.requires_grad


def test_losses_are_those_of_the_mode() -> None:
    pairs = batch()
    trainees = {mode: ofg.make_trainee(options(mode), SHAPE, 2, 0) for mode in ("unsupervised", "ofg")}
    trainees["weakly-supervised"] = ofg.make_trainee(
        options("weakly-supervised", dice_weight=3.0), SHAPE, 2, 0
    )
    nn.init.normal_(trainees["ofg"].module.flow.weight, std=0.1)
    for trainee in trainees.values():
        trainee.module.load_state_dict(trainees["ofg"].module.state_dict())
    u = trainees["ofg"].displacement(pairs.fixed, pairs.moving)
    found = {m: trainee.losses(pairs, torch.Generator()) for m, trainee in trainees.items()}
    found = {mode: {name: value.detach() for name, value in parts.items()} for mode, parts in found.items()}
    energy = ofg.Energy(window=5)(pairs.fixed, pairs.moving, u)
    assert abs(float(found["unsupervised"]["loss"] - energy)) < 1e-6
    dice = soft_dice(pairs.fixed_labels, pairs.moving_labels, u)
    assert abs(float(found["weakly-supervised"]["loss"] - energy - 3 * (1 - dice))) < 1e-6
    guided, _ = ofg.OnTheFlyGuidance(4, window=5)(pairs.fixed, pairs.moving, u)
    assert abs(float(found["ofg"]["loss"] - guided)) < 1e-7
    trainees["ofg"].rate(0.5)  # the inner rate follows
    later, _ = ofg.OnTheFlyGuidance(4, window=5)(pairs.fixed, pairs.moving, u, done=0.5)
    assert abs(float(trainees["ofg"].losses(pairs, torch.Generator())["loss"].detach() - later)) < 1e-7
    assert abs(float(later - guided)) > 1e-5


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_the_mean_of_its_pairs_and_two_ways_of_both(mode: str, tmp_path: Path) -> None:
    """What makes gradients that ranks average those of one process."""
    more = taught(tmp_path, mode)
    one_way = ofg.make_trainee(options(mode, **more), SHAPE, 2, seed=0)
    two_way = ofg.make_trainee(options(mode, **more, two_way=True), SHAPE, 2, seed=0)
    nn.init.normal_(one_way.module.flow.weight, std=0.05)
    two_way.module.load_state_dict(one_way.module.state_dict())
    pairs = batch(3)
    pairs.fixed_labels[1][pairs.fixed_labels[1] > 0] = 2  # other pairs do not have this one

    def losses(trainee: ofg.OfgTrainee, *tensors: Tensor) -> float:
        return float(trainee.losses(Batch(*tensors), torch.Generator())["loss"].detach())

    all_four = pairs.fixed, pairs.moving, pairs.fixed_labels, pairs.moving_labels
    swapped = pairs.moving, pairs.fixed, pairs.moving_labels, pairs.fixed_labels
    whole = losses(one_way, *all_four)
    alone = [losses(one_way, *(x[k : k + 1] for x in all_four)) for k in range(3)]
    assert abs(whole - sum(alone) / 3) < 1e-5
    assert abs(losses(two_way, *all_four) - (whole + losses(one_way, *swapped)) / 2) < 1e-5


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"diffeomorphic": True},
        {"network": "transmorph", "embedding": 8, "depths": (2,), "heads": (2,), "attention_window": 3},
        {"network": "tests.test_ofg:OwnNetwork", "call": "stacked"},
    ],
    ids=["voxelmorph", "diffeomorphic", "transmorph", "own"],
)
def test_a_description_rebuilds_the_trainee(more: dict[str, Any], tmp_path: Path) -> None:
    trainee = ofg.make_trainee(options(**more), SHAPE, 2, seed=3)
    with torch.no_grad():
        for parameter in trainee.module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape)
    save_trainee(trainee, tmp_path / "best.pt")
    again = load_trainee(tmp_path / "best.pt")
    pairs = batch()
    u = trainee.displacement(pairs.fixed, pairs.moving).detach()
    assert torch.equal(again.displacement(pairs.fixed, pairs.moving), u)
    assert float(u.abs().max()) > 0
    assert isinstance(again, ofg.OfgTrainee)
    assert again.options == trainee.options


def test_seed_and_schedule() -> None:
    first, same, other = (ofg.make_trainee(options(), SHAPE, 2, seed) for seed in (0, 0, 1))
    weights = [trainee.module.down[0].weight for trainee in (first, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert (first.rate(0.0), first.rate(1.0)) == (1.0, 0.0)
    assert abs(first.rate(0.75) - 0.25**0.9) < 1e-12
    adam = first.optimiser()
    assert adam.defaults["amsgrad"] is True
    assert adam.defaults["lr"] == SMALL["lr"]


def test_trains_in_the_loop(tmp_path: Path) -> None:
    """From subjects to a weights file that registers better than it started."""

    def read(k: int) -> Subject:
        image = blob((11 + k, 10 - k))
        return Subject(f"s{k}", image[None].clamp(0, 1), (image > 0.5).long(), (1.0, 1.0))

    subjects = Subjects([Source(f"s{k}", lambda k=k: read(k)) for k in range(3)])
    trainee = ofg.make_trainee(options(lr=1e-2), subjects.shape, 2, seed=0)
    pairs = Pairs(subjects, [(0, 1), (1, 2)])
    train(trainee, pairs, pairs, tmp_path / "run", steps=50, batch=2)
    result = load_trainee(tmp_path / "run/best.pt")
    one = pairs.batch([0])
    u = result.displacement(one.fixed, one.moving)
    before, after = (soft_dice(one.fixed_labels, one.moving_labels, v) for v in (0 * u, u))
    assert float(after) > float(before) + 0.05


def test_soft_dice() -> None:
    fixed = torch.tensor([[1, 1, 2, 0], [3, 3, 3, 0]])[:, None, None]
    moving = torch.tensor([[1, 2, 2, 0], [3, 3, 0, 0]])[:, None, None]
    still = torch.zeros(2, 2, 1, 4, dtype=torch.float64)
    assert float(soft_dice(fixed, moving, still)) == pytest.approx((2 / 3 + 4 / 5) / 2)
    half = still.clone()
    half[:, 1] = 0.5  # between two voxels: half of each neighbour
    value = soft_dice(fixed[:1] * 0 + 1, moving[:1] * 0 + 1, half[:1])
    assert float(value) == pytest.approx(2 * 3.5 / 7.5)
    assert float(soft_dice(0 * fixed, 0 * moving, still)) == 0
    assert torch.autograd.gradcheck(
        lambda u: soft_dice(fixed, moving, u), (half * 0.6 + 0.01).requires_grad_(), atol=1e-6
    )


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"mode": "semi"}, "mode must be one of unsupervised, ofg"),
        ({"network": "unet"}, "network must be voxelmorph, transmorph or module:Class"),
        ({"call": "stacked"}, "stacked only with module:Class"),
        ({"network": "transmorph", "diffeomorphic": True}, "diffeomorphic belongs to network voxelmorph"),
        ({"teacher": "t.pt"}, "teacher=WEIGHTS belongs to the modes"),
        ({"mode": "self-training"}, "which need it; mode is self-training"),
        ({"lr": 0}, "needs lr > 0"),
        ({"steps": 0}, "without guidance train unsupervised"),
        ({"encoder": (8, 8, 8, 8)}, "at least as many decoder channels"),
        ({"network": "transmorph", "heads": (3, 3, 3)}, "must divide"),
        ({"network": "nowhere_at_all:Net"}, "No module named 'nowhere_at_all'"),
        ({"network": "torch.nn:Nothing"}, "has no attribute 'Nothing'"),
        ({"mode": "self-training", "teacher": "missing.pt"}, "missing.pt"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_options_say_so_in_one_line(more: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        ofg.make_trainee(options(**more), SHAPE, 2, 0)
    assert "\n" not in str(caught.value)


def test_labels_are_asked_for() -> None:
    trainee = ofg.make_trainee(options("weakly-supervised"), SHAPE, 2, 0)
    pairs = batch()
    with pytest.raises(InputError, match="needs labels"):
        trainee.losses(replace(pairs, fixed_labels=None), torch.Generator())


def test_a_teacher_of_another_grid_is_refused(tmp_path: Path) -> None:
    more = taught(tmp_path, "self-training")
    with pytest.raises(InputError, match="trained on the grid 24 x 21, this one is 24 x 24"):
        ofg.make_trainee(options("self-training", **more), (24, 24), 2, 0)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for 24 x 21 that predicts something."""
    trainee = ofg.make_trainee(options(), SHAPE, 2, seed=0)
    nn.init.normal_(trainee.module.flow.weight, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "best.pt"
    save_trainee(trainee, path)
    return path


def test_register_predicts_and_refines(weights: Path) -> None:
    pairs = batch(1)
    fixed, moving = pairs.fixed[0, 0], pairs.moving[0, 0]
    whole: dict[str, Any] = {"method": "ofg", "weights": weights, "window": (0.0, 1.0), "device": "cpu"}
    plain = register(fixed, moving, **whole)
    u = load_trainee(weights).displacement(*(x.clamp(0, 1)[None, None] for x in (fixed, moving)))
    assert torch.allclose(plain.transform.displacement, u[0], atol=1e-6)
    assert (plain.history, plain.summary["iterations"], plain.summary["weights"]) == ([], 0, str(weights))
    refined = register(fixed, moving, **whole, refine=5)
    images = [x.clamp(0, 1)[None, None] for x in (fixed, moving)]
    assert torch.allclose(refined.transform.displacement, kernels.refine(u, *images, 5, 0.1, 5)[0], atol=1e-5)
    assert [record["iteration"] for record in refined.history] == [1, 2, 3, 4, 5]
    assert refined.history[-1]["loss"] < refined.history[0]["loss"]
    other = register(fixed, moving, **whole, refine=5, inner_lr=0.02)
    assert not torch.allclose(other.transform.displacement, refined.transform.displacement)


def test_register_resamples_other_shapes(weights: Path) -> None:
    """Twice as fine a grid: twice the displacement in voxels, at the same places."""
    pairs = batch(1)
    images = [
        F.interpolate(x, size=(47, 41), mode="bilinear", align_corners=True).clamp(0, 1)
        for x in (pairs.fixed, pairs.moving)
    ]
    coarse = load_trainee(weights).displacement(*(x[..., ::2, ::2] for x in images))
    pair = Pair(*images, torch.eye(2, 3))
    field, _ = ofg.fit_trained(load_trainee(weights), pair, options())
    assert torch.allclose(field.displacement[:, ::2, ::2], 2 * coarse[0], atol=1e-4)


def test_register_refuses_what_a_network_cannot_do(weights: Path) -> None:
    fixed, moving = batch(1).fixed[0, 0], batch(1).moving[0, 0]
    whole: dict[str, Any] = {"method": "ofg", "weights": weights, "device": "cpu"}
    for more, words in (
        ({"fixed_mask": torch.ones(SHAPE)}, "leave the masks out"),
        ({"encoder": (4, 4)}, "encoder cannot change"),
        ({"weights": None}, "neuralreg train ofg"),
        ({"preset": "fast"}, "weights bring their own settings"),
    ):
        with pytest.raises(InputError, match=words):
            register(fixed, moving, **{**whole, **more})
    with pytest.raises(InputError, match="for 2-D images, these are 3-D"):
        register(torch.rand(9, 9, 9), torch.rand(9, 9, 9), **whole)
    with pytest.raises(InputError, match="needs all 504 at once"):
        ofg.with_at_most(options(), SHAPE, 100)


@pytest.mark.parametrize("grid", [(5, 4), (4, 1, 3)], ids=str)
def test_a_dense_field_answers_anywhere_and_is_saved(grid: tuple[int, ...], tmp_path: Path) -> None:
    u = torch.randn(len(grid), *grid)
    field = DenseField(u)
    torch.save(field.describe(), tmp_path / "field.pt")
    again = load_field(torch.load(tmp_path / "field.pt", weights_only=True))
    assert torch.equal(again.displacement, u)
    axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in grid]
    x = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, -2)
    half = torch.tensor([(n - 1) / 2 for n in grid])
    inside = (u.flatten(1).T * (half > 0)).float()
    assert torch.allclose(again(x) * half, inside, atol=1e-5)
    middle = again((x[:1] + x[1:2]) / 2) * half
    first, second = (again(x[k : k + 1]) * half for k in (0, 1))
    assert torch.allclose(middle, (first + second) / 2, atol=1e-5)
    assert torch.equal(ofg.dense_displacement(field, grid), u)
