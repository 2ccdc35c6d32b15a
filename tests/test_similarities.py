"""Similarities between modalities against plain formulas: values, gradients, what they do not see, odd images."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from neuralreg import kernels
from neuralreg.errors import InputError
from neuralreg.losses import SIMILARITIES, similarity
from neuralreg.methods import ncf, nephi_options, nir_options
from neuralreg.methods.ofg_guidance import Energy
from neuralreg.similarities.mind import mind, moved
from neuralreg.similarities.nmi import nmi
from tests.small import blobs, call, save

MODAL = ("nmi", "mind")


def b_spline(x: np.ndarray, order: int) -> np.ndarray:
    """The centred B-spline of order 1 or 3, from its textbook pieces."""
    x = np.abs(x)
    if order == 1:
        return np.clip(1 - x, 0, None)
    return np.where(x < 1, 2 / 3 - x**2 + x**3 / 2, np.where(x < 2, (2 - x) ** 3 / 6, 0))


def plain_nmi(f: np.ndarray, w: np.ndarray, weight: np.ndarray, bins: int) -> float:
    centres = np.arange(bins)
    rows = b_spline(f.ravel()[:, None] * (bins - 1) - centres, 1)
    columns = b_spline(1 + w.ravel()[:, None] * (bins - 3) - centres, 3)
    joint = (rows * weight.ravel()[:, None]).T @ columns / weight.sum()

    def entropy(p: np.ndarray) -> float:
        p = p[p > 0]
        return -float((p * np.log(p)).sum())

    return (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)


def plain_mind(image: np.ndarray, window: int, dilation: int) -> np.ndarray:
    """(channels, *spatial) of one image, voxel by voxel."""
    ndim, shape = image.ndim, image.shape

    def at(place: tuple[int, ...]) -> float:
        return float(image[tuple(min(max(p, 0), n - 1) for p, n in zip(place, shape, strict=True))])

    steps = [
        tuple(s * dilation if k == axis else 0 for k in range(ndim)) for axis in range(ndim) for s in (1, -1)
    ]
    edges = [
        (a, b) for a, b in itertools.combinations(steps, 2) if any(x + y for x, y in zip(a, b, strict=True))
    ]
    distances = np.zeros((len(edges), *shape))
    for centre in np.ndindex(*shape):
        box = [
            range(max(0, c - (window - 1) // 2), min(n, c + window // 2 + 1))
            for c, n in zip(centre, shape, strict=True)
        ]
        for k, (a, b) in enumerate(edges):
            found = [
                (at(tuple(np.add(v, a))) - at(tuple(np.add(v, b)))) ** 2 for v in itertools.product(*box)
            ]
            distances[(k, *centre)] = np.mean(found)
    above = distances - distances.min(0)
    variance = above.mean(0)
    variance = np.clip(variance, 1e-3 * variance.mean(), 1e3 * variance.mean())
    return np.exp(-above / variance)


def smooth(*shape: int) -> torch.Tensor:
    """An image (1, 1, *shape) in [0, 1] with structure of a few voxels."""
    image = kernels.box_mean(torch.rand(1, 1, *shape, dtype=torch.float64), (5,) * len(shape))
    return (image - image.min()) / (image.max() - image.min())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bins", [4, 9, 32])
def test_nmi_is_the_textbooks(bins, masked):
    f, w = torch.rand(2, 1, 1, 7, 6, 5, dtype=torch.float64)
    f.flatten()[:2], w.flatten()[:2] = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])
    mask = torch.rand_like(f) if masked else None
    weight = np.ones(f.shape) if mask is None else mask.numpy()
    expected = plain_nmi(f.numpy(), w.numpy(), weight, bins)
    assert abs(float(nmi(f, w, mask, bins)) - expected) < 1e-7
    assert nmi(f.float(), w.float(), bins=bins).dtype == torch.float32
    assert abs(float(nmi(f.half(), w.half(), mask, bins)) - expected) < 1e-2


@pytest.mark.parametrize(
    ("shape", "window", "dilation"), [((6, 7), 3, 1), ((5, 6), 4, 2), ((5, 4, 6), 3, 2), ((1, 6, 5), 3, 2)]
)
def test_mind_is_the_papers(shape, window, dilation):
    image = torch.rand(1, 1, *shape, dtype=torch.float64)
    found = mind(image, window, dilation)
    assert found.shape[1] == (12 if len(shape) == 3 else 4)
    np.testing.assert_allclose(
        found[0].numpy(), plain_mind(image[0, 0].numpy(), window, dilation), atol=1e-12
    )
    two = torch.cat([image, image.flip(2)], 1)
    assert torch.equal(mind(two, window, dilation)[:, : found.shape[1]], found)


def test_a_voxel_that_is_moved_beyond_the_border_is_the_outermost():
    line = torch.arange(4.0).view(1, 1, 4, 1)
    assert moved(line, 2, 3).flatten().tolist() == [3, 3, 3, 3]
    assert moved(line, 2, -1).flatten().tolist() == [0, 0, 1, 2]
    assert moved(line, 3, 9).flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("name", MODAL)
def test_gradients_of_both_images(name, backend):
    f, w = smooth(5, 6, 4), smooth(5, 6, 4).flip(2)
    mask = (torch.rand_like(f) > 0.3).double()

    def run(f: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        with kernels.use_backend(backend) if backend else torch.enable_grad():
            return similarity(name, 0.02 + 0.96 * f, 0.02 + 0.96 * w, mask=mask, window=3)

    assert torch.autograd.gradcheck(run, (f.requires_grad_(), w.requires_grad_()), atol=1e-6)


def shifted_scores(name: str, remap: bool) -> list[float]:
    """The similarity of an image with itself, moved by 0 .. 4 voxels; the moved one in another contrast."""
    image = smooth(24, 22, 20)
    other = (torch.cos(4.5 * image) + 1) / 2 if remap else image
    inner = (slice(None), slice(None), slice(4, 20))
    return [float(similarity(name, image[inner], moved(other, 2, k)[inner], window=5)) for k in range(5)]


@pytest.mark.parametrize("name", ["nmi", "mind", "mse", "ncc"])
def test_what_another_contrast_does(name):
    plain, remapped = shifted_scores(name, False), shifted_scores(name, True)
    assert plain.index(max(plain)) == 0
    assert (remapped.index(max(remapped)) == 0) == (name in MODAL)
    if name == "nmi":  # in comparison with images that have nothing to do with each other
        assert remapped[0] - remapped[4] > 0.5 * (plain[0] - plain[4])


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("shape", [(6, 5), (1, 6, 5), (1, 1, 1), (4, 5, 6)])
def test_constant_and_tiny_images_are_finite(name, shape):
    flat = torch.full((1, 1, *shape), 0.5, dtype=torch.float64)
    for f, w in (
        (torch.rand_like(flat), flat),
        (flat, torch.rand_like(flat)),
        (flat, flat),
        (0 * flat, 0 * flat),
    ):
        w = w.clone().requires_grad_()
        value = similarity(name, f, w, window=3)
        (gradient,) = torch.autograd.grad(value, w)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    nowhere = similarity(name, flat, flat, mask=0 * flat, window=3)
    assert torch.isfinite(nowhere)


def test_nmi_of_what_says_nothing_is_one():
    x = torch.rand(1, 1, 20, 20)
    for f, w, mask in ((x, 0 * x, None), (0 * x, x, None), (x, x, 0 * x)):
        assert abs(float(nmi(f, w, mask)) - 1) < 1e-6
    with pytest.raises(ValueError, match="bins must be at least 4"):
        nmi(x, x, bins=3)
    with pytest.raises(ValueError, match="mind: needs"):
        mind(x, window=0)


def test_options_take_the_names_where_the_points_allow_it():
    assert nir_options.Options(sampler="random", similarity="nmi").similarity == "nmi"
    assert nephi_options.Options(similarity="nmi").sampler == "random"
    assert nephi_options.Options(sampler="lattice", similarity="mind").similarity == "mind"
    for name in ("nmi", "mind", "ncc"):
        assert ncf.Options(photometric=name).photometric == name
    for make, words in (
        (
            lambda: nir_options.Options(sampler="random", similarity="mind"),
            "take similarity=ncc, mse, l1, nmi",
        ),
        (lambda: nephi_options.Options(similarity="mind"), "or similarity=ncc, mse, l1, nmi"),
        (lambda: nir_options.Options(similarity="nmi", dropout=0.2), "similarity nmi is none"),
        (lambda: nir_options.Options(similarity="mind", padding="valid"), "take padding=same"),
        (
            lambda: similarity("mind", *torch.rand(2, 1, 1, 9, 9), padding="valid"),
            "padding valid is not for it",
        ),
        (lambda: similarity("nmi", *torch.rand(2, 1, 1, 9, 9), dropout=0.1), "nmi is not a mean"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


@pytest.mark.parametrize("name", ["nmi", "ncc", "mind"])
def test_guidance_compares_every_pair_by_itself(name):
    fixed, moving = torch.rand(2, 3, 1, 9, 8)
    u = 0.1 * torch.randn(3, 2, 9, 8)
    together = Energy(name, 3).parts(fixed, moving, u)[0]
    alone = [Energy(name, 3).parts(fixed[k : k + 1], moving[k : k + 1], u[k : k + 1])[0] for k in range(3)]
    torch.testing.assert_close(together, torch.stack(alone).mean())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("nir", {"similarity": "nmi", "sampler": "random"}),
        ("nir", {"similarity": "mind"}),
        ("ncf", {"similarity": "nmi"}),
        ("ncf", {"similarity": "mind", "lncc_window": 3}),
        ("nephi", {"similarity": "nmi"}),
        ("nephi", {"similarity": "mind"}),
    ],
)
def test_every_method_fits_with_them(method, options):
    import neuralreg

    fixed, moving = (smooth(14, 13, 12)[0, 0].float() for _ in range(2))
    found = neuralreg.register(fixed, 1 - moving, method, iterations=2, threads=1, **options)
    assert torch.isfinite(found.transform.displacement).all()
    assert found.history[-1]["loss"] != found.history[0]["loss"]


def test_one_similarity_alone_compares_in_ncf():
    from neuralreg.registration import choose

    def chosen(preset: str, **options: object) -> dict[str, object]:
        return vars(choose(ncf, "ncf", preset, None, None, options, None)[0])

    terms = ("photometric", *ncf.WEIGHTS)
    assert [chosen("fast", similarity="mind")[name] for name in terms] == ["mind", 1.0, 0.0, 0.0, 0.0]
    assert [chosen("paper", similarity="lncc")[name] for name in terms[1:]] == [0.0, 0.0, 0.0, 1.0]
    beside = chosen("paper", similarity="ssim", occupancy_weight=0.5)
    assert [beside[name] for name in terms[1:]] == [0.0, 1.0, 0.5, 0.0]
    with pytest.raises(InputError, match=r"similarity must be one of lncc, .*, got 'nothing'"):
        chosen("fast", similarity="nothing")


@pytest.mark.parametrize("method", ["nir", "ncf", "nephi"])
def test_the_flag_chooses_in_every_method(method, tmp_path):
    for k in range(2):
        save(tmp_path / f"{k}.nii.gz", blobs((12, 11, 10), shift=0.5 * k))
    words = ["--fixed", tmp_path / "0.nii.gz", "--moving", tmp_path / "1.nii.gz", "--method", method]
    words += ["--similarity", "nmi", "--iterations", 2, "--threads", 1]
    summary = tmp_path / "s.json"
    done = call("register", *words, "--transform-out", tmp_path / "t.nii.gz", "--summary", summary)
    assert done.exit_code == 0, done.stderr
    options = json.loads(summary.read_text())["options"]
    assert options["photometric" if method == "ncf" else "similarity"] == "nmi"
    twice = call("register", *words, "--option", "similarity=mind", "--transform-out", tmp_path / "x.nii.gz")
    assert (twice.exit_code, twice.stderr.count("\n")) == (2, 1)
    assert "given twice" in twice.stderr
