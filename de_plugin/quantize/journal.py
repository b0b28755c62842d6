"""What a search for levels has measured, line by line on disk: one that was cut off is soon there again.

The search itself is repeated: it draws the same genomes, and asks the same questions in the same order. What
takes long, measuring a network and coding its symbols, is read while the questions are the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, uint8

from de_plugin.assess.ranks import Ranks
from de_plugin.encode.files import whole
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import CheckpointError
from de_plugin.prune.checkpoint import compare

N = TypeVar("N", int, float)


class Journal:
    """The answers of one search in a file.

    Args:
        path: of the file; its folder exists.
        identity: of the search, as texts that can be compared.
        ranks: the first one writes; all must read the same.

    Raises:
        CheckpointError: the file is no journal, cannot be read or written, or belongs to another search.
        ArgumentError: the ranks read different ones.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], ranks: Ranks) -> None:
        self.path = path
        self._ranks = ranks
        self._asked = 0
        lines = _read(path)
        if lines:
            compare(path, lines[0], identity)
        self._known = {str(key): value for key, value in lines[1:]}
        ranks.check_equal("journal of levels", zlib.crc32(_text(lines).encode()))
        if ranks.rank == 0:  # without a line that was cut short
            with self._writing(), whole(path) as draft:
                draft.write_text(_text([dict(identity), *self._known.items()]), encoding="utf-8")

    def measured(self, question: Iterable[Any], make: Callable[[], float]) -> float:
        """Return the answer to a question whose turn counts as well: the model may have changed meanwhile."""
        self._asked += 1
        return self.pure([self._asked, *question], make)

    def pure(self, question: Iterable[Any], make: Callable[[], N]) -> N:
        """Return the answer to a question that has the same one at any time.

        Args:
            question: texts, numbers, tensors, quantized tensors and mappings to these.
            make: finds the answer where the journal has none.
        """
        key = digest(question)
        if key not in self._known:
            self._known[key] = make()
            if self._ranks.rank == 0:
                with self._writing(), self.path.open("a", encoding="utf-8") as file:
                    file.write(_text([(key, self._known[key])]))
                    file.flush()
                    os.fsync(file.fileno())
        found: N = self._known[key]
        return found

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CheckpointError(
                f"checkpoint: {self.path} cannot be written ({error}); make room or give another folder"
            ) from error


def digest(parts: Iterable[Any]) -> str:
    """Return a text that tells such parts from any others."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Quantized):
            told = digest([part.symbols, part.levels, part.lowest, part.axis])
        elif isinstance(part, Tensor):
            told = f"{part.dtype} {tuple(part.shape)}"
            total.update(part.detach().cpu().contiguous().reshape(-1).view(uint8).numpy().data)
        elif isinstance(part, Mapping):
            told = digest(x for item in part.items() for x in item)
        else:
            told = repr(part)
        total.update(f"{len(told)} {told}".encode())
    return total.hexdigest()


def _text(lines: Iterable[Any]) -> str:
    return "".join(json.dumps(line) + "\n" for line in lines)


def _read(path: Path) -> list[Any]:
    """Return the lines that were written whole."""
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} is damaged ({error}); delete it to begin anew") from error
    pairs = all(isinstance(x, list) and len(x) == 2 and isinstance(x[1], int | float) for x in lines[1:])
    if lines and not (isinstance(lines[0], dict) and pairs):
        raise CheckpointError(f"checkpoint: {path} is no journal of levels; delete it to begin anew")
    return lines
