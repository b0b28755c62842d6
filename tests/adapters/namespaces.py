"""A host's namespace gets a name on request only, and gives it back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from torch import nn

from de_plugin.errors import ArgumentError


@contextmanager
def given_back(host: ModuleType, adapter: ModuleType) -> Iterator[None]:
    """Withdraw at the end of a test, after which the host's namespace must be what it was."""
    before = dict(vars(host))
    yield
    adapter.unregister()
    assert dict(vars(host)) == before


def taken_is_left_alone(
    host: ModuleType, adapter: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check that something else under the name is neither replaced nor taken away."""
    monkeypatch.setattr(host, name, nn.Linear, raising=False)
    with pytest.raises(ArgumentError, match=f"{name} is .*Linear.* already"):
        adapter.register()
    adapter.unregister()
    assert getattr(host, name) is nn.Linear
