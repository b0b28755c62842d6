"""Files of measured rows: what they were measured with, and how a run goes on with those that there are."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import de_plugin
from de_plugin.encode.files import whole


def versions(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the versions that rows depend on.

    Args:
        more: versions of other packages.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "de_plugin": de_plugin.__version__,
        **(more or {}),
    }


def opened(path: Path, fresh: dict[str, Any], alike: tuple[str, ...]) -> dict[str, Any]:
    """Return the document in a file, or a fresh one where there is none.

    Args:
        path: of the file.
        fresh: a document without rows.
        alike: the entries that must be as in `fresh`.

    Raises:
        SystemExit: an entry is another; rows of both could not be compared.
    """
    if not path.exists():
        return fresh
    old: dict[str, Any] = json.loads(path.read_text())
    for name in alike:
        if old.get(name) != fresh[name]:
            raise SystemExit(
                f"--json {path}: its {name} is {old.get(name)}, here it is {fresh[name]}; rows of "
                "both cannot be compared: give another file"
            )
    return old


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Write a document whole or not at all."""
    with whole(path) as draft:
        draft.write_text(json.dumps(document, indent=1))
