"""Offering classes under a host's own names, on request."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from de_plugin.errors import ArgumentError

Offers = Mapping[str, tuple[ModuleType, type]]
"""Where each name is offered, and the class that it stands for."""


def offer(offers: Offers) -> None:
    """Make the names exist; doing so twice is doing so once.

    Raises:
        ArgumentError: the host has something else under one of them; nothing is changed.
    """
    for name, (place, cls) in offers.items():
        known = getattr(place, name, cls)
        if known is not cls:
            where = f"{place.__name__}.{name}"
            raise ArgumentError(f"register(): {where} is {known!r} already; remove that first")
    for name, (place, cls) in offers.items():
        setattr(place, name, cls)


def withdraw(offers: Offers) -> None:
    """Take the names back; without effect where they are not ours."""
    for name, (place, cls) in offers.items():
        if getattr(place, name, None) is cls:
            delattr(place, name)
