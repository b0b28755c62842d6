"""The IDX format, in which MNIST and its relatives are published: a header, then plain bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from de_plugin.errors import DataError

_UBYTE = 8
_MAX_BYTES = 1 << 28


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The header of an IDX file of unsigned bytes of this shape: magic number, then the sizes.

    >>> idx_header((2, 3)).hex()
    '000008020000000200000003'
    """
    return struct.pack(f">BBBB{len(shape)}I", 0, 0, _UBYTE, len(shape), *shape)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """The array in an IDX file of unsigned bytes, gzip-compressed or not.

    Args:
        path: the file; whether it is compressed is read off its first two bytes.

    Returns:
        A writable uint8 array of the shape that the header gives.

    Raises:
        DataError: the file is missing, is not IDX of unsigned bytes, holds fewer or more bytes
            than its header says, or more than 256 MiB.
    """
    content = _bytes(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UBYTE or content[3] < 1:
        raise DataError(
            f"{path} starts with {content[:4].hex() or 'nothing'}, expected 000008 and the number "
            "of dimensions: give an IDX file of unsigned bytes"
        )
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise DataError(f"{path} ends within its header: download the file again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise DataError(
            f"{path} holds {len(content) - start:,} bytes, expected {math.prod(shape):,} for the "
            f"shape {shape} in its header: download the file again"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as plain:
            compressed = plain.read(2) == b"\x1f\x8b"
        with gzip.open(path) if compressed else path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): give a complete IDX file") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path} holds more than {_MAX_BYTES:,} bytes: give a smaller file")
    return content
