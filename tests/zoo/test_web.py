"""Downloads: mirrors in order, every failure told, pooch only where it is needed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from de_plugin.errors import DataError
from de_plugin.zoo.images import IDX_FILES, RawImages
from de_plugin.zoo.web import download_idx

HASHES = dict.fromkeys(IDX_FILES, "ab" * 32)


def test_the_second_mirror_is_used_when_the_first_fails(
    tmp_path: Path,
    raw: RawImages,
    write_idx: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pooch = pytest.importorskip("pooch")
    server = write_idx(tmp_path / "server", raw)
    asked: list[str] = []

    def retrieve(url: str, known_hash: str, fname: str, path: str, **options: Any) -> None:
        asked.append(url)
        if url.startswith("https://one.invalid/"):
            raise ConnectionError("no route")
        assert known_hash == f"sha256:{'ab' * 32}"
        (Path(path) / fname).write_bytes((server / fname).read_bytes())

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    read = download_idx(("https://one.invalid/", "https://two.invalid/"), HASHES)
    np.testing.assert_array_equal(read.train_images, raw.train_images)
    assert len(asked) == 5
    assert asked[1] == "https://two.invalid/train-images-idx3-ubyte.gz"


def test_all_mirrors_are_named_when_none_works(monkeypatch: pytest.MonkeyPatch) -> None:
    pooch = pytest.importorskip("pooch")

    def retrieve(url: str, **options: Any) -> None:
        raise ValueError("hash differs")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    with pytest.raises(DataError, match=r"https://one.invalid/ \(ValueError: hash.*https://two"):
        download_idx(("https://one.invalid/", "https://two.invalid/"), HASHES)


def test_missing_pooch_names_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"pip install 'de_plugin\[examples\]'"):
        download_idx(("https://one.invalid/",), HASHES)
