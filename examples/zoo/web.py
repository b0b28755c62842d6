"""Downloads the official IDX files over HTTP, each checked against its SHA-256."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from de_plugin.errors import DataError

from .folders import read_path
from .images import IDX_FILES, RawImages

_TIMEOUT = 30.0


def download_idx(mirrors: Sequence[str], sha256: Mapping[str, str]) -> RawImages:
    """The four compressed IDX files from the first mirror that has them all.

    Args:
        mirrors: addresses to which the official file names are appended, so each ends in "/".
        sha256: SHA-256 of the compressed files by array name.

    Raises:
        DataError: pooch is not installed, or no mirror gives all files with the right checksums.
    """
    try:
        import pooch
    except ImportError:
        raise DataError(
            "downloading needs pooch, which is not installed: pip install 'de_plugin[examples]'"
        ) from None
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        for mirror in mirrors:
            try:
                for field, name in IDX_FILES.items():
                    pooch.retrieve(
                        f"{mirror}{name}.gz",
                        known_hash=f"sha256:{sha256[field]}",
                        fname=f"{name}.gz",
                        path=folder,
                        downloader=pooch.HTTPDownloader(timeout=_TIMEOUT),
                    )
            except (OSError, ValueError) as error:  # no connection, or a wrong checksum
                failures.append(f"{mirror} ({type(error).__name__}: {str(error)[:200]})")
                continue
            return read_path(Path(folder))
    raise DataError(f"no mirror gave the files: {'; '.join(failures)}")
