"""What a step of NePhi costs: memory beside voxel methods, time beside torch's double backward."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from neuralreg.bench.harness import Measurement, timed
from neuralreg.bench.process import Cost, run

CONTENDERS = ("nephi", "voxel-unet", "dense-field")
STAGES = ("train", "refine")
COST_COLUMNS = ("work", "points", "contender", "seconds", "cpu_seconds", "speedup")
MB = 1 << 20


def memory_row(
    contender: str, stage: str, size: int, preset: str, limit: float, threads: int
) -> dict[str, Any] | None:
    """Peak memory of one step beyond a process that has imported torch alone; None where there is no such step."""
    if contender == "dense-field" and stage == "train":  # it is fitted to one pair
        return None
    code = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({int(limit * MB)},) * 2); "
    code += "from neuralreg.bench.nephi_cost import one_step; "
    code += f"one_step({contender!r}, {stage!r}, {size}, {preset!r}, {threads})"
    cost = run([sys.executable, "-c", code], {"OMP_NUM_THREADS": str(threads)})
    images = 2 * 4 * size**3 / MB
    row: dict[str, Any] = {"contender": contender, "stage": stage, "size": size, "preset": preset}
    row |= {"threads": threads, "limit_mb": limit, "images_mb": images}
    if cost.code:
        words = cost.output.strip().splitlines() or ["no output"]
        return {**row, "peak_mb": "", "extra_mb": "", "error": f"exit code {cost.code}: {words[-1][:160]}"}
    return {**row, "peak_mb": cost.peak_mb, "extra_mb": cost.peak_mb - bare().peak_mb, "error": ""}


@functools.cache
def bare() -> Cost:
    """A process that imports torch."""
    return run([sys.executable, "-c", "import torch"])


def one_step(contender: str, stage: str, size: int, preset: str, threads: int) -> None:
    """One optimiser step of a contender on two random images of a cube."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    shape = (size,) * 3
    fixed, moving = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
    if contender == "nephi":
        _nephi_step(stage, preset, fixed, moving)
        return
    from neuralreg.bench.voxel_unet import VoxelUNet, network_step, two_way_loss

    if contender == "voxel-unet":  # its instance optimisation goes on with the training of the network
        network = VoxelUNet()
        parameters: Any = network.parameters()
        loss: Callable[[], Tensor] = functools.partial(network_step, network, fixed, moving)
    elif contender == "dense-field":
        maps = [torch.zeros(1, 3, *shape, requires_grad=True) for _ in range(2)]
        parameters, loss = maps, lambda: two_way_loss(maps[0], maps[1], fixed, moving)
    else:
        raise ValueError(f"there is no contender {contender!r}; choose from {', '.join(CONTENDERS)}")
    optimiser = torch.optim.Adam(parameters, lr=1e-4)
    loss().backward()
    optimiser.step()


def _nephi_step(stage: str, preset: str, fixed: Tensor, moving: Tensor) -> None:
    from neuralreg.methods import nephi
    from neuralreg.pair import Pair

    options = nephi.PRESETS[preset]
    trainee = nephi.make_trainee(options, tuple(fixed.shape[2:]), 3, 0)
    if stage == "train":
        optimiser = trainee.optimiser()
        losses = trainee.losses(SimpleNamespace(fixed=fixed, moving=moving), torch.Generator())
        losses["loss"].backward()
        optimiser.step()
        return
    nephi.fit_trained(trainee, Pair(fixed, moving, torch.eye(3, 4)), options, refine=2)


