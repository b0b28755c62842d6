"""Whole numbers in as few bytes as they need, and a reader that never reads past the end."""

from __future__ import annotations

from de_plugin.errors import FileError

_LARGEST = 2**63 - 1


def varint(number: int) -> bytes:
    """Return a number from 0 to 2**63 - 1 as 1 to 9 bytes: seven bits each, low ones first."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class Reader:
    """Takes numbers and bytes from the front of some bytes.

    Args:
        data: what is read.
        what: what it is called in an error message.
    """

    def __init__(self, data: bytes, what: str) -> None:
        self._data = data
        self._what = what
        self.position = 0

    def take(self, count: int) -> bytes:
        """Return the next `count` bytes.

        Raises:
            FileError: fewer are left.
        """
        end = self.position + count
        if end > len(self._data):
            raise FileError(
                f"{self._what} is damaged: it ends after {len(self._data)} bytes, expected at least {end}"
            )
        taken = self._data[self.position : end]
        self.position = end
        return taken

    def varint(self) -> int:
        """Return the next number, from 0 to 2**63 - 1.

        Raises:
            FileError: the bytes end within it, or it is larger.
        """
        number = shift = 0
        while True:
            byte = self.take(1)[0]
            number |= (byte & 0x7F) << shift
            if number > _LARGEST or shift > 63:
                raise FileError(f"{self._what} is damaged: a number is larger than {_LARGEST}")
            if byte < 0x80:
                return number
            shift += 7

    def text(self) -> str:
        """Return the text up to the next zero byte, which is taken too.

        Raises:
            FileError: there is no zero byte, or the text is not UTF-8.
        """
        end = self._data.find(b"\0", self.position)
        if end < 0:
            raise FileError(f"{self._what} is damaged: a name has no end")
        raw = self.take(end - self.position)
        self.take(1)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise FileError(f"{self._what} is damaged: the name {raw!r} is not UTF-8") from error

    def finish(self) -> None:
        """Check that nothing is left.

        Raises:
            FileError: something is.
        """
        if self.position != len(self._data):
            raise FileError(
                f"{self._what} is damaged: {len(self._data) - self.position} bytes too many at its end"
            )
