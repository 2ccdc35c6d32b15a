"""The flags that say how to register, shared by all commands that register, and how their text is read."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from neuralreg.errors import InputError

# Panels of the help.
INPUTS, RUN = "Images", "Registration"

# Arguments of neuralreg.register that belong to one pair; commands that register name them as they need.
PAIR_FLAGS = {"fixed", "moving", "fixed_mask", "moving_mask", "initial_transform", "prior"}
# And those of one pair over several processes.
TOGETHER_FLAGS = {"margin", "inverse_out"}
# Flags that are options of the method, and no arguments of neuralreg.register.
METHOD_FLAGS = {"option", "similarity"}


@dataclass(frozen=True)
class RegisterFlags:
    """One field a flag, by the name of its argument of neuralreg.register."""

    start: Annotated[
        str,
        typer.Option(
            help="Linear alignment first: none, center (of mass), moments, rigid or affine.",
            rich_help_panel=INPUTS,
        ),
    ] = "none"
    start_similarity: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="What start rigid and affine climb: nmi, lncc, ...", rich_help_panel=INPUTS
        ),
    ] = "nmi"
    center: Annotated[
        bool, typer.Option("--center", help="The same as --start center.", rich_help_panel=INPUTS)
    ] = False
    window: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI", help="Intensity window, such as -1000,400 for lung CT.", rich_help_panel=INPUTS
        ),
    ] = None
    quantiles: Annotated[
        str | None,
        typer.Option(
            metavar="LO,HI",
            help="Intensity window as quantiles, such as 0.001,0.999.",
            rich_help_panel=INPUTS,
        ),
    ] = None
    nan_to: Annotated[
        float | None,
        typer.Option(
            help="Replace NaN and infinity by this value instead of refusing.", rich_help_panel=INPUTS
        ),
    ] = None
    method: Annotated[
        str, typer.Option(help="Registration method: nir, ncf, nephi or ofg.", rich_help_panel=RUN)
    ] = "nir"
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of the method by name, fast by default; an unknown one lists them.",
            rich_help_panel=RUN,
        ),
    ] = None
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Trained network that predicts the map (.pt of neuralreg train).", rich_help_panel=RUN
        ),
    ] = None
    refine: Annotated[
        int | None,
        typer.Option(metavar="STEPS", help="Steps that refine a prediction.", rich_help_panel=RUN),
    ] = None
    similarity: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="What the fit climbs: lncc, ssim, ncc, mse, l1, and between modalities nmi or mind.",
            rich_help_panel=RUN,
        ),
    ] = None
    iterations: Annotated[
        int | None,
        typer.Option(help="Iterations in all; the preset's own number by default.", rich_help_panel=RUN),
    ] = None
    time_budget: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="Seconds that the fit may take, if its iterations do not end before.",
            rich_help_panel=RUN,
        ),
    ] = None
    max_memory: Annotated[
        float | None,
        typer.Option(
            metavar="MB",
            help="Memory that the process may reach: fewer points an iteration.",
            rich_help_panel=RUN,
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="fp32|bf16",
            help="Of the network's products while it is fitted; bf16 on GPUs and CPUs that have it.",
            rich_help_panel=RUN,
        ),
    ] = None
    option: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE", help="Any other setting of the method; repeat.", rich_help_panel=RUN
        ),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.", rich_help_panel=RUN)] = 0
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic", help="The same result in every run on a GPU, too.", rich_help_panel=RUN
        ),
    ] = False
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)] = "auto"
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; all cores by default.", rich_help_panel=RUN)
    ] = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of neuralreg.register that the flags stand for.

        Raises:
            InputError: a flag's text that cannot be read.
        """
        names = [field.name for field in fields(self) if field.name not in METHOD_FLAGS]
        given = {name: getattr(self, name) for name in names}
        for name in ("window", "quantiles"):
            given[name] = parse_pair(f"--{name}", given[name])
        return given | self.options()

    def options(self) -> dict[str, Any]:
        """The options of the method among them.

        Raises:
            InputError: a flag's text that cannot be read, or an option that is given twice.
        """
        options = parse_options(self.option or [])
        if self.similarity is None:
            return options
        if "similarity" in options:
            raise InputError("--option: 'similarity' is given twice, by --similarity too")
        return options | {"similarity": self.similarity}


# Names that cannot be given as --option.
OWN_FLAGS = PAIR_FLAGS | TOGETHER_FLAGS | {field.name for field in fields(RegisterFlags)} - METHOD_FLAGS


def with_register_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Puts the flags of `RegisterFlags` in the place of a command's parameter ``how``, which receives them."""
    own = inspect.signature(command, eval_str=True).parameters.values()
    types = get_type_hints(RegisterFlags, include_extras=True)
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = []
    for parameter in own:
        if parameter.name == "how":
            parameters += [
                inspect.Parameter(field.name, keyword, default=field.default, annotation=types[field.name])
                for field in fields(RegisterFlags)
            ]
        else:
            parameters.append(parameter.replace(kind=keyword))

    @wraps(command)
    def spread(**given: Any) -> None:
        flags = {field.name: given.pop(field.name) for field in fields(RegisterFlags)}
        command(how=RegisterFlags(**flags), **given)

    spread.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    spread.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return spread


def parse_pair(flag: str, text: str | None) -> tuple[float, float] | None:
    """`lo,hi` as two numbers with lo < hi; InputError otherwise."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{flag}: expected two numbers as LO,HI, got '{text}'") from None
    if not low < high:
        raise InputError(f"{flag}: the first number must be below the second, got '{text}'")
    return low, high


def parse_options(pairs: list[str], own: Collection[str] = OWN_FLAGS) -> dict[str, Any]:
    """`name=value` pairs as arguments: numbers, true, false, none, comma lists as tuples, else text.

    ``own`` are names that have a flag of their own, and are refused.
    """
    words = {"true": True, "false": False, "none": None}
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier():
            raise InputError(f"--option: expected NAME=VALUE, got '{pair}'")
        if name in options:
            raise InputError(f"--option: '{name}' is given twice")
        if name in own or name == "progress":
            hint = f"; use --{name.replace('_', '-')}" if name in own else ""
            raise InputError(f"--option: '{name}' is not an option of a method{hint}")
        if text.strip().lower() in words:
            options[name] = words[text.strip().lower()]
            continue
        try:
            options[name] = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            options[name] = text
    return options