def time_rows(points: list[int], rounds: int, preset: str, size: int) -> list[dict[str, Any]]:
    """Rows of COST_COLUMNS: the regulariser alone, then whole refinement steps with so many points."""
    rows = []
    for work, count, contenders in (
        ("inverse consistency, both orders", 500, _regulariser_steps(preset, 500)),
        *(("refinement step", count, _refinement_steps(preset, size, count)) for count in points),
    ):
        found = [Measurement(name, float("nan")) for name in contenders]
        steps = list(contenders.values())
        for step in steps:
            step()
        for turn in range(rounds):
            order = range(len(steps)) if turn % 2 == 0 else reversed(range(len(steps)))
            for index in order:
                wall, cpu = timed(steps[index], torch.device("cpu"))
                found[index].wall.append(wall)
                found[index].cpu.append(cpu)
        for one in found:
            cpu = sorted(one.cpu)[len(one.cpu) // 2]
            figures = (work, count, one.contender, one.median, cpu, found[-1].median / one.median)
            rows.append(dict(zip(COST_COLUMNS, figures, strict=True)))
    return rows


def _fields(preset: str, shape: tuple[int, ...]) -> Any:
    """A pair's field of the preset's sizes, away from the identity."""
    from neuralreg.methods import nephi
    from neuralreg.networks.encoder import halved, local_block_of
    from neuralreg.two_way import TwoWayField

    torch.manual_seed(0)
    options = nephi.PRESETS[preset]
    there, back = (nephi.make_decoder(options, 3) for _ in range(2))
    for decoder in (there, back):
        torch.nn.init.normal_(decoder.output_layer[0], std=0.01)
    block = local_block_of(shape) if options.local_block < 0 else options.local_block
    volume = torch.randn(options.local_code, *halved(shape, block + 1)) if options.local_code else None
    latent = torch.randn(options.global_code) if options.global_code else None
    return TwoWayField(there, back, latent, volume), options


def double_backward_consistency(maps: Any, x: Tensor) -> Tensor:
    """The same term as it is written with autograd: the Jacobian by a backward an axis, kept for another backward."""
    terms = []
    for first, second in (maps, maps[::-1]):
        here = x.detach().requires_grad_()
        u = first(here)
        error = u + second(here + u)
        rows = [torch.autograd.grad(error[:, k].sum(), here, create_graph=True)[0] for k in range(x.shape[1])]
        terms.append(torch.stack(rows).square().mean())
    return torch.stack(terms).mean()


def torch_map(one: Any, x: Tensor) -> Tensor:
    """A map in plain torch, local codes by torch's own sampling, which is fast and has one derivative."""
    from neuralreg.bench.voxel_unet import read
    from neuralreg.kernels.backends.reference.field import field

    spec, codes = one.decoder.spec, []
    if one.latent is not None:
        codes.append(one.latent.expand(len(x), -1))
    if one.volume is not None:
        codes.append(read(one.volume[None], x.T[None, :, :, None, None], "border")[0, :, :, 0, 0].T)
    plain = replace(spec, latent=spec.latent + spec.latent_volume, latent_volume=0)
    return field(x, [*one.decoder.encoding, torch.cat(codes, 1), *one.decoder.weights], plain)


def _regulariser_steps(preset: str, count: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    from neuralreg.kernels import use_backend
    from neuralreg.methods.nephi_losses import gradient_inverse_consistency

    field, _ = _fields(preset, (175, 175, 175))
    x = torch.rand(count, 3) * 2 - 1
    parameters = list(field.parameters())

    def jets() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gradient_inverse_consistency(field.maps, x), parameters, allow_unused=True)

    def autograd() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            value = double_backward_consistency(field.maps, x)
            return torch.autograd.grad(value, parameters, allow_unused=True)

    return {**_precisions(field, jets), "torch double backward": autograd}


def _precisions(
    field: Any, step: Callable[[], tuple[Tensor, ...]]
) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Our step, and the same with bfloat16 products where this machine gains by them."""
    from neuralreg.kernels.backends import native, registry
    from neuralreg.precision import multiplying

    def rounded() -> tuple[Tensor, ...]:
        with multiplying(field, "bf16"):
            return step()

    gains = registry.choose("field", torch.device("cpu")) == "cpu" and native.multiplies_bfloat16()
    return {"neuralreg": step} | ({"neuralreg bf16": rounded} if gains else {})


def _refinement_steps(preset: str, size: int, count: int) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """A step on codes and decoders: similarity at ``count`` points in both directions, 500 of the regulariser."""
    from neuralreg.bench.voxel_unet import read
    from neuralreg.kernels import use_backend
    from neuralreg.losses import global_ncc
    from neuralreg.methods.nephi_losses import code_prior, draw_points, draw_sample, pair_losses
    from neuralreg.pair import Pair

    shape = (size,) * 3
    field, options = _fields(preset, (175, 175, 175))
    options = replace(options, point_share=1.0, max_points=count, regulariser_bounds=(500, 500))
    fixed, moving = torch.rand(1, 1, *shape), torch.rand(1, 1, *shape)
    pair = Pair(fixed, moving, torch.eye(3, 4))
    generator = torch.Generator().manual_seed(0)
    sample = draw_sample(options, shape, generator, fixed.device)
    x = draw_points(options, shape, generator, fixed.device)
    optimisers = [torch.optim.Adam(field.parameters(), lr=0.0) for _ in range(2)]

    def ours() -> tuple[Tensor, ...]:
        optimisers[0].zero_grad()
        pair_losses(field.maps, pair, sample, x, options)["loss"].backward()
        optimisers[0].step()
        return ()

    def autograd() -> tuple[Tensor, ...]:
        optimisers[1].zero_grad()
        points = sample.coordinates()
        alike = []
        for one, (target, source) in zip(field.maps, ((fixed, moving), (moving, fixed)), strict=True):
            here, there = points, points + torch_map(one, points)
            values = [
                read(image, where.T[None, :, :, None, None])
                for image, where in ((target, here), (source, there))
            ]
            alike.append(global_ncc(values[0], values[1]))
        prior = code_prior(field.latent, field.volume, like=points)
        with use_backend("reference"):
            consistency = double_backward_consistency(field.maps, x)
        loss = options.regulariser_weight * consistency + options.prior_weight * prior
        (loss - torch.stack(alike).mean()).backward()
        optimisers[1].step()
        return ()

    return {**_precisions(field, ours), "torch double backward": autograd}
