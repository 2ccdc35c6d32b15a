"""The registration benchmark: costs of a process, names of pairs and tools, scores, and a run from start to end."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from neuralreg.bench import pairs, process, registration
from neuralreg.bench.pairs import PairSet, find_names, load_pair
from neuralreg.bench.process import run
from neuralreg.bench.scores import score
from neuralreg.bench.tools import Settings, Task, Tool, parse_tools
from neuralreg.errors import InputError
from neuralreg.images import read_image
from neuralreg.transforms import Transform
from tests.bench_pairs import SHIFT, shift_transform, small_pair
from tests.small import SHAPE

# ------------------------------------------------------------------------------------------------------ process


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts memory as Linux does")
def test_a_cost_is_that_of_the_command_alone():
    held = torch.ones(1 << 26)  # 256 MB here, which Linux would count into a direct child
    small = run(["true"])
    assert small.code == 0
    assert small.peak_mb < 60, held.shape
    work = ["import time", "held = bytearray(120 << 20)", "while time.process_time() < 0.3: pass"]
    large = run([sys.executable, "-S", "-c", "\n".join(work)])
    assert 120 < large.peak_mb < 180
    assert 0.3 <= large.cpu_seconds < 2
    assert large.wall_seconds >= 0.9 * large.cpu_seconds


def test_what_a_command_says_and_how_it_ends():
    cost = run([sys.executable, "-S", "-c", "print('a word'); raise SystemExit(3)"], {"X": "1"})
    assert cost.code == 3
    assert cost.output.strip() == "a word"
    assert run(["no-such-command"]).code == 127


def test_a_terminated_benchmark_leaves_no_command_behind(tmp_path):
    started, late = tmp_path / "started", tmp_path / "late"
    lines = [
        f"import sys; sys.path.insert(0, {str(Path(process.__file__).parent)!r}); import process",
        "process.end_with_clean_up()",
        f"process.run(['sh', '-c', 'touch {started}; sleep 1; touch {late}'])",
    ]
    with subprocess.Popen([sys.executable, "-S", "-c", "\n".join(lines)]) as benchmark:
        for _ in range(500):
            if started.exists():
                break
            time.sleep(0.02)
        benchmark.terminate()
        assert benchmark.wait(timeout=10) == 143
    assert started.exists()
    time.sleep(1.2)
    assert not late.exists()


# ------------------------------------------------------------------------------------------------------ names


def test_names_of_pairs():
    assert find_names("brain1mm") == ["brain1mm/vxm-tut1", "brain1mm/tut1-tut2", "brain1mm/tut2-vxm"]
    assert find_names("hippocampus/3-4, lungct") == ["hippocampus/3-4", "lungct/fixed-moving"]
    assert len(find_names("hippocampus")) == len(set(find_names("brain2d"))) == 10
    for wrong in ("brains", "brain1mm/vxm", ""):
        with pytest.raises(InputError):
            find_names(wrong)


def test_names_of_tools():
    first, second, third, fourth = parse_tools("nir:fast[scales=2,1;lr=0.02], greedy,identity,plain-nir")
    assert first == Tool("nir", "fast", {"scales": "2,1", "lr": "0.02"})
    assert str(first) == "nir:fast[scales=2,1;lr=0.02]"
    assert [str(tool) for tool in (second, third, fourth)] == [
        "greedy:4x4x4",
        "identity",
        "plain-nir:paper-displacement",
    ]
    for wrong in (
        "",
        "nothing:fast",
        "nir:nothing",
        "greedy:big",
        "identity:1",
        "nir:fast[lr]",
        "nir:fast[lr=1",
        "nir]",
    ):
        with pytest.raises(InputError):
            parse_tools(wrong)


def test_a_tools_own_options_go_before_those_of_all(tmp_path):
    task = Task.write(small_pair(), tmp_path)
    settings = Settings(iterations=7, seed=3, options=("lr=0.5", "levels=4"))
    (tool,) = parse_tools("nir:fast[lr=0.02;iterations=9;precision=bf16]")
    command = tool.command(task, settings)
    assert command[command.index("--iterations") + 1] == "9"
    assert command[command.index("--precision") + 1] == "bf16"
    assert command[command.index("--seed") + 1] == "3"
    given = [command[i + 1] for i, word in enumerate(command) if word == "--option"]
    assert given == ["levels=4", "lr=0.02"]


# ------------------------------------------------------------------------------------------------------ scores


def test_the_truth_scores_best():
    pair = small_pair()
    still = score(pair, Transform(torch.zeros(3, *SHAPE), pair.fixed_labels.geometry))
    best = score(pair, shift_transform(pair))
    assert still["dice"] < 0.9
    assert best["dice"] > 0.99
    assert still["tre_mean_mm"] == pytest.approx(2 * SHIFT)
    assert best["tre_mean_mm"] == pytest.approx(0, abs=1e-5)
    assert best["sdlogj_mask"] == still["folds_percent"] == 0


def test_folds_are_counted_on_the_grid_and_in_the_mask():
    pair = small_pair()
    displacement = torch.zeros(3, *SHAPE)
    # A ramp of slope -2: det is -1 on it, and 1 - 1 = 0 at its ends, where one side of the difference is flat.
    displacement[2, :, :, 2:7] = -2.0 * torch.arange(5)
    displacement[2, :, :, 7:] = -8.0
    found = score(pair, Transform(displacement, pair.fixed_labels.geometry))
    folded = torch.zeros(SHAPE, dtype=torch.bool)
    folded[:, :, 2:7] = True
    assert found["folds_percent"] == pytest.approx(100 * folded.float().mean().item(), rel=1e-5)
    assert found["folds_percent_mask"] == pytest.approx(
        100 * folded[pair.mask].float().mean().item(), rel=1e-5
    )


# ------------------------------------------------------------------------------------------------------ tools


@pytest.fixture
def fake_greedy(tmp_path, monkeypatch):
    """An executable that writes what is in ``warp.nii.gz`` beside it as its result, and its words to ``words``."""
    script = tmp_path / "greedy"
    lines = [
        "#!/bin/sh",
        f'echo "$@" > {tmp_path}/words',
        'while [ "$1" != -o ]; do shift; done',
        f'cp {tmp_path}/warp.nii.gz "$2"',
    ]
    script.write_text("\n".join(lines))
    script.chmod(0o755)
    monkeypatch.setenv("NEURALREG_GREEDY", str(script))
    return tmp_path


def test_greedys_warp_comes_before_the_start(fake_greedy, tmp_path):
    pytest.importorskip("SimpleITK")
    pair = small_pair(initial=True)
    Transform(torch.zeros(3, *SHAPE), pair.fixed_labels.geometry).save(tmp_path / "warp.nii.gz")
    row = registration.one_row(pair, Tool("greedy", "2x2x2", {"n": "3x2"}), Settings(threads=1))
    assert row["error"] == ""
    assert row["dice"] == 1
    assert row["tre_mean_mm"] == pytest.approx(0, abs=1e-4)
    words = (tmp_path / "words").read_text()
    assert "-d 3 -m NCC 2x2x2 -n 3x2 -i" in words
    assert "moving_aligned.nii.gz" in words


def test_greedy_gets_the_moving_image_behind_the_start(tmp_path, fake_greedy):
    pytest.importorskip("SimpleITK")
    pair = small_pair(initial=True)
    Tool("greedy", "2x2x2").command(Task.write(pair, tmp_path), Settings())
    aligned = read_image(tmp_path / "moving_aligned.nii.gz")
    assert aligned.geometry.same_grid(pair.fixed_labels.geometry)
    torch.testing.assert_close(aligned.data, pair.fixed.data, atol=1e-2, rtol=0)  # of 100: float32 B-splines


def test_a_run_from_start_to_end(fake_greedy, tmp_path, monkeypatch, capsys):
    shift_transform(small_pair()).save(tmp_path / "warp.nii.gz")
    monkeypatch.setitem(
        pairs.SETS, "small", PairSet(lambda: [("a", "b")], lambda name, f, m: small_pair(name))
    )
    out = tmp_path / "rows.csv"
    keep = tmp_path / "kept"
    tools = "identity,greedy:2x2x2,nir:fast[levels=3],plain-nir[hidden=16,16;stride=1;lncc_window=5]"
    registration.main("small", tools, out, None, 3, 0, 1, False, keep)
    rows = list(csv.DictReader(out.open()))
    assert [row["error"] for row in rows] == [""] * 4
    assert [row["tool"].split(":")[0] for row in rows] == ["identity", "greedy", "nir", "plain-nir"]
    still, greedy, nir, plain = rows
    assert float(greedy["dice"]) > 0.99 > 0.9 > float(still["dice"])
    assert still["cpu_s"] == ""
    assert float(nir["cpu_s"]) > float(greedy["cpu_s"]) > 0
    assert float(plain["peak_mb"]) > 100, "torch alone takes more"
    assert nir["iterations"] == "3"
    assert greedy["iterations"] == greedy["seed"] == ""
    assert len(list(keep.iterdir())) == 4, "three transforms and nir's summary"
    assert "means over the pairs" in capsys.readouterr().out


def test_a_failing_tool_is_a_row_with_its_last_words(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURALREG_GREEDY", "false")
    row = registration.one_row(small_pair(), Tool("greedy", "2x2x2"), Settings(threads=1))
    assert row["error"].startswith("exit code 1")
    assert row["dice"] == ""


def test_a_tool_that_is_not_there_is_skipped_and_told(monkeypatch, capsys):
    monkeypatch.delenv("NEURALREG_GREEDY", raising=False)
    with monkeypatch.context() as nothing:
        nothing.setattr("shutil.which", lambda name: None)
        nothing.setattr("importlib.util.find_spec", lambda name: None)
        reason = Tool("greedy", "4x4x4").missing()
    assert reason is not None
    monkeypatch.setattr("neuralreg.bench.tools._greedy", lambda: None)
    monkeypatch.setitem(
        pairs.SETS, "small", PairSet(lambda: [("a", "b")], lambda name, f, m: small_pair(name))
    )
    registration.main("small", "greedy,identity", None, None, None, 0, 1, False, None)
    said = capsys.readouterr().out
    assert f"greedy:4x4x4 is skipped: {reason}" in said.replace("\n", " ")
    assert "small/a-b identity: dice" in said


# ------------------------------------------------------------------------------------------------------ real data


@pytest.mark.parametrize(
    ("name", "dice", "tolerance"),
    [
        ("brain2mm/vxm-tut1", 0.613, 6e-4),
        ("lungct/fixed-moving", 0.910, 6e-4),
        ("lungmr/0004-0006", 0.692, 6e-4),
        ("brain2d/0-1", 0.481, 6e-4),
    ],
)
def test_the_start_of_the_real_pairs(data_folder, monkeypatch, tmp_path, name, dice, tolerance):
    monkeypatch.setenv("NEURALREG_DATA", str(data_folder))
    pair = load_pair(name)
    task = Task.write(pair, tmp_path)
    found = score(pair, Tool("identity", "").transform(task))
    assert found["dice"] == pytest.approx(dice, abs=tolerance)
    if pair.landmarks is not None:
        assert found["tre_mean_mm"] == pytest.approx(4.66, abs=0.006)
    if pair.fine_labels is not None:
        assert found["dice_fine"] == pytest.approx(0.611, abs=6e-4)
    assert read_image(task.fixed).shape == tuple(pair.mask.shape)


def test_the_start_of_the_hippocampi(data_folder, monkeypatch):
    monkeypatch.setenv("NEURALREG_DATA", str(data_folder))
    found = [
        score(pair, Transform(torch.zeros(3, 48, 64, 48), pair.fixed_labels.geometry))["dice"]
        for pair in map(load_pair, find_names("hippocampus"))
    ]
    assert np.mean(found) == pytest.approx(0.524, abs=6e-4)
    with pytest.raises(InputError):
        load_pair("hippocampus/0-60")


def test_without_data_the_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURALREG_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="nowhere"):
        load_pair("brain2mm/vxm-tut1")
