"""Reads the text of a Darknet cfg file into sections whose options are checked as they are asked for."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from de_plugin.errors import DataError

_MAX_BYTES = 1 << 18
_LARGEST = 1 << 20


@dataclass
class Section:
    """One bracketed section of a cfg file.

    Attributes:
        path: the file, for messages.
        kind: the word between the brackets.
        line: the line of the brackets, from 1.
        options: value and line by name; where a name comes twice the first one counts, as in the
            C program.
    """

    path: Path
    kind: str
    line: int
    options: dict[str, tuple[str, int]] = field(default_factory=dict)

    def error(self, problem: str, option: str | None = None) -> DataError:
        """An error that names file, line and section; the line is the option's if one is given."""
        line = self.options[option][1] if option in self.options else self.line
        return DataError(f"{self.path}, line {line}, [{self.kind}]: {problem}")

    def allow(self, *names: str) -> None:
        """Raise DataError if there is an option that isn't among the names.

        What is not understood could change what the layer computes, so it is not passed over.
        """
        unknown = [name for name in self.options if name not in names]
        if unknown:
            raise self.error(
                f"the option {unknown[0][:40]!r} is not supported, only {', '.join(names)} are: remove it if "
                "the network computes the same without it",
                unknown[0],
            )

    def choice(self, name: str, default: str, known: Mapping[str, object]) -> str:
        """The value of an option, one of the known words."""
        value = self.options.get(name, (default, 0))[0]
        if value not in known:
            raise self.error(f"{name} is {value[:40]!r}, expected one of {', '.join(known)}", name)
        return value

    def integer(self, name: str, default: int | None = None, least: int = 1, most: int = _LARGEST) -> int:
        """The value of an option as a whole number from ``least`` to ``most``."""
        if name not in self.options and default is not None:
            return default
        values = self.integers(name)
        if len(values) != 1 or not least <= values[0] <= most:
            shown = ", ".join(str(value) for value in values[:9])
            raise self.error(f"{name} is {shown}, expected one whole number from {least} to {most:,}", name)
        return values[0]

    def integers(self, name: str, default: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The value of an option as whole numbers with commas between them."""
        if name not in self.options and default is not None:
            return default
        words = self._words(name)
        if not all(re.fullmatch(r"[+-]?[0-9]{1,9}", word) for word in words):
            raise self.error(
                f"{name} is {','.join(words)[:40]!r}, expected whole numbers with commas between them", name
            )
        return tuple(int(word) for word in words)

    def numbers(self, name: str, default: tuple[float, ...] | None = None) -> tuple[float, ...]:
        """The value of an option as numbers above 0 with commas between them."""
        if name not in self.options and default is not None:
            return default
        words = self._words(name)
        try:
            values = tuple(float(word) for word in words)
        except ValueError:
            values = (math.nan,)
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise self.error(
                f"{name} is {','.join(words)[:40]!r}, expected numbers above 0 with commas between them", name
            )
        return values

    def _words(self, name: str) -> list[str]:
        if name not in self.options:
            raise self.error(f"the option {name} is missing: add '{name}=...'")
        return self.options[name][0].split(",")


def read_cfg(path: str | os.PathLike[str]) -> list[Section]:
    """The sections of a cfg file in their order.

    Args:
        path: the file; comments start with # or ; and white space doesn't count.

    Raises:
        DataError: the file is missing or larger than 256 KiB, or a line is neither a section nor
            an option of one.
    """
    file = Path(path).expanduser()
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}): give a Darknet cfg file") from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{file} has more than {_MAX_BYTES:,} bytes: give a Darknet cfg file, which is text")
    sections: list[Section] = []
    # latin-1 has a letter for every byte: comments are in all encodings, and nothing else is read
    for number, line in enumerate(content.decode("latin-1").split("\n"), 1):
        text = "".join(re.split("[#;]", line, maxsplit=1)[0].split())
        name, equals, value = text.partition("=")
        if re.fullmatch(r"\[\w+\]", text):
            sections.append(Section(file, text[1:-1], number))
        elif name and equals and value and sections:
            sections[-1].options.setdefault(name, (value, number))
        elif text:
            raise DataError(
                f"{file}, line {number}: {text[:40]!r} is neither '[section]' nor 'option=value' below "
                "one: correct the line, or give a Darknet cfg file"
            )
    return sections
