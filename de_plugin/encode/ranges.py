"""Bits of given probability to bytes and back: constriction's range coder without its padding."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from constriction import stream

from de_plugin.encode.counts import Bits
from de_plugin.encode.fixed import ONE, Floats
from de_plugin.errors import FileError

_FAMILY = stream.model.Bernoulli(perfect=False)
_WINDOW = 1 << 64


class BitCoder(Protocol):
    """Writes bits, or reads them: the model runs the same either way."""

    def code(self, probability: Floats, bits: Bits | None) -> Bits:
        """Return the bits: those given, or those read.

        Args:
            probability: of a one, in units of 1/``ONE``.
            bits: what is written; None when reading.
        """


class BitWriter:
    """Collects bits; `finish` returns them."""

    def __init__(self) -> None:
        self._encoder = stream.queue.RangeEncoder()

    def code(self, probability: Floats, bits: Bits | None) -> Bits:
        """Write the bits and return them."""
        if bits is None:
            raise TypeError("a writer needs the bits")
        self._encoder.encode(bits, _FAMILY, probability * (1 / ONE))
        return bits

    def words(self) -> int:
        """Return how many words of four bytes are taken so far."""
        return int(self._encoder.num_words())

    def finish(self) -> bytes:
        """Return the fewest bytes that, continued with zeros, lie in the final interval."""
        words = self._encoder.get_compressed()
        position, (low, width) = self._encoder.pos()
        kept, tail = words[:position], [*map(int, words[position:]), 0, 0][:2]
        chosen = tail[0] << 32 | tail[1]
        first = chosen - ((chosen - low) % _WINDOW)
        last = min(first + width - 1, _WINDOW - 1)
        first = max(first, 0)
        for bits in range(64, -1, -8):
            shortest = -(-first >> bits) << bits
            if shortest <= last:
                chosen = shortest
                break
        raw = bytes(kept.astype(">u4").tobytes()) + chosen.to_bytes(8, "big")
        return raw.rstrip(b"\0")


class BitReader:
    """Reads what a `BitWriter` wrote; any bytes are read as something."""

    def __init__(self, data: bytes) -> None:
        padded = data + bytes(-len(data) % 4)
        self._decoder = stream.queue.RangeDecoder(np.frombuffer(padded, dtype=">u4").astype(np.uint32))

    def code(self, probability: Floats, bits: Bits | None) -> Bits:
        """Return the next bits.

        Raises:
            FileError: no encoder can have written these bytes.
        """
        try:
            read: Bits = self._decoder.decode(_FAMILY, probability * (1 / ONE))
        except AssertionError as error:
            raise FileError("symbols are damaged: the range coder cannot have written these bytes") from error
        return read
