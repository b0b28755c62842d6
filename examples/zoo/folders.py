"""Reads an image set from a file or a folder that the user has."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from de_plugin.errors import DataError

from .idx import read_idx
from .images import IDX_FILES, RawImages
from .pickles import read_mnist_pickle

PICKLE_NAME = "mnist.pkl.gz"
_EXPECTED = f"{PICKLE_NAME} or the four files {', '.join(IDX_FILES.values())} (.gz or not)"


def read_path(path: Path, subfolders: Iterable[str] = ()) -> RawImages:
    """The images at a path.

    Args:
        path: mnist.pkl.gz itself under any name, or a folder that holds it or the four IDX files.
        subfolders: folders below ``path`` that are looked into where it holds neither.

    Raises:
        DataError: there is nothing at the path, no set in the folder, or a file in it is damaged.
    """
    if path.is_file():
        if path.name.removesuffix(".gz") in IDX_FILES.values():
            raise DataError(f"path {path} is one of four IDX files: give their folder instead")
        return _read_pickle(path)
    if not path.is_dir():
        raise DataError(f"path {path} does not exist, expected {_EXPECTED}, or their folder")
    for folder in (path, *(path / name for name in subfolders)):
        if (folder / PICKLE_NAME).is_file():
            return _read_pickle(folder / PICKLE_NAME)
        files = {field: _idx_file(folder, name) for field, name in IDX_FILES.items()}
        found = {field: file for field, file in files.items() if file is not None}
        if len(found) == len(IDX_FILES):
            return RawImages(**{field: read_idx(file) for field, file in found.items()})
        if found:
            missing = ", ".join(name for field, name in IDX_FILES.items() if field not in found)
            raise DataError(f"folder {folder} lacks {missing} (.gz or not): add what is missing")
    looked = ", ".join(str(path / name) for name in subfolders)
    raise DataError(
        f"folder {path} holds no image set{f', nor does {looked}' if looked else ''}, expected "
        f"{_EXPECTED}: give the folder that holds them"
    )


def _read_pickle(path: Path) -> RawImages:
    try:
        with path.open("rb") as stream:
            return read_mnist_pickle(stream, str(path))
    except OSError as error:
        raise DataError(f"{path} cannot be opened ({error}): give a readable file") from error


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((f for f in (folder / f"{name}.gz", folder / name) if f.is_file()), None)
