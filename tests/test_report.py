"""The page of a registration: whole, by itself, and the same numbers and pictures that the run gave."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from neuralreg.errors import InputError
from neuralreg.planes import planes_of
from neuralreg.report import checkerboard, flat, grid_path, registration_report
from tests.pictured import registration
from tests.small import FAST, blobs, call, pair_folder, save


class Page(HTMLParser):
    """What a page holds: its words, where it would fetch from, its pictures and the path data of its grids."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.words, self.fetched, self.pictures = "", [], []
        self.tags: dict[str, int] = {}
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags[tag] = self.tags.get(tag, 0) + 1
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                assert value is not None
                if value.startswith("data:image/png;base64,"):
                    self.pictures.append(decode(value.split(",")[1]))
                else:
                    self.fetched.append(value)

    def handle_data(self, data: str) -> None:
        self.words += data


def decode(text: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text, validate=True))).convert("RGB"))


def test_register_writes_a_page_by_itself(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path)
    words = ["register", "--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz", *FAST]
    out = folder / "out"
    done = call(*words, "--report", out / "qc.html", "--summary", out / "s.json")
    assert done.exit_code == 0, done.output
    page = Page(out / "qc.html")
    assert page.fetched == []
    assert not re.search(r"(https?:)?//[a-z]|@import|url\(", page.source.split("<body>")[0])
    assert "script" not in page.tags
    assert len(page.pictures) == 3 * (3 + 2 + 1 + 1 + 1)
    assert len(page.source) < 3_000_000
    for name, value in flat(json.loads((out / "s.json").read_text())):
        assert name in page.words
        assert value is None or str(value) in page.words, name
    assert f"neuralreg register --fixed {folder / 'fixed.nii.gz'}" in page.words
    for curve in ("loss", "similarity", "iteration 3"):
        assert curve in page.words
    assert page.tags["polyline"] >= 2
    assert "prefers-color-scheme: dark" in page.source
    assert "width=device-width" in page.source


def test_pictures_are_the_planes(tmp_path: Path) -> None:
    shape = (20, 24, 16)
    folded = torch.zeros(3, *shape)
    folded[0, 9:12] = torch.tensor([3.0, 0.0, -3.0]).view(3, 1, 1)
    subject = registration(folded, np.diag([1.0, 1.5, 3.0, 1.0]))
    registration_report(subject, tmp_path / "q.html", "make <this> & that")
    page = Page(tmp_path / "q.html")
    planes = planes_of(subject)
    for k, plane in enumerate(planes):
        fixed, start, warped = page.pictures[3 * k : 3 * k + 3]
        for picture, values in ((fixed, plane.fixed), (start, plane.start), (warped, plane.warped)):
            upright = picture[::-1, :, 0].T  # the first axis to the right, the second up
            assert np.abs(upright - np.clip(values, 0, 1) * 255).max() <= 0.5 + 1e-4
    green = [(picture == [0, 200, 0]).all(-1).sum() for picture in page.pictures]
    assert sum(green[:-3]) == 0
    assert green[-3:] == [plane.folds.sum() for plane in planes]
    assert sum(green) > 100
    assert f"folds in these planes: {sum(green)} voxels" in page.words
    assert "make <this> & that" in page.words
    assert not np.array_equal(page.pictures[9], page.pictures[12]), "differences before and after"


def test_grid_and_checkerboard() -> None:
    shift = torch.zeros(3, 24, 24, 24)
    shift[0] = 2.5
    still, moved = (planes_of(registration(u, np.eye(4)))[0] for u in (torch.zeros_like(shift), shift))
    lines = [[float(x) for x in line.split()] for line in grid_path(still)[1:].split("M")]
    assert len({round(line[0], 1) for line in lines if line[0] == line[2]}) >= 20
    assert grid_path(still) != grid_path(moved)
    board = checkerboard(still)
    assert np.array_equal(board[:3, :3], still.fixed[:3, :3])
    assert np.array_equal(board[3:6, :3], still.warped[3:6, :3])


