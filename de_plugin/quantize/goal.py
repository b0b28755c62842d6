"""What quantizing a network is to reach: a number of bits, a size, a divergence, or a loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real

from torch import nn

from de_plugin.errors import ArgumentError

Metric = Callable[[nn.Module], float]
"""A user's loss of a model, such as its error on validation data; lower is better."""


@dataclass(frozen=True)
class Goal:
    """One of four; the smallest file, or the least divergence, that keeps to it is sought.

    Args:
        bits: the bytes that uniform levels of so many bits take, 2 to 8; least divergence.
        target_bytes: bytes of the whole file; least divergence.
        max_divergence: on the held-back data; smallest file.
        max_loss: how far `metric` may rise above the teacher's; smallest file.
        metric: goes with `max_loss`.

    Raises:
        ArgumentError: not exactly one is given, or a number is out of range.
    """

    bits: int | None = None
    target_bytes: int | None = None
    max_divergence: float | None = None
    max_loss: float | None = None
    metric: Metric | None = None

    def __post_init__(self) -> None:
        """Refuse none, several, and what cannot be reached."""
        names = ("bits", "target_bytes", "max_divergence", "max_loss")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if len(given) != 1:
            raise ArgumentError(
                f"goal: got {given or 'none'}, expected exactly one of {', '.join(names)}; for the best "
                "network at the size of 4-bit levels write bits=4"
            )
        ((name, value),) = given.items()
        whole = name in ("bits", "target_bytes")
        if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
            raise ArgumentError(f"{name}={value!r}: expected a {'whole ' if whole else ''}number")
        number = float(value)
        if name == "bits" and not 2 <= number <= 8:
            raise ArgumentError(f"bits={value}: expected 2 to 8")
        if name == "target_bytes" and number < 1:
            raise ArgumentError(f"target_bytes={value}: expected a positive number")
        if not whole and not 0 <= number < math.inf:
            raise ArgumentError(f"{name}={value}: expected a finite number >= 0")
        if (self.max_loss is None) != (self.metric is None):
            raise ArgumentError(
                "max_loss and metric go together: metric(model) returns a loss, such as the error on "
                "validation data in percent, and max_loss=0.5 lets it rise by that much"
            )

    @property
    def sized(self) -> bool:
        """Whether the size is given and the divergence is sought."""
        return self.bits is not None or self.target_bytes is not None

    def __str__(self) -> str:
        """Return the goal as it was written."""
        names = ("bits", "target_bytes", "max_divergence", "max_loss")
        return next(f"{name}={getattr(self, name)}" for name in names if getattr(self, name) is not None)
