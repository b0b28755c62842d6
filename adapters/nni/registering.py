"""Offering Directed Evolution under NNI's own names, on request."""

from __future__ import annotations

import nni.compression.pruning as place

from de_plugin.adapters.nni.pruner import DEPruner
from de_plugin.errors import ArgumentError

_NAME = "DEPruner"


def register() -> None:
    """Make `nni.compression.pruning.DEPruner` exist, until `unregister`; doing so twice is doing so once.

    Raises:
        ArgumentError: the host has something else under this name; nothing is changed.
    """
    known = getattr(place, _NAME, DEPruner)
    if known is not DEPruner:
        raise ArgumentError(f"register(): {place.__name__}.{_NAME} is {known!r} already; remove that first")
    setattr(place, _NAME, DEPruner)


def unregister() -> None:
    """Take the name back; without effect where it is not ours."""
    if getattr(place, _NAME, None) is DEPruner:
        delattr(place, _NAME)
