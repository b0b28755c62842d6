"""Where work that takes long is kept half-way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Halfway(Protocol):
    """The place of one piece of work, such as `de_plugin.prune.checkpoint.Checkpoint`."""

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Keep everything or nothing, instead of what was kept before."""
        ...

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return what was kept last; None: nothing yet."""
        ...
