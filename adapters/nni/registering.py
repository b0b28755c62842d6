"""Offering Directed Evolution under NNI's own names, on request."""

from __future__ import annotations

import nni.compression.pruning as place

from de_plugin.adapters.nni.pruner import DEPruner
from de_plugin.adapters.offering import Offers, offer, withdraw

_OFFERS: Offers = {"DEPruner": (place, DEPruner)}


def register() -> None:
    """Make `nni.compression.pruning.DEPruner` exist, until `unregister`; doing so twice is doing so once.

    Raises:
        ArgumentError: the host has something else under this name; nothing is changed.
    """
    offer(_OFFERS)


def unregister() -> None:
    """Take the name back; without effect where it is not ours."""
    withdraw(_OFFERS)
