"""The files of a report: Markdown, JSON, figures, and one page that holds all of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from de_plugin.compare.comparison import Comparison
from de_plugin.compare.figures import drawings
from de_plugin.compare.page import page
from de_plugin.compare.text import markdown
from de_plugin.encode.files import whole
from de_plugin.errors import FileError

ROWS = "rows.json"
"""Name of the file that holds the rows, also while they are measured."""


@dataclass(frozen=True)
class Files:
    """Where a report is.

    Attributes:
        page: the self-contained HTML page.
        markdown: the report in Markdown.
        rows: everything as JSON.
        figures: SVG and PNG files.
    """

    page: Path
    markdown: Path
    rows: Path
    figures: tuple[Path, ...]


def prepared(folder: str | os.PathLike[str]) -> Path:
    """Return a folder, made where it does not exist.

    Raises:
        FileError: it cannot be made or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"folder={path}: cannot be made ({error}); give another one") from error
    if not os.access(path, os.W_OK):
        raise FileError(f"folder={path}: cannot be written; give another one")
    return path


def write(comparison: Comparison, folder: str | os.PathLike[str], command: str = "") -> Files:
    """Write a report; see `Comparison.report`."""
    drawn = drawings(comparison)
    place = prepared(folder)
    figures = prepared(place / "figures")
    written = []
    for drawing in drawn:
        for suffix, content in (("svg", drawing.svg.encode()), ("png", drawing.png)):
            written.append(figures / f"{drawing.name}.{suffix}")
            _whole(written[-1], content)
    names = [(drawing.text, f"figures/{drawing.name}.svg") for drawing in drawn]
    made = Files(place / "index.html", place / "report.md", place / ROWS, tuple(written))
    comparison.save(made.rows)
    _whole(made.markdown, markdown(comparison, names, command).encode())
    _whole(made.page, page(comparison, drawn, command).encode())
    for old in figures.iterdir():  # of an earlier report, which needed them until now
        if old.suffix in (".svg", ".png") and old.is_file() and old not in written:
            old.unlink()
    return made


def _whole(path: Path, content: bytes) -> None:
    with whole(path) as draft:
        draft.write_bytes(content)
