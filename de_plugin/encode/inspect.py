"""Tells what a compressed file holds."""

from __future__ import annotations

import os

from de_plugin.encode.info import Info, Layer, describe
from de_plugin.encode.load import File, open_file


def inspect(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Info:
    """Return the layers of a compressed file and where its bytes went; ``str()`` makes a table of it.

    Every layer is decoded to count its zeros and levels, one at a time.

    Args:
        path: the file.
        max_bytes: as in `de_plugin.encode.open_file`.

    Raises:
        FileError: the file is missing, damaged, of a newer version, no compressed network, or too large.
    """
    with open_file(path, max_bytes=max_bytes) as file:
        inside = file.container
        return Info(_layers(file), inside.metadata, inside.file_bytes, inside.parts)


def _layers(file: File) -> tuple[Layer, ...]:
    """Describe the entries, tied ones by what the other told."""
    layers: list[Layer] = []
    for entry in file.container.manifest.entries:
        if entry.same is not None:
            layers.append(layers[entry.same].tied(entry.name))
        else:
            layers.append(describe(entry, file.held(entry.name)[1]))
    return tuple(layers)
