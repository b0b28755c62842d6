"""Offering Directed Evolution under Neural Compressor's own names, on request."""

from __future__ import annotations

import neural_compressor.torch.quantization as place

from de_plugin.adapters.neural_compressor.config import DEQuantConfig
from de_plugin.adapters.offering import Offers, offer, withdraw

_OFFERS: Offers = {"DEQuantConfig": (place, DEQuantConfig)}


def register() -> None:
    """Make `neural_compressor.torch.quantization.DEQuantConfig` exist, until `unregister`.

    The algorithm itself is known to the host, as "de_quant", as soon as this package is imported.

    Raises:
        ArgumentError: the host has something else under this name; nothing is changed.
    """
    offer(_OFFERS)


def unregister() -> None:
    """Take the name back; without effect where it is not ours."""
    withdraw(_OFFERS)
