"""The result of a comparison: its rows, what they depend on, and the ways to read them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from de_plugin.compare.row import Row
from de_plugin.compare.settings import Settings
from de_plugin.encode.files import whole
from de_plugin.errors import FileError, MissingDependencyError

if TYPE_CHECKING:
    from de_plugin.compare.report import Files

FORMAT = 1


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        rows: one a method, what was asked for and seed.
        settings: what was asked.
        versions: of all that rows depend on, by name.
        intact: the intact model's "macs", "params" and "score", as far as they are known.
        notes: what a reader should know of the hosts.
    """

    rows: tuple[Row, ...]
    settings: Settings
    versions: Mapping[str, str]
    intact: Mapping[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make it what cannot be changed by accident, and refuse a row that is there twice."""
        object.__setattr__(self, "rows", tuple(self.rows))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "versions", MappingProxyType(dict(self.versions)))
        object.__setattr__(self, "intact", MappingProxyType(dict(self.intact)))
        keys = [row.key for row in self.rows]
        if len(set(keys)) < len(keys):
            twice = next(k for k in keys if keys.count(k) > 1)
            raise FileError(f"rows: {twice} is there twice")

    @property
    def failed(self) -> tuple[Row, ...]:
        """Return the rows of methods that left nothing to measure."""
        return tuple(row for row in self.rows if row.failed)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "format": FORMAT,
            "settings": self.settings.to_dict(),
            "versions": dict(self.versions),
            "intact": dict(self.intact),
            "notes": list(self.notes),
            "rows": [row.to_dict() for row in self.rows],
        }

    @classmethod
    def from_dict(cls, plain: Any) -> Comparison:
        """Return what `to_dict` made plain data of.

        Raises:
            FileError: it is no such data.
        """
        if not isinstance(plain, dict) or plain.get("format") != FORMAT:
            raise FileError(
                f"this is no comparison of format {FORMAT}; give a rows.json of de_plugin.compare"
            )
        try:
            return cls(
                tuple(Row.from_dict(row) for row in plain["rows"]),
                Settings.from_dict(plain["settings"]),
                plain["versions"],
                plain["intact"],
                tuple(plain["notes"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, FileError):
                raise
            raise FileError(f"the comparison is damaged: {type(error).__name__} {error}") from error

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Comparison:
        """Read a file that `save`, `report` or ``compare(path=...)`` has written, or such a text.

        Raises:
            FileError: it cannot be read, or is no comparison.
        """
        text = os.fspath(source)
        try:
            if not text.lstrip().startswith("{"):
                text = Path(text).read_text(encoding="utf-8")
            plain = json.loads(text)
        except (OSError, ValueError) as error:
            raise FileError(f"{str(source)[:200]}: cannot be read as a comparison ({error})") from error
        return cls.from_dict(plain)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything as JSON, whole or not at all.

        Raises:
            FileError: the file cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        with whole(path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")

    def to_pandas(self) -> Any:
        """Return a `pandas.DataFrame`, one line a row; `layers` and `curve` stay nested.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise MissingDependencyError(
                "Comparison.to_pandas(): needs pandas; pip install pandas"
            ) from error
        return pandas.DataFrame([row.to_dict() for row in self.rows], columns=list(Row.__dataclass_fields__))

    def report(self, folder: str | os.PathLike[str], *, command: str = "") -> Files:
        """Write report.md, rows.json, figures and a self-contained index.html.

        Args:
            folder: made if it does not exist; files of an earlier report are replaced.
            command: what makes the same comparison again, for the page to tell.

        Returns:
            The files.

        Raises:
            FileError: the folder cannot be written.
            MissingDependencyError: matplotlib is not installed.
        """
        from de_plugin.compare.report import write

        return write(self, folder, command)

    def __str__(self) -> str:
        """Return a table for each task: means ± deviations over seeds, the best marked by a star."""
        from de_plugin.compare.text import plain

        return plain(self)
