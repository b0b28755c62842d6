"""The cache: where it is, and that a file in it is whole or not there."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from de_plugin.errors import DataError, DEWarning
from de_plugin.zoo import cache


def test_the_environment_names_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DE_PLUGIN_CACHE", "~/elsewhere")
    assert cache.cache_folder() == Path.home() / "elsewhere"


def test_the_platform_names_the_folder_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DE_PLUGIN_CACHE")
    assert cache.cache_folder().name == "de_plugin"
    monkeypatch.setitem(sys.modules, "pooch", None)
    assert cache.cache_folder() == Path.home() / ".cache" / "de_plugin"


def test_tensors_come_back_whatever_their_layout(tmp_path: Path) -> None:
    tensors = {"turned": torch.arange(6.0).reshape(2, 3).T, "number": torch.tensor(3)}
    cache.store(tmp_path / "new" / "file", tensors, {"content": "test"})
    back = cache.recall(tmp_path / "new" / "file")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in tensors.items())


def test_an_interrupted_write_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    cache.store(path, {"x": torch.ones(2)}, {})

    def failing(tensors: object, draft: Path, metadata: object) -> None:
        draft.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(cache, "save_file", failing)
    with pytest.raises(KeyboardInterrupt):
        cache.store(path, {"x": torch.zeros(2)}, {})
    assert list(tmp_path.iterdir()) == [path]
    assert torch.equal(cache.recall(path)["x"], torch.ones(2))


def test_a_folder_that_cannot_be_made_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(DEWarning, match="cannot write"):
        cache.store(tmp_path / "file" / "inner", {"x": torch.ones(2)}, {})
    with pytest.raises(DataError):
        cache.recall(tmp_path / "file" / "inner")
