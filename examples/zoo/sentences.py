"""English sentences that every Python has, those of its language reference, in two sets."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cache

from de_plugin.errors import ArgumentError, DataError

_FEWEST, _MOST = 6, 40
_LEAST_LETTERS = 0.9


@dataclass(frozen=True)
class Sentences:
    """Two sets of different sentences, each in an order of its own that has nothing to do with the text's.

    Attributes:
        calibration: for the choice of what goes; about three quarters of all.
        evaluation: for what is told at the end.
    """

    calibration: tuple[str, ...]
    evaluation: tuple[str, ...]

    def first(self, calibration: int, evaluation: int) -> Sentences:
        """Return the first of both sets.

        Raises:
            ArgumentError: there are not so many.
        """
        for name, count in (("calibration", calibration), ("evaluation", evaluation)):
            if not 1 <= count <= len(getattr(self, name)):
                raise ArgumentError(f"{name}={count}: expected 1 to {len(getattr(self, name))} sentences")
        return Sentences(self.calibration[:calibration], self.evaluation[:evaluation])


@cache
def sentences() -> Sentences:
    """Return the sentences of the Python language reference that comes with the interpreter.

    The text is that of ``help("topics")``, the module pydoc_data.topics of the standard library (Python
    Software Foundation License), without its code, tables and headings: paragraphs cut at full stops, 6
    to 40 words of mostly letters each, every sentence once. Which set a sentence is in, and where,
    depends on the sentence's own SHA-256 alone, so that Python versions differ only in what their
    references say.

    Raises:
        DataError: this Python comes without its reference.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python has no module pydoc_data.topics: install its standard library whole "
            "(Debian: libpython3-stdlib), or use the Python of python.org"
        ) from error
    found: dict[str, str] = {}
    for text in topics.values():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in split(paragraph):
                found.setdefault(re.sub(r"\W+", " ", sentence).lower(), sentence)
    ordered = sorted((hashlib.sha256(sentence.encode()).digest(), sentence) for sentence in found.values())
    return Sentences(
        calibration=tuple(sentence for digest, sentence in ordered if digest[-1] >= 64),
        evaluation=tuple(sentence for digest, sentence in ordered if digest[-1] < 64),
    )


def split(paragraph: str) -> list[str]:
    """Return the sentences of a paragraph of running text; of anything else nothing."""
    text = " ".join(re.sub(r"^\s*(?:[*+-]|\d+\.)\s+", "", paragraph).split())
    text = re.sub(r"\[[^\]]*\]|[*`|]", "", text).replace("\u2019", "'")
    return [s for s in re.split(r"(?<=[.!?])\s+(?=[A-Z])", text) if _is_prose(s)]


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    letters = sum(c.isalpha() or c in " ,.'-\"" for c in sentence)
    return (
        _FEWEST <= len(words) <= _MOST
        and sentence[0].isupper()
        and sentence[-1] in ".!?"
        and letters >= _LEAST_LETTERS * len(sentence)
    )
