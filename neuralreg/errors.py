"""Errors that a user can act on.

The command line turns every :class:`NeuralregError` into one line on stderr, ``error: <message>``, and exit
code 2, so a message is one line that says what is wrong, where (file and role), and what to do about it.
"""

from __future__ import annotations


class NeuralregError(Exception):
    """Base of all errors that neuralreg raises on purpose."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))


class InputError(NeuralregError, ValueError):
    """Something that the user gave cannot be used: a file, an option's value, or a combination of them."""
