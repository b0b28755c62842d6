"""How long a piece of work takes, counted on where it was killed and goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType

from de_plugin.encode.files import whole

EVERY = 5.0
"""Seconds between two writes."""


class Clock:
    """Counts seconds inside a block, those of earlier tries at the same work among them.

    Args:
        path: of a file in which they are kept every few seconds; deleted when the work is done.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = float(path.read_text()) if path.exists() else 0.0
        self._done = threading.Event()
        self._writer = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Clock:
        """Begin to count."""
        self._started = time.monotonic()
        self._writer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop writing; what an interrupted block took stays in the file."""
        self._done.set()
        self._writer.join()
        self._write()

    @property
    def seconds(self) -> float:
        """What the work has taken up to now."""
        return self._before + time.monotonic() - self._started

    def forget(self) -> None:
        """Delete the file: the work is done, and told elsewhere."""
        self._path.unlink(missing_ok=True)

    def _keep(self) -> None:
        while not self._done.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with whole(self._path) as draft:
            draft.write_text(str(self.seconds))
