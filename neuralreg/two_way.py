"""A pair's map and its inverse as one field: two decoders that share the pair's codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from neuralreg.fields import FORMAT, Field, load_field


def codes_last(volume: Tensor) -> Tensor:
    """The same (channels, *lattice), on CPUs laid out as their field op reads it: the codes of a point together."""
    return volume.movedim(0, -1).contiguous().movedim(-1, 0) if volume.device.type == "cpu" else volume


@dataclass(frozen=True)
class CodedMap:
    """A decoder with the codes of one pair: ``u = map(x)`` and ``u, J = map.jet(x)`` as of any field.

    ``latent`` (global,) and ``volume`` (local, *lattice) over [-1, 1], read at the point that the map is given.
    """

    decoder: Field
    latent: Tensor | None = None
    volume: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.decoder(x, latent=self.latent, volume=self.volume)

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, ndim) and J (N, ndim, ndim); the derivative of what the volume gives at x is in it."""
        return self.decoder.jet(x, latent=self.latent, volume=self.volume)

    def parameters(self) -> Iterator[Tensor]:
        """Of the decoder: where it lies."""
        return self.decoder.parameters()


class TwoWayField(nn.Module):
    """``there`` displaces points of the fixed side, ``back`` those of the moving side, in coordinates of [-1, 1].

    Called as a field it is the forward map. ``latent`` and ``volume`` are parameters, or None where the decoders take
    none; see :class:`CodedMap`.
    """

    def __init__(
        self, there: Field, back: Field, latent: Tensor | None = None, volume: Tensor | None = None
    ) -> None:
        super().__init__()
        self.there, self.back = there, back
        self.latent = None if latent is None else nn.Parameter(latent)
        self.volume = None if volume is None else nn.Parameter(codes_last(volume))

    @property
    def maps(self) -> tuple[CodedMap, CodedMap]:
        """The forward and the backward map."""
        return (
            CodedMap(self.there, self.latent, self.volume),
            CodedMap(self.back, self.latent, self.volume),
        )

    @property
    def inverse(self) -> CodedMap:
        """The backward map."""
        return self.maps[1]

    def forward(self, x: Tensor) -> Tensor:
        return self.maps[0](x)

    def jet(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, ndim) and J (N, ndim, ndim) of the forward map."""
        return self.maps[0].jet(x)

    def describe(self) -> dict[str, Any]:
        """Decoders and codes in plain types, for :func:`neuralreg.fields.load_field`."""
        return {
            "format": FORMAT,
            "kind": "two-way",
            "there": self.there.describe(),
            "back": self.back.describe(),
            "latent": None if self.latent is None else self.latent.detach(),
            "volume": None if self.volume is None else self.volume.detach(),
        }

    @staticmethod
    def from_description(description: dict[str, Any]) -> TwoWayField:
        """The field that ``describe`` described."""
        there, back = load_field(description["there"]), load_field(description["back"])
        assert isinstance(there, Field)
        assert isinstance(back, Field)
        return TwoWayField(there, back, description["latent"], description["volume"])
