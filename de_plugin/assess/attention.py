"""Attention on the path whose calls a function mode can see."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import mha


@contextmanager
def plain_attention() -> Iterator[None]:
    """Keep attention on the path whose calls can be seen, not the fused one."""
    fast = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        mha.set_fastpath_enabled(fast)
