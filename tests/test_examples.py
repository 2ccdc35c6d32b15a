"""What stands in examples/ runs, and does what it says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from neuralreg.methods.ofg import Energy

EXAMPLES = Path(__file__).parents[1] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_network_learns_from_guidance() -> None:
    example = load("ofg_own_network")
    assert len((EXAMPLES / "ofg_own_network.py").read_text().splitlines()) < 30
    network = example.MyNetwork()
    waves = [torch.sin(0.6 * torch.arange(28.0) + phase) for phase in (0.0, 0.5, 1.1)]
    images = [0.5 + 0.25 * (a[:, None] + a[None]) for a in waves]
    pairs = [(images[k][None, None], images[k + 1][None, None]) for k in range(2)]

    def energy() -> float:
        with torch.no_grad():
            return sum(float(Energy()(fixed, moving, network(moving, fixed))) for fixed, moving in pairs)

    before = energy()
    example.train(network, pairs, steps=60)
    assert energy() < before - 0.1