@pytest.mark.parametrize("shape", [(30, 22), (20, 24, 1), (700, 12)])
def test_other_shapes(shape: tuple[int, ...], tmp_path: Path) -> None:
    subject = registration(torch.zeros(len(shape), *shape), np.eye(len(shape) + 1), length=0)
    registration_report(subject, tmp_path / "q.html")
    page = Page(tmp_path / "q.html")
    assert len(page.pictures) == 8
    assert max(page.pictures[0].shape) <= 480
    assert "polyline" not in page.tags


def test_report_of_files(tmp_path: Path) -> None:
    folder = pair_folder(tmp_path)
    images = ["--fixed", folder / "fixed.nii.gz", "--moving", folder / "moving.nii.gz"]
    out = folder / "out"
    call("register", *images, *FAST, "--transform-out", out / "t.nii.gz", "--summary", out / "s.json")
    words = ["report", *images, "--transform", out / "t.nii.gz", "--out", out / "q.html"]
    assert call(*words).exit_code == 0
    page = Page(out / "q.html")
    assert "SSIM" in page.words
    assert "ndv_voxels" in page.words
    assert call(*words, "--summary", out / "s.json").exit_code == 0
    assert "options.levels" in Page(out / "q.html").words
    (out / "bad.json").write_text("[1]")
    save(folder / "flat.nii.gz", blobs((20, 18)), np.eye(4))
    for more, told in (
        (["--summary", out / "bad.json"], "no summary"),
        (["--summary", out / "none.json"], "cannot be read"),
        (["--fixed", folder / "flat.nii.gz"], "2-D"),
        (["--out", out / "q.png"], ".html"),
    ):
        failed = call(*words, *more)
        assert (failed.exit_code, failed.stderr.count("\n")) == (2, 1)
        assert told in failed.stderr


def test_batch_has_a_page_a_pair_and_one_over_all(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(3):
        save(
            folder / f"s {k}_img.nii.gz",
            blobs((14, 13, 12), shift=0.5 * k) if k < 2 else np.ones((14, 13, 12)),
        )
    done = call("batch", folder, "--out", tmp_path / "out", *FAST, "--report")
    assert done.exit_code == 1
    page = Page(tmp_path / "out" / "summary.html")
    assert page.fetched == ["s%200_s%201/report.html"]
    assert Page(tmp_path / "out" / "s 0_s 1" / "report.html").fetched == []
    assert page.words.count("is constant") == 2
    assert "sdlogj" in page.words


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"jinja2 and matplotlib.*neuralreg\[report\]"):
        registration_report(registration(torch.zeros(2, 12, 12), np.eye(3)), tmp_path / "q.html")
    assert list(tmp_path.iterdir()) == []


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_in_a_browser(tmp_path: Path) -> None:
    """It is drawn without a network, follows the colour scheme, and nothing sticks out of a narrow window."""
    registration_report(registration(torch.zeros(3, 20, 24, 16), np.eye(4)), tmp_path / "q.html")
    # The page tells its own width in its title: what sticks out would have to be scrolled to.
    probe = (
        "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script></body>"
    )
    (tmp_path / "q.html").write_text((tmp_path / "q.html").read_text().replace("</body>", probe))

    def browse(scheme: int, width: int, *more: str) -> str:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        flags += [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"]
        flags += [f"--user-data-dir={tmp_path}/u", "--host-resolver-rules=MAP * ~NOTFOUND"]
        words = [str(BROWSER), *flags, *more, (tmp_path / "q.html").as_uri()]
        return subprocess.run(words, capture_output=True, text=True, timeout=300).stdout

    from PIL import Image

    for scheme, width in ((0, 1200), (1, 500)):  # dark, light
        browse(scheme, width, f"--screenshot={tmp_path / 'q.png'}")
        shot = np.asarray(Image.open(tmp_path / "q.png").convert("L"), dtype=float)
        assert shot.shape[1] == width
        ground = np.median(shot[:, :10])
        assert ground > 200 if scheme else ground < 60
        assert shot.std() > 20, "an empty page"
    title = re.search(r"<title>(\d+) of (\d+)</title>", browse(1, 500, "--dump-dom"))
    assert title is not None
    assert int(title[1]) <= int(title[2])
