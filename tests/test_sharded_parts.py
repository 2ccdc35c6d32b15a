"""The parts of a registration over several processes that one process can show."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import neuralreg
from neuralreg.errors import InputError
from neuralreg.methods.nir_options import Options
from neuralreg.sharded.order import order_statistics
from neuralreg.sharded.ranks import Together
from neuralreg.sharded.registration import check_straight, outline, register
from neuralreg.sharded.volume import Volume, cut
from neuralreg.transforms import Geometry
from tests.geometry import GRIDS
from tests.processes import python
from tests.sharded_cases import arguments, make_pairs
from tests.small import save

ALONE = Together(torch.device("cpu"))


def test_what_several_processes_need_loads_with_them_alone() -> None:
    code = "import sys, neuralreg.registration, neuralreg.methods.nir; print([*sys.modules])"
    done = python("-c", code)
    assert "neuralreg.methods.nir" in done.stdout, done.stderr
    assert "neuralreg.sharded" not in done.stdout


def test_order_statistics_are_those_of_the_sorted_values() -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1e3, 3000), rng.normal(0, 1e-20, 500), [0.0, -0.0, 1e30, -1e30]])
    values = rng.permutation(np.round(values, 3)).astype(np.float32)
    places = [0, 1, 5, 1700, 1751, 1752, 2500, len(values) - 2, len(values) - 1]
    assert order_statistics(ALONE, values, places) == np.sort(values)[places].tolist()


@pytest.mark.parametrize("name", ["v.nii.gz", "v.nii", "v.mgz"])
def test_a_box_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("neuralreg.sharded.volume.READ_VOXELS", 60)  # many parts
    values = np.random.default_rng(0).integers(-500, 500, (7, 6, 9)).astype(np.int16)
    image = nibabel.MGHImage if name.endswith("mgz") else nibabel.Nifti1Image
    nibabel.save(image(values, np.diag([2.0, 3.0, 1.0, 1.0])), tmp_path / name)
    volume = Volume(tmp_path / name, "fixed image")
    box = ((1, 5), (0, 6), (4, 9))
    np.testing.assert_array_equal(volume.read(box), values[1:5, :, 4:9])
    np.testing.assert_array_equal(volume.read(((0, 7), (2, 3), (0, 2))), values[:, 2:3, :2])
    np.testing.assert_allclose(cut(volume.geometry, box).origin, [2.0, 0.0, 4.0])


def test_a_file_that_is_cut_short(tmp_path: Path) -> None:
    path = save(tmp_path / "v.nii", np.ones((9, 8, 7), dtype=np.float32))
    path.write_bytes(path.read_bytes()[:-40])
    volume = Volume(path, "fixed image")
    assert volume.read(((0, 9), (0, 8), (0, 3))).all()
    with pytest.raises(InputError, match=r"fixed image .* damaged or cut short"):
        volume.read(((0, 9), (0, 8), (0, 7)))


def test_one_process_on_the_shared_way(tmp_path: Path) -> None:
    make_pairs(tmp_path)
    for name in ("fast", "zero rule"):
        asked = arguments(tmp_path, name)
        plain, part = neuralreg.register(**asked), register(ALONE, **asked)
        assert [entry["loss"] for entry in part.history] == pytest.approx(
            [entry["loss"] for entry in plain.history], rel=1e-5
        )
        torch.testing.assert_close(
            part.transform.displacement, plain.transform.displacement, rtol=1e-4, atol=1e-4
        )
        assert part.inverse is None
        with pytest.raises(InputError, match="no inverse"):
            part.save_inverse(tmp_path / "i.nii")


def test_more_processes_than_rows() -> None:
    options = Options(stride=4, scales=(1,), lncc_window=5)
    assert outline(options, (40, 41, 48), axis=2, world=6) == ([((10, 10, 12), 4, 1)], 2)
    with pytest.raises(InputError, match=r"7 processes are too many .* 12 rows along axis 2 .* at most 6"):
        outline(options, (40, 41, 48), axis=2, world=7)


def test_a_sheared_grid_is_refused() -> None:
    affine = np.eye(4)
    affine[0, 1] = 0.3
    check_straight(GRIDS["oblique"][0])
    with pytest.raises(InputError, match="sheared"):
        check_straight(Geometry((4, 5, 6), affine))
