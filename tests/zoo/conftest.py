"""Small made-up image sets in the formats that the zoo reads, and a cache of its own per test."""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from de_plugin.errors import DataError
from de_plugin.zoo import Dataset
from de_plugin.zoo.idx import idx_header
from de_plugin.zoo.images import IDX_FILES, RawImages
from de_plugin.zoo.sources import ImageSet


@pytest.fixture(autouse=True)
def own_cache(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test but those of real data sees the user's cache and data."""
    if request.node.get_closest_marker("real_data") is None:
        monkeypatch.setenv("DE_PLUGIN_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("DE_PLUGIN_DATA", raising=False)


def make_raw(seed: int = 0, train: int = 30, test: int = 20) -> RawImages:
    draw = np.random.default_rng(seed)
    return RawImages(
        draw.integers(0, 256, (train, 28, 28), np.uint8),
        draw.integers(0, 10, train, np.uint8),
        draw.integers(0, 256, (test, 28, 28), np.uint8),
        draw.integers(0, 10, test, np.uint8),
    )


@pytest.fixture
def raw() -> RawImages:
    return make_raw()


@pytest.fixture
def other_raw() -> RawImages:
    return make_raw(seed=1)


@pytest.fixture
def write_idx() -> Callable[..., Path]:
    """Writes the four IDX files of a set into a folder."""

    def write(folder: Path, raw: RawImages, compressed: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in raw.arrays().items():
            content = idx_header(array.shape) + array.tobytes()
            if compressed:
                (folder / f"{IDX_FILES[name]}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / IDX_FILES[name]).write_bytes(content)
        return folder

    return write


@pytest.fixture
def write_pickle() -> Callable[..., Path]:
    """Writes a set as mnist.pkl.gz: the last 10 training images are its validation part."""

    def write(path: Path, raw: RawImages, scale: float = 256.0) -> Path:
        pixels = (raw.train_images.reshape(-1, 784) / scale).astype(np.float32)
        labels = raw.train_labels.astype(np.int64)
        test = (raw.test_images.reshape(-1, 784) / scale).astype(np.float32)
        parts = (
            (pixels[:-10], labels[:-10]),
            (pixels[-10:], labels[-10:]),
            (test, raw.test_labels.astype(np.int64)),
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(pickle.dumps(parts, protocol=4)))
        return path

    return write


@dataclass
class Places:
    """An image set whose packages and servers are made up; ``calls`` tells which were asked."""

    raw: RawImages
    have: set[str] = field(default_factory=set)
    calls: list[str] = field(default_factory=list)

    def image_set(self) -> ImageSet:
        sha256 = {
            name: hashlib.sha256(idx_header(array.shape) + array.tobytes()).hexdigest()
            for name, array in self.raw.arrays().items()
        }
        return ImageSet(
            "made-up",
            ("made-up", "MadeUp/raw"),
            sha256,
            installed=lambda: self._ask("installed"),
            fetched=lambda: self._ask("fetched"),
            remote=lambda: self._ask("remote"),
        )

    def _ask(self, place: str) -> RawImages:
        self.calls.append(place)
        if place not in self.have:
            raise DataError(f"no luck with {place}")
        return self.raw


@pytest.fixture
def places(raw: RawImages) -> Places:
    return Places(raw)


@pytest.fixture
def tiny() -> Dataset:
    """Ten kinds of noisy stripes, which any network learns in a few steps."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 10
    inputs = 0.3 * torch.randn(200, 1, 28, 28, generator=draw)
    inputs[torch.arange(200), 0, 2 * labels] += 2.0
    return Dataset("tiny", inputs[:150], labels[:150], inputs[150:], labels[150:])
