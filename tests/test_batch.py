"""Many pairs: which they are, who does which, and what is left after kills, failures and a second process."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from neuralreg.errors import InputError
from neuralreg.evaluation import overlap
from neuralreg.manifest import Manifest
from neuralreg.pair_list import read_pairs
from neuralreg.shards import rank_device, read_shard, share
from neuralreg.transforms import load_transform
from tests.small import FAST, blobs, call, save

SHAPE = (14, 13, 12)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four images with label maps, as a folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(4):
        values = blobs(SHAPE, shift=0.5 * k)
        save(folder / f"s{k}_img.nii.gz", values)
        save(folder / f"s{k}_label.nii.gz", (values > 30).astype(np.uint8))
    return folder


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    path = folder / "pairs.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def manifest(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


def results(out: Path) -> list[str]:
    """The pairs whose files can all be read; nothing else may lie in the folder."""
    names = sorted(path.name for path in out.iterdir() if path.is_dir())
    for name in names:
        files = sorted(path.name for path in (out / name).iterdir())
        assert files == ["summary.json", "transform.nii.gz", "warped.nii.gz"]
        assert np.isfinite(nibabel.load(out / name / "transform.nii.gz").get_fdata()).all()
        assert nibabel.load(out / name / "warped.nii.gz").get_fdata().shape == SHAPE
        assert json.loads((out / name / "summary.json").read_text())["pair"]["name"] == name
    return names


# ------------------------------------------------------------------------------------------------- which


def test_pairs_of_a_table(images: Path) -> None:
    path = table(
        images,
        [
            {"name": "a", "fixed": "s0_img.nii.gz", "moving": "s1_img.nii.gz", "fixed_label": "", "landmarks": "l.csv"},
            {"name": "", "fixed": "s1_img.nii.gz", "moving": "/x/s2.nii", "fixed_label": "b.nii", "landmarks": ""},
        ],
    )  # fmt: skip
    a, b = read_pairs(path)
    assert (a.name, b.name) == ("a", "s1_s2")
    assert a.inputs() == {
        "fixed": str(images / "s0_img.nii.gz"),
        "moving": str(images / "s1_img.nii.gz"),
        "landmarks": str(images / "l.csv"),
    }
    assert (b.moving, b.fixed_label, b.landmarks) == (Path("/x/s2.nii"), images / "b.nii", None)


def test_pairs_of_a_folder_and_of_learn2reg(images: Path, tmp_path: Path) -> None:
    assert [pair.name for pair in read_pairs(images)] == ["s0_s1", "s1_s2", "s2_s3", "s3_s0"]
    assert len(read_pairs(images, "all")) == 12
    assert read_pairs(images)[0].moving_label == images / "s1_label.nii.gz"
    for folder in ("imagesTs", "labelsTs"):
        (tmp_path / folder).mkdir()
    save(tmp_path / "labelsTs/B_1.nii.gz", np.ones(SHAPE, np.uint8))
    entry = {"fixed": "./imagesTs/A_0.nii.gz", "moving": "./imagesTs/B_1.nii.gz"}
    content = {
        "registration_val": [entry],
        "registration_test": [entry, entry | {"fixed": "imagesTs/C.nii.gz"}],
    }
    (tmp_path / "X_dataset.json").write_text(json.dumps(content))
    (pair,) = read_pairs(tmp_path)
    assert (pair.name, pair.fixed_label) == ("A_0_B_1", None)
    assert pair.moving_label == tmp_path / "labelsTs/B_1.nii.gz"
    assert [p.name for p in read_pairs(tmp_path / "X_dataset.json", "registration_test")] == [
        "A_0_B_1",
        "C_B_1",
    ]
    with pytest.raises(InputError, match="registration_test"):
        read_pairs(tmp_path, "nothing")


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"fixed": "a.nii", "moving": "b.nii"}] * 2, "two pairs are called a_b"),
        ([{"fixed": "a.nii", "moving": "b.nii", "name": "x/y"}], "folder"),
        ([{"fixed": "a.nii", "moving": "b.nii", "mask": ""}], "unknown columns mask"),
        ([{"fixed": "a.nii", "moving": ""}], "line 2 names no pair"),
        ([{"fixed": "a.nii"}], "the first line must name"),
    ],
)
def test_bad_tables(rows: list[dict[str, str]], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        read_pairs(table(tmp_path, rows))


def test_shards_and_ranks_make_up_the_whole() -> None:
    things = list(range(11))
    for shards, ranks in ((1, 1), (3, 1), (2, 3), (4, 4), (20, 1)):
        parts = [share(things, (s, shards), (r, ranks)) for s in range(shards) for r in range(ranks)]
        assert sorted(thing for part in parts for thing in part) == things
    assert [read_shard(text) for text in (None, "1/3", "3/3")] == [(0, 1), (0, 3), (2, 3)]
    slurm = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7"}
    assert read_shard("slurm", slurm | {"SLURM_ARRAY_TASK_COUNT": "4"}) == (3, 4)
    assert read_shard("slurm", dict.fromkeys(slurm, "5") | {"SLURM_ARRAY_TASK_COUNT": "1"}) == (0, 1)
    for text, environment in (
        ("slurm", {}),
        ("slurm", slurm | {"SLURM_ARRAY_TASK_COUNT": "3", "SLURM_ARRAY_TASK_ID": "5"}),  # 1, 5, 7
        ("slurm", slurm | {"SLURM_ARRAY_TASK_COUNT": "5"}),
        *((text, {}) for text in ("0/2", "3/2", "1", "a/b", "1/0", "")),
    ):
        with pytest.raises(InputError, match="--shard"):
            read_shard(text, environment)


def test_each_rank_has_a_gpu_of_its_own() -> None:
    assert [rank_device("auto", rank, 2, 2) for rank in (0, 1)] == ["cuda:0", "cuda:1"]
    assert rank_device("auto", 1, 2, 0) == "auto"
    assert rank_device("cpu", 1, 2, 2) == "cpu"
    assert rank_device("auto", 0, 1, 2) == "auto"
    with pytest.raises(InputError, match="--nproc-per-node 2"):
        rank_device("cuda", 2, 3, 2)


# --------------------------------------------------------------------------------------------- manifest


def test_what_a_kill_leaves_of_a_line(tmp_path: Path) -> None:
    first = Manifest(tmp_path)
    first.append({"pair": "a", "status": "done", "sdlogj": float("nan")})
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"pair": "b", "sta')
    second = Manifest(tmp_path)
    assert list(second.lines) == ["a"]
    second.append({"pair": "c", "status": "failed"})
    first.refresh()
    assert [first.lines[name]["status"] for name in ("a", "c")] == ["done", "failed"]
    assert len(manifest(tmp_path)) == 2
    (tmp_path / "manifest.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match="no batch wrote"):
        Manifest(tmp_path)


def test_a_claim_is_held_by_one_process_and_ends_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from neuralreg.manifest import Manifest\n"
        f"m = Manifest(Path({str(tmp_path)!r}))\n"
        "with m.claim('a') as mine: print(mine, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        ours = Manifest(tmp_path)
        with ours.claim("a") as a, ours.claim("b") as b:
            assert (a, b) == (False, True)
        other.send_signal(signal.SIGKILL)
        other.wait()
    with ours.claim("a") as mine:
        assert mine


# ------------------------------------------------------------------------------------------------- runs


def test_failures_are_recorded_and_mended(images: Path, tmp_path: Path) -> None:
    rows = [
        {"fixed": f"s{k}_img.nii.gz", "moving": f"s{k + 1}_img.nii.gz", "name": f"p{k}"} for k in range(3)
    ]
    rows[1]["moving"] = "late.nii.gz"
    path, out = table(images, rows), tmp_path / "new" / "out"
    first = call("batch", path, "--out", out, *FAST)
    assert first.exit_code == 1
    assert "2 registered, 1 failed" in first.stdout
    lines = manifest(out)
    assert [(line["pair"], line["status"]) for line in lines] == [
        ("p0", "done"),
        ("p1", "failed"),
        ("p2", "done"),
    ]
    assert "late.nii.gz does not exist" in lines[1]["error"]
    assert "traceback" not in lines[1]
    kept = (out / "p0" / "transform.nii.gz").stat().st_mtime_ns
    save(images / "late.nii.gz", blobs(SHAPE, 1.0))
    second = call("batch", path, "--out", out, *FAST)
    assert (second.exit_code, results(out)) == (0, ["p0", "p1", "p2"])
    assert "1 registered, 2 done before" in second.stdout
    assert (out / "p0" / "transform.nii.gz").stat().st_mtime_ns == kept
    with (out / "summary.csv").open() as file:
        assert [(row["pair"], row["status"], row["error"]) for row in csv.DictReader(file)] == [
            (f"p{k}", "done", "") for k in range(3)
        ]
    for words, told in (
        (["--iterations", "4"], "iterations was 3, is 4"),
        (["--preset", "nonsense"], "no preset"),
        (["--keep", "transform,x"], "--keep"),
        (["--shard", "5/4"], "--shard"),
    ):
        other = call("batch", path, "--out", out, *FAST, *words)
        assert (other.exit_code, other.stderr.count("\n")) == (2, 1)
        assert told in other.stderr
    rows[0]["moving"] = "s3_img.nii.gz"
    other = call("batch", table(images, rows), "--out", out, *FAST)
    assert (other.exit_code, len(manifest(out))) == (2, 4)
    assert "p0 names other files" in other.stderr


def test_a_defect_is_recorded_with_its_traceback(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("neuralreg.outputs.write_transform", broken)
    assert call("batch", images, "--out", tmp_path / "out", *FAST, "--shard", "1/4").exit_code == 1
    (line,) = manifest(tmp_path / "out")
    assert line["error"] == "ZeroDivisionError: oh"
    assert "in broken" in line["traceback"]
    assert results(tmp_path / "out") == []


def test_a_lost_line_is_found_again_and_labels_count(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("batch", images, "--out", out, *FAST, "--shard", "1/2")
    assert results(out) == ["s0_s1", "s2_s3"]
    before = manifest(out)
    transform = load_transform(out / "s0_s1" / "transform.nii.gz")
    figures = overlap(images / "s0_label.nii.gz", images / "s1_label.nii.gz", None, transform)
    assert 0.5 < figures["dice_mean_before"] < 1
    for name in ("dice_mean_before", "dice_mean"):
        assert before[0][name] == pytest.approx(figures[name])
    (out / "manifest.jsonl").unlink()  # as if killed between the rename and the line
    (out / ".s1_s2.tmp").mkdir()
    (out / ".s1_s2.tmp" / "transform.nii.gz").write_text("torn")
    (out / "s3_s0").mkdir()  # not ours
    times = {name: (out / name / "summary.json").stat().st_mtime_ns for name in results_of(before)}
    done = call("batch", images, "--out", out, *FAST)
    assert done.exit_code == 1
    assert "s3_s0 exists and is no result of a batch" in done.stdout
    after = {line["pair"]: line for line in manifest(out)}
    assert all(after[line["pair"]] == line for line in before)
    assert after["s1_s2"]["status"] == "done"
    assert {name: (out / name / "summary.json").stat().st_mtime_ns for name in times} == times
    assert list((out / "s3_s0").iterdir()) == []
    assert not list(out.glob(".*.tmp"))


def test_surfaces_of_every_label(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("surface_distance")
    for k in range(3):
        values = blobs(SHAPE, shift=0.5 * k)
        labels = (values > 30).astype(np.uint8) + (values > 60) + 3 * (values > 80) * (k == 2)
        save(images / f"s{k}_label.nii.gz", labels.astype(np.uint8))
    rows = [
        {
            "name": f"p{k}",
            "fixed": "s0_img.nii.gz",
            "moving": f"s{k}_img.nii.gz",
            "fixed_label": "s0_label.nii.gz",
            "moving_label": f"s{k}_label.nii.gz",
        }
        for k in (1, 2)
    ]
    path, out = table(images, rows), tmp_path / "out"
    done = call("batch", path, "--out", out, *FAST, "--surface", "--report", "--labels", "1,2,5")
    assert done.exit_code == 0, done.stderr
    lines, summary = manifest(out), json.loads((out / "p1" / "summary.json").read_text())["evaluation"]
    transform = load_transform(out / "p1" / "transform.nii.gz")
    maps = [images / f"s{k}_label.nii.gz" for k in (0, 1)]
    expected = overlap(*maps, None, transform, [1, 2, 5], surface=True)
    for name in ("hd95_mm", "assd_mm", "hd95_before_mm", "assd_before_mm", "dice"):
        wanted = {str(k): None if np.isnan(v) else pytest.approx(v) for k, v in expected[name].items()}
        assert summary[name] == lines[0][name] == wanted
    assert lines[0]["hd95_mean_mm"] == pytest.approx(expected["hd95_mean_mm"])
    assert 0 < lines[0]["assd_before_mm"]["1"] < 2
    assert summary["surface_distance"].startswith("surface-distance 0.")
    assert lines[1]["hd95_mm"]["5"] is None  # in one map alone
    assert "hd95_mean_mm" not in lines[1]
    with (out / "summary.csv").open() as file:
        row, other = csv.DictReader(file)
    assert float(row["assd_mm_2"]) == lines[0]["assd_mm"]["2"]
    assert (other["hd95_mm_5"], other["hd95_mean_mm"]) == ("", "")
    page = (out / "summary.html").read_text()
    mean = sum(line["assd_mm"]["2"] for line in lines) / 2
    assert f">{mean:.4g}<" in page[page.index("mean over the pairs") :]
    assert "(0 of 2)" in page  # label 5 has no distance in either pair
    without = call("batch", path, "--out", out, *FAST, "--report", "--labels", "1,2,5")
    assert (without.exit_code, "surface was true, is null" in without.stderr) == (2, True)
    bare = table(images, [{"fixed": "s0_img.nii.gz", "moving": "s1_img.nii.gz"}])
    assert "no pair of" in call("batch", bare, "--out", tmp_path / "new", *FAST, "--surface").stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    failed = call("batch", path, "--out", tmp_path / "none", *FAST, "--surface")
    assert (failed.exit_code, failed.stderr.count("\n")) == (2, 1)
    assert "pip install 'neuralreg[evaluate]'" in failed.stderr
    assert not (tmp_path / "none").exists()


def results_of(lines: list[dict[str, Any]]) -> list[str]:
    return [line["pair"] for line in lines]


def start(images: Path, out: Path, *before: str) -> subprocess.Popen[bytes]:
    command = [
        sys.executable,
        *before,
        "-m",
        "neuralreg",
        "batch",
        str(images),
        "--out",
        str(out),
        "--pairs",
        "all",
    ]
    return subprocess.Popen([*command, *FAST, "-q"], env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_killed_twice_and_resumed_by_two_at_once(images: Path, tmp_path: Path) -> None:
    out, chance = tmp_path / "out", random.Random(3)
    for least in (2, 5):
        with start(images, out) as process:
            while process.poll() is None and (
                not (out / "manifest.jsonl").exists() or len(manifest_whole(out)) < least
            ):
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.05))
            process.send_signal(signal.SIGKILL)
    killed = manifest_whole(out)
    assert 5 <= len(killed) < 12
    with start(images, out) as a, start(images, out) as b:
        assert (a.wait(), b.wait()) == (0, 0)
    lines = manifest(out)
    assert (
        sorted(results_of(lines)) == results(out) == sorted(pair.name for pair in read_pairs(images, "all"))
    )
    assert lines[: len(killed)] == killed
    assert not list(out.glob(".*.tmp"))


def manifest_whole(out: Path) -> list[dict[str, Any]]:
    """The lines that have an end."""
    text = (out / "manifest.jsonl").read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


@pytest.mark.slow
def test_ranks_of_torchrun(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    save(images / "s1_img.nii.gz", np.ones(SHAPE, np.float32))  # constant: six pairs fail, on both ranks
    crew = (
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--no-python",
        sys.executable,
    )
    with start(images, out, *crew) as process:
        assert process.wait() != 0
    lines = manifest(out)
    assert sorted(results_of(lines)) == sorted(pair.name for pair in read_pairs(images, "all"))
    assert sum(line["status"] == "failed" for line in lines) == 6
    with (out / "summary.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 12
