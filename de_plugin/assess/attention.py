"""Attention on the path whose calls a function mode can see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_SWITCH: Any = getattr(torch.backends, "mha", None)
"""None before torch 2.3, whose attention sees for itself that a function mode is on."""


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep attention on the path whose calls can be seen, not the fused one."""
    if _SWITCH is None:
        yield
        return
    fast = _SWITCH.get_fastpath_enabled()
    _SWITCH.set_fastpath_enabled(False)
    try:
        yield
    finally:
        _SWITCH.set_fastpath_enabled(fast)
