"""Compressed files on the disk: whole or not there, and every place that cannot be used is told."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from de_plugin.encode import load, save
from de_plugin.errors import FileError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.de.safetensors"


def test_an_old_file_is_replaced_whole_or_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, {"a": torch.ones(2)})
    mode = stat.S_IMODE(path.stat().st_mode)
    save(path, {"b": torch.ones(2)})
    assert list(load(path)) == ["b"]
    assert stat.S_IMODE(path.stat().st_mode) == mode

    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(FileError, match="the disk is full"):
        save(path, {"c": torch.ones(2)})
    assert list(load(path)) == ["b"]
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.de.safetensors"
    link.symlink_to(tmp_path / "real" / "net")
    save(link, {"a": torch.ones(2)})
    assert link.is_symlink()
    assert (tmp_path / "real" / "net").is_file()


def test_places_that_cannot_be_written_or_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot be written"):
        save(tmp_path / "missing" / "net", {})
    with pytest.raises(FileError, match="is a folder"):
        save(tmp_path, {})
    with pytest.raises(FileError, match="cannot be written"):
        save("a\0b", {})
    with pytest.raises(FileError, match="there is no file"):
        load(tmp_path / "missing")
    with pytest.raises(FileError, match="is not a file"):
        load(tmp_path)
    with pytest.raises(FileError, match="cannot be read"):
        load("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match="is not a file"):
        load(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_told(path: Path) -> None:
    save(path, {})
    path.chmod(0)
    with pytest.raises(FileError, match="cannot be read"):
        load(path)


def test_no_path_that_cannot_be_opened_is_a_crash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, {})

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.FileIO", refuse)
    with pytest.raises(FileError, match="Permission denied"):
        load(path)
