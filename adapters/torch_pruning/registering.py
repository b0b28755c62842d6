"""Offering Directed Evolution under the host's own names, on request."""

from __future__ import annotations

import torch_pruning as tp

from de_plugin.adapters.offering import Offers, offer, withdraw
from de_plugin.adapters.torch_pruning.importance import DEImportance
from de_plugin.adapters.torch_pruning.pruner import (
    DEBNScalePruner,
    DEGroupNormPruner,
    DEGrowingRegPruner,
    DEPruner,
)

_OFFERED: Offers = {
    "DEImportance": (tp.importance, DEImportance),
    **{
        cls.__name__: (tp.pruner, cls)
        for cls in (DEPruner, DEBNScalePruner, DEGroupNormPruner, DEGrowingRegPruner)
    },
}


def register() -> None:
    """Make `tp.importance.DEImportance` and `tp.pruner.DEPruner` (and its kin) exist, until `unregister`.

    Doing so twice is doing so once.

    Raises:
        ArgumentError: the host has something else under one of these names; nothing is changed.
    """
    offer(_OFFERED)


def unregister() -> None:
    """Take the names back; without effect where they are not ours."""
    withdraw(_OFFERED)
