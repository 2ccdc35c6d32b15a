"""NePhi's studies: shapes, scores, memory and time, at sizes that take seconds."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from neuralreg.bench import nephi as study
from neuralreg.bench import nephi_cost, nephi_runs, voxel_unet
from neuralreg.bench.rows import provenance, write_rows
from neuralreg.bench.shapes import draw, kind_of, shapes
from neuralreg.errors import InputError
from neuralreg.training.data import Pairs

TINY = ["--option", "hidden=8", "--option", "frequencies=4", "--option", "widths=4,4"]


def test_shapes_have_the_area_of_their_kind() -> None:
    for place in range(4):
        subject = draw("s", place, 64, 0)
        area, share = float((subject.labels > 0).sum()), float(subject.image.sum())
        assert subject.image.shape == (1, 64, 64)
        assert 0 <= subject.image.min() <= subject.image.max() <= 1
        assert subject.image.max() > 0.999
        assert share == pytest.approx(area, rel=0.06)
        inside = subject.labels.nonzero().double()
        # second moments: pi r^4 / 2 of a disc is area^2 / (2 pi), an equilateral triangle's is larger by 1.209
        moment = float((inside - inside.mean(0)).square().sum()) / area**2 * 2 * torch.pi
        assert moment == pytest.approx({"circle": 1.0, "triangle": 1.209}[kind_of(place)], rel=0.04)
    assert torch.equal(draw("s", 1, 32, 0).image, draw("s", 1, 32, 0).image)
    assert not torch.equal(draw("s", 1, 32, 0).image, draw("s", 1, 32, 1).image)


def test_the_score_of_no_registration_is_the_overlap() -> None:
    subjects = shapes(3, 32, 0)
    found = nephi_runs.score(Pairs(subjects), nephi_runs.nothing)
    assert found["pairs"] == 6
    assert 0 < found["dice"] < 1
    assert found["folds_percent"] == 0
    assert found["inverse_consistency_mm"] == pytest.approx(0, abs=1e-5)
    assert nephi_runs.score(Pairs(subjects), nephi_runs.nothing, most=2)["pairs"] == 2


def test_the_commands_write_tables_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, picture = tmp_path / "s.csv", tmp_path / "s.png"
    small = [
        "--size",
        "24",
        "--count",
        "3",
        "--test",
        "3",
        "--steps",
        "2",
        "--batch",
        "1",
        "--threads",
        "1",
        *TINY,
    ]
    runner = CliRunner()
    words = ["shapes", "--refine", "3", "--out", str(out), "--figure", str(picture), *small]
    assert runner.invoke(study.app, words, catch_exceptions=False).exit_code == 0
    rows = list(csv.DictReader(out.open()))
    assert [row["stage"] for row in rows] == ["prediction", "refined 3"]
    assert rows[0]["dice"] != rows[1]["dice"] or rows[0]["sdlogj"] != rows[1]["sdlogj"]
    for row in rows:
        assert 0 < float(row["dice"]) < 1
        assert row["steps"] == "2"
    assert picture.stat().st_size > 1000
    words = ["ratio", "--out", str(out), "--exponents", "3,4", *small]
    assert runner.invoke(study.app, words, catch_exceptions=False).exit_code == 0
    assert [row["ratio"] for row in csv.DictReader(out.open())] == ["4^-3", "4^-4"]
    words = ["ablation", "--out", str(out), "--weights", "1", *small]
    assert runner.invoke(study.app, words, catch_exceptions=False).exit_code == 0
    assert [row["regulariser"] for row in csv.DictReader(out.open())] == ["inverse 1", "diffusion 1"]
    for words, role in (
        (["memory", "--contenders", "x"], "--contenders"),
        (["memory", "--stages", "x"], "--stages"),
    ):
        with pytest.raises(InputError, match=role):
            runner.invoke(study.app, words, catch_exceptions=False)
    with pytest.raises(InputError, match="--exponents"):
        runner.invoke(study.app, ["ratio", "--exponents", "x", *small], catch_exceptions=False)


def test_kept_rows_of_memory_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    shared = {**provenance(), "contender": "voxel-unet", "stage": "train", "images_mb": 2.0, "limit_mb": 900}
    rows = [{**shared, "size": 16, "extra_mb": 40.0, "error": ""}]
    rows.append({**shared, "size": 32, "extra_mb": "", "error": "exit code 1"})
    table, picture = tmp_path / "m.csv", tmp_path / "m.png"
    write_rows(table, rows)
    runner = CliRunner()
    words = ["memory-figure", str(table), "--figure", str(picture)]
    assert runner.invoke(study.app, words, catch_exceptions=False).exit_code == 0
    assert picture.stat().st_size > 1000
    write_rows(table, [provenance()])
    picture.unlink()
    with pytest.raises(InputError, match="extra_mb"):
        runner.invoke(study.app, words, catch_exceptions=False)
    assert not picture.exists()


def test_the_contenders_terms_agree_with_ours() -> None:
    field, _ = nephi_cost._fields("fast", (32, 32, 32))
    field = field.double()
    x = torch.rand(5, 3, dtype=torch.float64) - 0.5
    from neuralreg.kernels import use_backend
    from neuralreg.methods.nephi_losses import gradient_inverse_consistency

    with use_backend("reference"):
        theirs = nephi_cost.double_backward_consistency(field.maps, x)
    torch.testing.assert_close(gradient_inverse_consistency(field.maps, x), theirs, rtol=1e-8, atol=1e-12)
    for one in field.maps:
        torch.testing.assert_close(nephi_cost.torch_map(one, x), one(x), rtol=1e-8, atol=1e-10)


def test_the_voxel_contender_is_consistent_where_maps_undo_each_other() -> None:
    torch.manual_seed(0)
    shape = (16, 12, 16)
    x = voxel_unet.identity(shape)
    scale = torch.tensor([0.1, -0.05, 0.0]).view(1, 3, 1, 1, 1)
    u, v = scale * x, -scale / (1 + scale) * x
    inner = float(voxel_unet.inverse_consistency(u, u))
    assert float(voxel_unet.inverse_consistency(u, v)) < 0.3 * inner
    network = voxel_unet.VoxelUNet(3, (2, 4, 4))
    fixed, moving = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
    assert not network(torch.cat([fixed, moving], 1)).any()
    voxel_unet.network_step(network, fixed, moving).backward()
    assert network.last.weight.grad.any()


@pytest.mark.thorough
def test_memory_and_time_rows() -> None:
    assert nephi_cost.memory_row("dense-field", "train", 16, "fast", 4000, 1) is None
    row = nephi_cost.memory_row("nephi", "refine", 16, "fast", 8000, 1)
    assert row["error"] == ""
    assert 0 < row["extra_mb"] < 2000
    row = nephi_cost.memory_row("voxel-unet", "train", 16, "fast", 60, 1)
    assert row["error"]
    assert row["extra_mb"] == ""
    rows = nephi_cost.time_rows([40], 1, "fast", 8)
    rows = [row for row in rows if row["contender"] != "neuralreg bf16"]  # some machines have it
    assert [(row["work"].split()[0], row["contender"].split()[0]) for row in rows] == [
        ("inverse", "neuralreg"),
        ("inverse", "torch"),
        ("refinement", "neuralreg"),
        ("refinement", "torch"),
    ]
