"""What a search for levels has measured, line by line on disk: one that was cut off is soon there again.

The search itself is repeated: it draws the same genomes, and asks the same questions in the same order. What
takes long, measuring a network and coding its symbols, is read while the questions are the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from de_plugin.assess.ranks import Ranks
from de_plugin.encode.files import whole
from de_plugin.encode.quantized import Quantized
from de_plugin.errors import CheckpointError, FileError
from de_plugin.prune.checkpoint import compare

N = TypeVar("N", int, float)

_PROBES = 3
"""Questions that are always asked: their answers tell of what no argument does."""
_CLOSE, _NOTHING = 1e-3, 1e-6
"""Differences, relative and in all, that hardware may make between two answers to the same question."""


class Journal:
    """The answers of one search in a file.

    Args:
        path: of the file; its folder exists.
        identity: of the search, as texts that can be compared.
        ranks: the first one writes; all read the same.
        started: when the search did, a `time.monotonic` reading.

    Raises:
        CheckpointError: the file is no journal, cannot be read or written, or belongs to another search.
        ArgumentError: the ranks read different ones.
        RankError: another rank has failed.
    """

    def __init__(self, path: Path, identity: Mapping[str, str], ranks: Ranks, started: float) -> None:
        self.path = path
        self._ranks = ranks
        self._asked = 0
        self._known: dict[str, tuple[Any, float]] = {}
        self._seconds, self._since = 0.0, started
        self._error: CheckpointError | None = None
        self._together(lambda: self._open(identity))
        ranks.check_equal("journal of levels", zlib.crc32(json.dumps([*self._known.items()]).encode()))

    @property
    def seconds(self) -> float:
        """What the search has taken so far, before it was cut off among it."""
        return self._seconds + time.monotonic() - self._since

    def measured(self, question: Iterable[Any], make: Callable[[], float]) -> float:
        """Return the answer to a question whose turn counts as well: the model may have changed meanwhile.

        Args:
            question: as `pure` takes it.
            make: finds the answer, on all ranks together.

        Raises:
            CheckpointError: the file cannot be written, or a question that is asked anew has another answer.
        """
        self._together(lambda: None)
        self._asked += 1
        if self._asked <= _PROBES:
            found, known = make(), self._known.get(digest([self._asked, *question]))
            if known is not None and not math.isclose(found, known[0], rel_tol=_CLOSE, abs_tol=_NOTHING):
                raise CheckpointError(
                    f"checkpoint: {self.path}: the network measures {found:g} where the search that is kept "
                    f"there had {known[0]:g}; what the arguments don't tell has changed, such as data that a "
                    "function reads, or the hardware; give another folder"
                )
            return self.pure([self._asked, *question], lambda: found)
        return self.pure([self._asked, *question], make)

    def pure(self, question: Iterable[Any], make: Callable[[], N]) -> N:
        """Return the answer to a question that has the same one at any time.

        Args:
            question: texts, numbers, tensors, quantized tensors and mappings to these.
            make: finds the answer where the journal has none.
        """
        key = digest(question)
        if key not in self._known:
            answer = make()
            self._known[key] = (answer, 0.0)  # its time has passed on this clock
            if self._ranks.rank == 0 and self._error is None:
                self._append([key, answer, self.seconds])
        found: N
        found, seconds = self._known[key]
        if seconds > self._seconds:  # of a search that was cut off
            self._seconds, self._since = seconds, time.monotonic()
        return found

    def close(self) -> None:
        """Tell all ranks of what could not be written."""
        self._together(lambda: None)

    def _together(self, work: Callable[[], None]) -> None:
        """Do something on all ranks; what one raises, or has met before, stops them all."""

        def run() -> None:
            if self._error is not None:
                raise self._error
            work()

        self._ranks.all_or_none(run)

    def _open(self, identity: Mapping[str, str]) -> None:
        lines = _read(self.path)
        if lines:
            compare(self.path, lines[0], identity)
        self._known = {key: (answer, seconds) for key, answer, seconds in lines[1:]}
        if self._ranks.rank == 0:  # without a line that was cut short
            try:
                with whole(self.path) as draft:
                    draft.write_text(_text([dict(identity), *lines[1:]]), encoding="utf-8")
            except FileError as error:
                raise self._unwritable(error) from error

    def _append(self, line: list[Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_text([line]))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            self._error = self._unwritable(error)
            if self._ranks.world == 1:
                raise self._error from error

    def _unwritable(self, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"checkpoint: {self.path} cannot be written ({error}); make room or give another folder"
        )


def answered(journal: Journal | None, question: Iterable[Any], make: Callable[[], float]) -> float:
    """Return what `make` finds, or what a journal knows of it; see `Journal.measured`."""
    return make() if journal is None else journal.measured(question, make)


def digest(parts: Iterable[Any]) -> str:
    """Return a text that tells such parts from any others."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Quantized):
            told = digest([part.symbols, part.levels, part.lowest, part.axis])
        elif isinstance(part, Tensor):
            told = f"{part.dtype} {tuple(part.shape)}"
            total.update(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
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
    first = lines[:1] and isinstance(lines[0], dict)
    if text and not (first and all(map(_answers, lines[1:]))):
        raise CheckpointError(f"checkpoint: {path} is no journal of levels; delete it to begin anew")
    return lines


def _answers(line: Any) -> bool:
    three = isinstance(line, list) and len(line) == 3 and isinstance(line[0], str)
    return three and all(isinstance(x, int | float) for x in line[1:])
