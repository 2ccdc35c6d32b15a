"""How a fit ends: iterations, the clock, a plateau; what it keeps."""

from __future__ import annotations

import time

import pytest
import torch

from neuralreg.fit import Plateau, Stop, minimise


def counted(stages: int = 1, pause: float = 0.0):
    """Stages that count their iterations, and a parameter they all lower."""
    x = torch.nn.Parameter(torch.tensor([1.0]))
    counts = [0] * stages

    def make(number):
        def step():
            counts[number] += 1
            time.sleep(pause)
            return {"loss": x.square().sum()}

        return step

    return x, counts, [make(number) for number in range(stages)]


def run(x, steps, **options):
    return minimise(steps, [{"params": [x], "lr": 1e-3}], final_lr=0.1, **options)


def test_stages_share_the_iterations():
    for stages, iterations, expected in ((2, 9, [5, 4]), (3, 9, [3, 3, 3]), (1, 7, [7])):
        x, counts, steps = counted(stages)
        seen = []
        history = run(x, steps, iterations=iterations, watch=seen.append)
        assert counts == expected
        assert seen == list(range(1, iterations + 1))
        assert [h["iteration"] for h in history] == list(range(iterations))


def test_the_clock_ends_a_fit_and_its_stages_alike():
    x, counts, steps = counted(2, pause=0.01)
    history = run(x, steps, iterations=10_000, stop=Stop(seconds=0.4))
    assert 2 <= len(history) < 60
    assert min(counts) >= 1, "both stages had their turn"
    x, counts, steps = counted()
    assert len(run(x, steps, iterations=5, stop=Stop(seconds=1e6))) == 5, "a wide limit changes nothing"


def test_a_plateau_ends_a_stage_and_the_next_one_begins():
    x = torch.nn.Parameter(torch.tensor([1.0]))
    counts = [0, 0]

    def flat():
        counts[0] += 1
        return {"loss": 0 * x.sum() + 1}

    def falling():
        counts[1] += 1
        return {"loss": x.square().sum()}

    run(x, [flat, falling], iterations=200, stop=Stop(patience=20))
    assert counts[0] == 30, "looked at every tenth: best at 10, nothing better at 20 and 30"
    assert counts[1] == 100


def test_the_best_state_is_kept():
    x = torch.nn.Parameter(torch.tensor([0.0]))
    plateau = Plateau([x], patience=30)
    losses = [1.0] * 10 + [0.5] * 30 + [2.0] * 60
    ended = None
    for index, loss in enumerate(losses):
        with torch.no_grad():
            x.fill_(index + 1)
        if plateau.reached(torch.tensor(loss)):
            ended = index + 1
            break
    assert ended == 70
    plateau.restore()
    assert float(x.detach()) == 40, "the last look at which the smoothed loss was smallest"


def test_without_patience_nothing_is_kept():
    x = torch.nn.Parameter(torch.tensor([0.0]))
    plateau = Plateau([x], patience=0)
    assert not any(plateau.reached(torch.tensor(1.0)) for _ in range(100))
    assert plateau.state == []


def test_limits_of_parts():
    assert Stop(10.0, 5).part(0.25) == Stop(2.5, 5)
    assert Stop(None, 5).part(0.25) == Stop(None, 5)
    with pytest.raises(AttributeError):
        Stop().seconds = 3
