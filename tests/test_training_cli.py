"""`neuralreg train`: its files and words, a run that was killed, and two processes that train as one."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralreg.methods import nephi, ofg
from neuralreg.training import trainee as registry
from neuralreg.training.log import read_log
from tests.processes import Job, command, ranks, side_by_side
from tests.small import blobs, call
from tests.small_training import FILES, curve, same_weights
from tests.tiny_method import Tiny

METHODS = {  # each with what makes it small
    "tiny": (),
    "nephi": ("widths=4,4,4", "global_code=4", "local_code=4", "head=8", "hidden=8", "frequencies=4"),
    "ofg": ("encoder=4,4", "decoder=4,4,4", "steps=2", "window=3"),
}
RUN = ["--batch", "2", "--threads", "1", "--validate-every", "5", "--checkpoint-every", "3"]


def train(deadly: bool, *words: str) -> None:
    """A process's training; a deadly one dies without a word in its 9th step."""
    registry.METHODS["tiny"] = "tests.tiny_method"
    if deadly:
        kind = {"tiny": Tiny, "nephi": nephi.NePhiTrainee, "ofg": ofg.OfgTrainee}[words[1]]
        right, calls = kind.losses, []

        def dying(*arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 9:
                os.kill(os.getpid(), signal.SIGKILL)
            return right(*arguments)

        kind.losses = dying
    command(*words)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.METHODS, "tiny", "tests.tiny_method")


def write_data(folder: Path) -> Path:
    images = np.stack([blobs((9, 8, 7), shift=0.7 * k) for k in range(6)])
    names = [f"n{k}" for k in range(6)]
    np.savez(folder / "d.npz", images=images, labels=(images > 40).astype(np.uint8), names=names)
    return folder / "d.npz"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_data(tmp_path)


@dataclass
class Launched:
    """What became of the processes: a killed run of each method, and two ranks; codes and output by name."""

    folder: Path
    killed: dict[str, list[str]]
    ranks: dict[str, list[str]]
    codes: dict[str, int]

    def told(self, name: str, stream: int = 1) -> str:
        return (self.folder / f"{name}{stream}").read_text()


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    folder = tmp_path_factory.mktemp("launched")
    data = write_data(folder)
    killed, shared = {}, {}
    jobs: dict[str, Job] = {}
    for method, small in METHODS.items():
        options = [word for option in small for word in ("--option", option)]
        start = ["train", method, "--data", str(data), *RUN, *options]
        killed[method] = [*start, "--steps", "14", "--deterministic"]
        shared[method] = [*start, "--steps", "8", "--batch", "3", "--augment", "--seed", "4"]
        name = f"{method}-killed"
        jobs[name] = Job(train, (True, *killed[method], "--out", str(folder / name)), folder / name)
        for rank, environment in enumerate(ranks(2)):
            words = [*shared[method], "--out", str(folder / f"{method}-two")]
            name = f"{method}{rank}"
            jobs[name] = Job(train, (False, *words), folder / name, environment)
    codes = side_by_side(list(jobs.values()))
    return Launched(folder, killed, shared, dict(zip(jobs, codes, strict=True)))


