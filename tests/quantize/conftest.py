"""A quick stand-in for the coder, where only the order of sizes counts."""

from __future__ import annotations

import sys
import zlib

import pytest
from torch import Tensor


def _quick(symbols: Tensor) -> bytes:
    return zlib.compress(symbols.numpy().astype("int8").tobytes(), 9)


@pytest.fixture(autouse=True)
def _quick_coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "real_coder" not in request.fixturenames:
        monkeypatch.setattr(sys.modules["de_plugin.encode.save"], "encode_symbols", _quick)


@pytest.fixture
def real_coder() -> None:
    """Keep the coder as it is."""
