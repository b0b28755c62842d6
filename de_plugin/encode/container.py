"""How the parts lie in a file: the manifest and small streams with one checksum, then the large streams.

The payload is the manifest, the streams of at most 4 KiB one after the other, four bytes of CRC32 over
the metadata and all that, then each larger stream followed by its own CRC32. So a small network pays for
one checksum, and of a large one each entry is read and checked alone.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from de_plugin.encode import frame, manifest
from de_plugin.encode.entry import Entry
from de_plugin.encode.frame import Source
from de_plugin.encode.varints import Reader
from de_plugin.errors import FileError

_SMALL = 4096  # bytes of a stream that the common checksum covers
_CHECK = 4  # bytes of a CRC32
_FIRST = 20  # bytes that hold a manifest's first numbers, or all of a shorter payload
_ASSUMED = 2**29  # bytes of memory that any file may need: a layer of 100 million zeros
_RATIO = 4096  # times its own length that a larger one may need
_MOST = 2**36  # 64 GiB


@dataclass(frozen=True)
class Parts:
    """Where the bytes of a file went that are no stream.

    Attributes:
        frame: the part that makes it a safetensors file, metadata included.
        manifest: the part that describes the entries, level tables included.
        checks: the part that is checksums.
    """

    frame: int
    manifest: int
    checks: int


def pack(
    metadata: Mapping[str, str], entries: list[Entry], tables: list[bytes], streams: Sequence[bytes]
) -> tuple[bytes, Parts]:
    """Return a whole file, and where its bytes went.

    Args:
        metadata: the user's.
        entries: checked, with unique names and the lengths of the streams.
        tables: packed, as the entries refer to them.
        streams: one an entry, empty where it is tied.

    Raises:
        ArgumentError: metadata that is not text.
    """
    described = manifest.pack(entries, tables)
    head = described + b"".join(stream for stream in streams if len(stream) <= _SMALL)
    payload = [head, _checksum(head, zlib.crc32(frame.canonical(metadata)))]
    for stream in streams:
        if len(stream) > _SMALL:
            payload += [stream, _checksum(stream)]
    outside = frame.pack(metadata, sum(map(len, payload)))
    checks = _CHECK * (1 + sum(len(stream) > _SMALL for stream in streams))
    return b"".join([outside, *payload]), Parts(len(outside), len(described), checks)


class Container:
    """A file's entries and streams; the small ones are in memory, the others are read when asked for.

    Args:
        source: the file; it is closed with the container, or if it cannot be read.
        max_bytes: the memory that all tensors together, and decoding the largest, may need; None: half a
            GiB or 4,096 times the file's length, whichever is more, and at most 64 GiB.

    Attributes:
        metadata: the user's.
        manifest: entries and tables.
        file_bytes: the length of the file.
        parts: where its bytes went that are no stream.

    Raises:
        FileError: the file is damaged, of a newer version, no compressed network, or too large.
    """

    def __init__(self, source: Source, max_bytes: int | None = None) -> None:
        self._source = source
        try:
            self._open(min(_MOST, max(_ASSUMED, _RATIO * source.size)) if max_bytes is None else max_bytes)
        except BaseException:
            source.close()
            raise

    def _open(self, limit: int) -> None:
        source = self._source
        outside = frame.unpack(source)
        first = Reader(source.read(outside.start, min(_FIRST, outside.size)), source.name)
        try:
            length, stored, deflated = manifest.extent(first)
            body = source.read(outside.start + first.position, stored)
            self.manifest = manifest.unpack(body, length, deflated, limit)
        except FileError as error:
            raise FileError(f"{source.name}: {error}") from error
        entries = self.manifest.entries
        lengths = [entry.length for entry in entries]
        small = first.position + stored
        large = small + sum(length for length in lengths if length <= _SMALL) + _CHECK
        end = large + sum(length + _CHECK for length in lengths if length > _SMALL)
        if end != outside.size:
            raise FileError(
                f"{source.name} is damaged: its entries need {end} bytes, {outside.size} are there"
            )
        self._head = source.read(outside.start, large)
        check = _checksum(self._head[:-_CHECK], zlib.crc32(frame.canonical(outside.metadata)))
        if check != self._head[-_CHECK:]:
            raise FileError(f"{source.name} is damaged: its checksum is wrong; copy or download it again")
        self._places = []
        for length in lengths:
            self._places.append(small if length <= _SMALL else large)
            if length <= _SMALL:
                small += length
            else:
                large += length + _CHECK
        self._start = outside.start
        self.metadata = dict(outside.metadata)
        self.name = source.name
        self.file_bytes = source.size
        checks = _CHECK * (1 + sum(length > _SMALL for length in lengths))
        self.parts = Parts(outside.start, first.position + stored, checks)

    def stream(self, index: int) -> bytes:
        """Return the stream of an entry, its checksum verified.

        Raises:
            FileError: it is damaged or cannot be read.
        """
        entry, place = self.manifest.entries[index], self._places[index]
        if entry.length <= _SMALL:
            return self._head[place : place + entry.length]
        both = self._source.read(self._start + place, entry.length + _CHECK)
        stream = both[:-_CHECK]
        if _checksum(stream) != both[-_CHECK:]:
            raise FileError(
                f"{self.name} is damaged: the checksum of entry {entry.name!r} is wrong; copy or "
                "download it again"
            )
        return stream

    def verify(self) -> None:
        """Read the large streams, one after the other, to see that they are whole.

        Raises:
            FileError: one is damaged or cannot be read.
        """
        for place, entry in enumerate(self.manifest.entries):
            if entry.length > _SMALL:
                self.stream(place)

    def close(self) -> None:
        """Close the file."""
        self._source.close()


def _checksum(data: bytes, start: int = 0) -> bytes:
    return zlib.crc32(data, start).to_bytes(_CHECK, "little")
