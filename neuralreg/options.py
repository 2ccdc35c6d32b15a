"""Options of a method: a frozen dataclass of defaults, presets by name, overrides checked and converted."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, TypeVar

from neuralreg.errors import InputError

Options = TypeVar("Options")


def resolve(presets: dict[str, Options], preset: str, overrides: dict[str, Any], method: str) -> Options:
    """The options of ``preset`` with the given overrides; strings are converted to the option's own type.

    Raises:
        InputError: unknown preset or option, or a value that does not convert; the line lists what exists.
    """
    if preset not in presets:
        raise InputError(
            f"method {method} has no preset {preset!r}; choose from {', '.join(sorted(presets))}"
        )
    options = presets[preset]
    known = {f.name for f in fields(options)}  # type: ignore[arg-type]
    changes = {}
    for name, value in overrides.items():
        if name not in known:
            raise InputError(
                f"method {method} has no option {name!r}; options are {', '.join(sorted(known))}"
            )
        changes[name] = convert(name, value, getattr(options, name))
    try:
        return replace(options, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise InputError(f"method {method}: {error}") from None


def convert(name: str, value: Any, like: Any) -> Any:
    """``value`` in the type of ``like``; a tuple is written with commas."""
    try:
        if isinstance(like, bool):
            if isinstance(value, bool):
                return value
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[
                str(value).lower()
            ]
        if isinstance(like, tuple):
            parts = value.split(",") if isinstance(value, str) else value
            if isinstance(parts, (int, float)):  # one number alone
                parts = (parts,)
            return tuple(type(like[0])(part) for part in parts)
        if isinstance(like, int) and isinstance(value, float) and value != int(value):
            raise ValueError
        return type(like)(value)
    except (ValueError, KeyError, TypeError):
        kind = "numbers with commas between" if isinstance(like, tuple) else type(like).__name__
        raise InputError(f"option {name}: {value!r} is not {kind} (default {like!r})") from None
