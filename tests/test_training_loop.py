"""The training loop: what it writes, that it resumes to the last bit, stops when asked, and says what went wrong."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from neuralreg import kernels, metrics
from neuralreg.distributed import Ranks
from neuralreg.errors import InputError, NeuralregError
from neuralreg.training import trainee as registry
from neuralreg.training.augment import Augmentation
from neuralreg.training.budget import Every, Limits, Rhythm
from neuralreg.training.data import Batch, Pairs, Source, Subject, Subjects
from neuralreg.training.log import read_log
from neuralreg.training.loop import Trained, train
from neuralreg.training.trainee import load_trainee, save_trainee
from neuralreg.training.validate import Score, validate
from tests.small import blobs
from tests.small_training import FILES, curve, same_weights
from tests.tiny_method import Options, Tiny

SHAPE = (10, 9, 8)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.METHODS, "tiny", "tests.tiny_method")


def subjects(labelled: bool = True, count: int = 4) -> Subjects:
    """The same blob pattern, shifted from subject to subject."""

    def read(k: int) -> Subject:
        image = torch.from_numpy(blobs(SHAPE, shift=0.8 * k)) / 120
        return Subject(
            f"s{k}", image.clamp(0, 1)[None], (image > 0.3).long() if labelled else None, (1.0,) * 3
        )

    return Subjects([Source(f"s{k}", lambda k=k: read(k), SHAPE) for k in range(count)])


def run(out: Path, options: Options | None = None, **more: Any) -> tuple[Tiny, Trained]:
    """A training of 12 steps on subjects 0 to 2, validated on pairs with subject 3."""
    found = subjects(more.pop("labelled", True))
    trainee = Tiny(options or Options(), SHAPE)
    settings = {"steps": 12, "batch": 2, "threads": 1, "validate_every": Every(5), **more}
    held = settings.pop("held", Pairs(found, [(0, 3), (3, 1)]))
    return trainee, train(trainee, Pairs(found, [(0, 1), (1, 2), (2, 0)]), held, out, **settings)


def test_learns_and_writes_all_its_files(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    lines: list[str] = []
    seen: list[tuple[int, int, str]] = []
    trainee, trained = run(
        tmp_path / "run",
        steps=60,
        validate_every=Every(20),
        tell=lines.append,
        progress=lambda done, total, loss, stage: seen.append((done, total, stage)),
    )
    assert [entry for entry in seen if entry[2] == "train"] == [(k, 60, "train") for k in range(1, 61)]
    assert [entry for entry in seen if entry[2] == "validate"] == [(k, 2, "validate") for k in (1, 2)] * 3
    assert torch.equal(torch.get_rng_state(), before), "the caller's random numbers are the caller's"
    assert {path.name for path in trained.out.iterdir()} == FILES
    log = read_log(trained.out / "log.jsonl")
    assert [record["step"] for record in log] == list(range(1, 61))
    assert sum(r["loss"] for r in log[-10:]) < 0.6 * sum(r["loss"] for r in log[:10])
    for record in (log[0], log[-1]):
        assert record["loss"] == pytest.approx(record["similarity"] + 0.01 * record["smoothness"], rel=1e-5)
    assert [log[0]["rate"], log[30]["rate"]] == pytest.approx([1, 1 - 0.9 * 0.5])
    scores = read_log(trained.out / "validation.jsonl")
    assert [score["step"] for score in scores] == [20, 40, 60]
    best = max(scores, key=lambda score: score["dice"])
    assert (trained.best_step, trained.best and trained.best.dice) == (best["step"], best["dice"])
    assert len(lines) == 3
    config = json.loads((trained.out / "config.json").read_text())
    assert config["limits"]["steps"] == 60
    again = load_trainee(trained.out / "last.pt")
    for name, value in trainee.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value)


def test_best_is_the_best_and_not_the_last(tmp_path: Path) -> None:
    """With a rate that ruins the weights the first validation is the best, and best.pt holds those weights."""
    _, trained = run(tmp_path / "run", Options(lr=0.5), steps=9, validate_every=Every(3))
    scores = read_log(trained.out / "validation.jsonl")
    assert trained.best_step == 3 != trained.step, scores
    held = Pairs(subjects(), [(0, 3), (3, 1)])
    found = validate(load_trainee(trained.out / "best.pt"), held, Ranks(torch.device("cpu")), 0)
    assert found.dice == scores[0]["dice"]


def test_validation_is_the_mean_dice_of_the_warped_labels() -> None:
    trainee, held = Tiny(Options(), SHAPE), Pairs(subjects(), [(0, 3), (3, 1)])
    score = validate(trainee, held, Ranks(torch.device("cpu")), 0)
    expected = []
    for fixed, moving in ((0, 3), (3, 1)):
        a, b = held.subjects[fixed], held.subjects[moving]
        u = trainee.displacement(a.image[None], b.image[None])
        assert b.labels is not None
        warped = kernels.warp(b.labels[None, None], u, mode="nearest")[0, 0]
        expected.append(metrics.dice(warped, a.labels)[1])
    assert score.dice == pytest.approx(sum(expected) / 2)
    assert score.loss is None
    assert trainee.module.training


def test_without_labels_the_loss_decides(tmp_path: Path) -> None:
    _, trained = run(tmp_path / "run", labelled=False, steps=15)
    scores = read_log(trained.out / "validation.jsonl")
    assert all(score["dice"] is None for score in scores)
    assert trained.best_step == min(scores, key=lambda score: score["loss"])["step"]
    assert Score(None, 1.0, 0).better(Score(None, 2.0, 0))
    assert not Score(0.5, None, 0).better(Score(0.6, None, 0))


def test_without_validation_the_last_weights_are_best(tmp_path: Path) -> None:
    _, trained = run(tmp_path / "run", held=None)
    assert trained.best is None
    assert same_weights(trained.out / "best.pt", trained.out / "last.pt")


@pytest.mark.parametrize("wanted", [False, True])
def test_label_maps_for_the_trainee(tmp_path: Path, wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, losses = [], Tiny.losses

    def looking(self: Tiny, batch: Batch, generator: torch.Generator) -> Any:
        seen.append((batch.fixed_labels, batch.moving_labels))
        return losses(self, batch, generator)

    monkeypatch.setattr(Tiny, "losses", looking)
    run(tmp_path / "run", steps=2, held=None, labels=wanted)
    assert len(seen) == 2
    for maps in seen:
        for labels in maps:
            assert (labels is not None and labels.dtype == torch.int64) == wanted


class Board:
    """In the place of TensorBoard's writer, which need not be installed."""

    made: list[Board]

    def __init__(self, folder: str, purge_step: int) -> None:
        self.purge_step, self.scalars, self.closed = purge_step, dict[tuple[str, int], float](), False
        Board.made.append(self)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name, step] = value

    def close(self) -> None:
        self.closed = True


