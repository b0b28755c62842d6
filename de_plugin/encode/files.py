"""Writes files that are whole or not there at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from de_plugin.errors import FileError


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a draft to write to; it takes the path's place when the block ends without an exception.

    A reader sees the old file or the new one, also after a crash; a link is followed.

    Args:
        path: the file; an old one is replaced, its folder must exist.

    Raises:
        FileError: the folder does not exist or cannot be written, or the path is a folder.
    """
    try:
        place = Path(os.path.realpath(path))
        if place.is_dir():
            raise FileError(f"{path} is a folder: give the path of a file in it")
    except (OSError, ValueError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{os.fspath(path)!r} cannot be written ({error})") from error
    draft = place.with_name(f".{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        draft.touch(exist_ok=False)
        yield draft
        _flush(draft, os.O_RDWR)
        draft.replace(place)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            _flush(place.parent, os.O_RDONLY)
    except OSError as error:
        raise FileError(f"{path} cannot be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _flush(path: Path, flags: int) -> None:
    """Wait until it is on the disk."""
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