def test_trains(data: Path, tmp_path: Path) -> None:
    arguments = [
        "--steps",
        "6",
        *RUN,
        "--preset",
        "wide",
        "--option",
        "points=32",
        "--test",
        "1",
        "--augment",
    ]
    result = call("train", "tiny", "--data", data, "--out", tmp_path / "run", *arguments)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    for word in ("Dice", "3 subjects, 6 pairs", "best.pt", "step 5:", "6 in"):
        assert word in result.stdout
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["options"]["channels"] == 8
    assert config["options"]["points"] == 32
    assert config["training"]["subjects"] == ["n0", "n1", "n2"]
    assert config["validation"] == [["n3", "n4"], ["n4", "n3"]]
    assert "torch" in config["environment"]["versions"]
    result = call("train", "tiny", "--data", data, "--out", tmp_path / "run", *arguments)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "already holds a run" in result.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--option", "nonesuch=1"], "no option 'nonesuch'"),
        (["--option", "channels=0"], "channels must be at least 1"),
        (["--preset", "none"], "has no preset"),
        (["--validate-every", "often"], "--validate-every"),
        (["--layout", "none"], "no layout 'none'"),
        (["--validation", "6"], "leave none to train on"),
        (["--validation", "nowhere"], "does not exist"),
        (["--atlas", "nobody"], "does not exist"),
        (["--atlas-labels", "x.nii.gz"], "give --atlas, too"),
        (["--device", "cuda:99"], "device"),
        (["--window", "3,1"], "--window"),
    ],
)
def test_bad_arguments_write_nothing(data: Path, tmp_path: Path, more: list[str], words: str) -> None:
    result = call("train", "tiny", "--data", data, "--out", tmp_path / "run", "--steps", "2", *more)
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert not (tmp_path / "run").exists()


def test_an_unknown_method_and_a_spoilt_subject(data: Path, tmp_path: Path) -> None:
    result = call("train", "nonesuch", "--data", data, "--out", tmp_path / "run", "--steps", "2")
    assert (result.exit_code, "choose from" in result.stderr) == (2, True)
    content = dict(np.load(data))
    content["images"][0, 0, 0, 0] = np.nan
    np.savez(data, **content)
    result = call("train", "tiny", "--data", data, "--out", tmp_path / "run", "--steps", "2")
    assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)
    assert "subject n0 holds 1 voxels that are NaN" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_resumes_to_the_same_curve(launched: Launched, tmp_path: Path, method: str) -> None:
    """SIGKILL in the 9th step: the checkpoint is of the 6th, two lines of the log are beyond it."""
    name = f"{method}-killed"
    out, killed = launched.folder / name, launched.killed[method]
    assert launched.codes[name] == -signal.SIGKILL, launched.told(name, 2)
    assert [record["step"] for record in read_log(out / "log.jsonl")] == list(range(1, 9))
    with (out / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "lo')  # as a process that dies while it writes would leave it
    (out / ".last.123.tmp.pt").write_bytes(b"half")
    assert torch.load(out / "checkpoint.pt", weights_only=True)["state"]["step"] == 6

    assert call(*killed, "--out", out, "--resume").exit_code == 0
    assert call(*killed, "--out", tmp_path / "whole").exit_code == 0
    assert curve(out) == curve(tmp_path / "whole")
    assert len(curve(out)) == 14
    scores, expected = (
        [(score["step"], score["dice"]) for score in read_log(folder / "validation.jsonl")]
        for folder in (out, tmp_path / "whole")
    )
    assert scores == expected
    for name in ("best.pt", "last.pt"):
        assert same_weights(out / name, tmp_path / "whole" / name)
    assert {path.name for path in out.iterdir()} == FILES


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_as_one(launched: Launched, tmp_path: Path, method: str) -> None:
    """With the environment that torchrun gives them; 3 pairs a step, so that the shares differ."""
    ranks = [f"{method}{rank}" for rank in (0, 1)]
    assert [launched.codes[name] for name in ranks] == [0, 0], launched.told(ranks[0], 2)
    assert "best.pt" in launched.told(ranks[0])
    assert launched.told(ranks[1]) == "", "only rank 0 speaks"
    assert call(*launched.ranks[method], "--out", tmp_path / "one").exit_code == 0
    folders = launched.folder / f"{method}-two", tmp_path / "one"
    for two, one in zip(*map(curve, folders), strict=True):
        assert two == pytest.approx(one, rel=1e-4)
    scores = (read_log(folder / "validation.jsonl") for folder in folders)
    for two, one in zip(*scores, strict=True):
        assert two["dice"] == pytest.approx(one["dice"], abs=0.01)
    states = [torch.load(folder / "last.pt", weights_only=True)["state"] for folder in folders]
    for name in states[0]:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-4)
