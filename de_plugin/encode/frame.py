"""The outside of a compressed file: a safetensors file with one tensor of bytes.

Eight bytes hold the length of a JSON header, which holds the user's metadata, if any, and describes one
uint8 tensor called ``de1`` after the format's version; its bytes, the payload, are the rest of the file.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from de_plugin.errors import ArgumentError, FileError

VERSION = 1
"""The version that is written, and the newest that is read."""

_NAME = f"de{VERSION}"
_NAMES = re.compile(r"de([0-9]{1,8})", re.ASCII)
_HEADER_LIMIT = 100_000_000  # as in safetensors


class Source(Protocol):
    """Bytes that can be read in any order."""

    name: str
    size: int

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on; FileError where the source is shorter."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


class MemorySource:
    """Bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self.name = "data"
        self.size = len(data)
        self._data = data

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on."""
        if offset + count > self.size:
            raise FileError(f"{self.name} is cut off: {self.size} bytes, expected {offset + count}")
        return self._data[offset : offset + count]

    def close(self) -> None:
        """Do nothing."""


class FileSource:
    """A regular file, open for reading until it is closed; threads may share it.

    Raises:
        FileError: there is no such file, or it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        self._lock = threading.Lock()
        try:
            # A pipe would wait for a writer, so what is no file is refused before it is opened.
            if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116
                raise FileError(f"{self.name} is not a file: give the path of a compressed network")
            self._file = io.FileIO(self.name)
            self.size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError:
            raise FileError(f"there is no file {self.name}") from None
        except (OSError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"{self.name} cannot be read ({error})") from error

    def read(self, offset: int, count: int) -> bytes:
        """Return `count` bytes from `offset` on."""
        if offset + count > self.size:
            raise FileError(f"{self.name} is cut off: {self.size} bytes, expected {offset + count}")
        try:
            with self._lock:
                self._file.seek(offset)
                parts, left = [], count
                while left and (part := self._file.read(left)):
                    parts.append(part)
                    left -= len(part)
        except (OSError, ValueError) as error:
            raise FileError(f"{self.name} cannot be read ({error})") from error
        if left:
            raise FileError(f"{self.name} was cut off while it was read: {left} bytes are missing")
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


@dataclass(frozen=True)
class Frame:
    """What the outside of a file tells.

    Attributes:
        metadata: the user's.
        start: where the payload begins, in bytes from the start of the file.
        size: the payload's bytes.
    """

    metadata: Mapping[str, str]
    start: int
    size: int


def canonical(metadata: Mapping[str, str]) -> bytes:
    """Return the same bytes for the same metadata, whatever their order; checksums cover them."""
    return json.dumps(dict(metadata), sort_keys=True).encode()


def pack(metadata: Mapping[str, str], size: int) -> bytes:
    """Return what comes before a payload of `size` bytes.

    Raises:
        ArgumentError: metadata that is not text.
    """
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentError(
                f"metadata {key!r}: {value!r}: expected text for both; use str() or json.dumps()"
            )
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    header[_NAME] = _described(size)
    try:
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ArgumentError(f"metadata: {error.object!r} cannot be written as UTF-8") from error
    return len(text).to_bytes(8, "little") + text


def _described(size: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}


def unpack(source: Source) -> Frame:
    """Read what comes before the payload.

    Raises:
        FileError: it is no compressed network, is damaged, or was written by a newer version.
    """
    if source.size < 8:
        raise FileError(f"{source.name} has {source.size} bytes: it is no compressed network, or was cut off")
    length = int.from_bytes(source.read(0, 8), "little")
    if length > min(source.size - 8, _HEADER_LIMIT):
        raise FileError(
            f"{source.name} is no safetensors file, or was cut off: it has {source.size} bytes and claims a "
            f"header of {length}"
        )
    header = _parse(source.read(8, length), source.name)
    metadata = header.pop("__metadata__", {})
    versions = [found[1] for name in header if (found := _NAMES.fullmatch(name))]
    if len(header) != 1 or not versions:
        raise FileError(
            f"{source.name} was not written by de_plugin: read it with safetensors.torch.load_file, or make "
            "a file with de_plugin.encode.save"
        )
    if int(versions[0]) > VERSION:
        raise FileError(
            f"{source.name} was made by a newer version of de_plugin (format {versions[0]}, this one reads "
            f"{VERSION}): pip install -U de_plugin"
        )
    start = 8 + length
    size = source.size - start
    if header != {_NAME: _described(size)}:
        raise FileError(
            f"{source.name} is damaged or cut off: its header does not describe the {size} bytes that follow"
        )
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileError(f"{source.name} is damaged: its metadata are not text")
    return Frame(metadata, start, size)


def _parse(text: bytes, name: str) -> dict[str, object]:
    """Return the JSON object; a key that comes twice is refused."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        if len({key for key, _ in pairs}) != len(pairs):
            raise ValueError("a key comes twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{name} is no safetensors file, or its header is damaged ({error})") from error
    if not isinstance(header, dict):
        raise FileError(f"{name} is no safetensors file: its header is {type(header).__name__}")
    return header