def test_tensorboard_gets_what_the_log_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Board.made = []
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    for more in ({"steps": 4}, {"steps": 6, "resume": True}):
        run(tmp_path / "run", tensorboard=True, validate_every=Every(2), **more)
    first, second = Board.made
    assert (first.purge_step, second.purge_step) == (1, 5)
    assert first.closed
    log = {record["step"]: record for record in read_log(tmp_path / "run/log.jsonl")}
    assert first.scalars["train/loss", 3] == log[3]["loss"]
    assert second.scalars["train/rate", 5] == log[5]["rate"]
    assert {step for name, step in second.scalars if name == "validation/dice"} == {6}


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_a_resume_goes_on(
    tmp_path: Path, stop: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run(tmp_path / "whole", augment=Augmentation())
    rate, handlers = Tiny.rate, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def stopping(self: Tiny, done: float) -> float:
        if done >= 0.5:
            os.kill(os.getpid(), stop)
        return rate(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(Tiny, "rate", stopping)
        with pytest.raises(KeyboardInterrupt if stop == signal.SIGINT else SystemExit) as caught:
            run(tmp_path / "run", augment=Augmentation())
    if isinstance(caught.value, SystemExit):
        assert caught.value.code == 143
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert len(curve(tmp_path / "run")) == 7
    _, resumed = run(tmp_path / "run", augment=Augmentation(), resume=True)
    assert resumed.step == whole.step
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")
    assert same_weights(tmp_path / "run/last.pt", tmp_path / "whole/last.pt")
    assert same_weights(tmp_path / "run/best.pt", tmp_path / "whole/best.pt")
    assert resumed.seconds > 0


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = {name: (tmp_path / "run" / name).read_bytes() for name in FILES - {"checkpoint.pt", "last.pt"}}
    _, trained = run(tmp_path / "run", resume=True)
    assert trained.step == 12
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    _, longer = run(tmp_path / "run", resume=True, steps=14)
    assert [record["step"] for record in curve(tmp_path / "run")] == list(range(1, 15))
    assert longer.step == 14


def test_budgets_end_the_training_and_carry_the_rate(tmp_path: Path) -> None:
    _, trained = run(tmp_path / "wall", steps=None, time_budget=0.4, validate_every=None)
    log = curve(tmp_path / "wall")
    assert trained.step == len(log) > 1
    assert log[0]["rate"] > log[-1]["rate"] >= 0.1
    assert (tmp_path / "wall/best.pt").exists()
    _, trained = run(tmp_path / "cpu", steps=10**6, cpu_budget=0.2)
    assert trained.cpu_seconds >= 0.2
    assert trained.step < 10**6


@pytest.mark.parametrize(
    ("spent", "done"),
    [((5, 1.0, 1.0), 0.5), ((1, 9.0, 1.0), 0.9), ((1, 1.0, 6.0), 0.75), ((11, 1.0, 1.0), 1.0)],
)
def test_the_limit_furthest_ahead_counts(spent: tuple[int, float, float], done: float) -> None:
    assert Limits(10, 10.0, 8.0).done(*spent) == pytest.approx(done)


def test_rhythms() -> None:
    by_steps = Rhythm(Every.parse("--x", "3"), 0.0, 0.0)
    assert [step for step in range(1, 8) if by_steps.due(step, 0.0, 0.0)] == [3, 6]
    by_seconds = Rhythm(Every.parse("--x", "2s"), 0.0, 10.0)
    assert [t for t in (11.0, 12.5, 13.0, 14.4, 14.6) if by_seconds.due(1, 0.0, t)] == [12.5, 14.6]
    by_share = Rhythm(Every.parse("--x", None), 0.0, 0.0)
    assert sum(by_share.due(step, step / 200, 0.0) for step in range(1, 201)) == 20
    for text in ("0", "-3", "x", "0s", "s"):
        with pytest.raises(InputError, match="--x"):
            Every.parse("--x", text)


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    with pytest.raises(NeuralregError, match=r"step 7: the loss .*nan.*learning rate"):
        run(tmp_path / "run", Options(spoil_at=0.5))
    assert len(curve(tmp_path / "run")) == 6
    state = torch.load(tmp_path / "run/last.pt", weights_only=True)["state"]
    assert all(torch.isfinite(value).all() for value in state.values())


def test_a_gradient_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is 0, its gradient infinite: the weights would be lost with the next step."""
    losses = Tiny.losses
    monkeypatch.setattr(Tiny, "losses", lambda *a: {"loss": (losses(*a)["loss"] * 0).sqrt()})
    with pytest.raises(NeuralregError, match=r"step 1: .*loss 0, gradient (nan|inf)"):
        run(tmp_path / "run")
    assert not (tmp_path / "run/last.pt").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": None}, "needs an end"),
        ({"steps": 0}, "steps must be more than 0"),
        ({"time_budget": -1.0}, "time budget"),
        ({"batch": 0}, "batch"),
        ({"seed": -1}, "seed"),
        ({"threads": 0}, "threads"),
        ({"resume": True}, "holds no run"),
        ({"tensorboard": True}, "pip install tensorboard"),
    ],
)
def test_bad_settings_write_nothing(
    tmp_path: Path, more: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=words):
        run(tmp_path / "run", **more)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run(tmp_path: Path) -> None:
    run(tmp_path / "run", steps=2)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InputError, match="already holds a run"):
        run(tmp_path / "run", steps=2)
    with pytest.raises(InputError, match="has batch 2, this command 1"):
        run(tmp_path / "run", steps=2, resume=True, batch=1)
    config = json.loads((tmp_path / "run/config.json").read_text())
    (tmp_path / "run/config.json").write_text(json.dumps({**config, "options": {"lr": 0.1}}))
    with pytest.raises(InputError, match=r"has options lr 0\.1, this command 0\.2"):
        run(tmp_path / "run", steps=2, resume=True, config={"options": {"lr": 0.2}})
    (tmp_path / "run/config.json").write_bytes(before[tmp_path / "run/config.json"])
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before
    (tmp_path / "run/checkpoint.pt").write_bytes(b"half")
    with pytest.raises(InputError, match="damaged"):
        run(tmp_path / "run", steps=2, resume=True)
    with pytest.raises(InputError, match="does not exist"):
        run(tmp_path / "a/b", steps=2)


def test_weights_files(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    save_trainee(Tiny(Options(channels=3), SHAPE), path)
    found = load_trainee(path)
    assert isinstance(found, Tiny)
    assert (found.options.channels, found.shape) == (3, SHAPE)
    content = torch.load(path, weights_only=True)
    for change, words in (
        ({"method": "other"}, "not known here"),
        ({"options": {"nonesuch": 1}}, "do not fit"),
        ({"state": {}}, "do not fit"),
    ):
        torch.save({**content, **change}, path)
        with pytest.raises(InputError, match=words):
            load_trainee(path)
    torch.save([1], path)
    with pytest.raises(InputError, match="not a file that"):
        load_trainee(path)
    for bad, words in ((tmp_path / "none.pt", "does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(InputError, match=words):
            load_trainee(bad)
