"""Running blocks of documentation as a reader would who pastes each alone into a fresh interpreter."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
HOSTS = {"torch_pruning": "torch-pruning", "nni": "nni", "neural_compressor": "neural-compressor"}
"""The extra that installs each optional package, by the name under which it is imported."""

_FENCE = re.compile(r"^```(\w+)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LIMIT = 120
"""Seconds after which a block counts as hanging."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        """Return where it is."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def missing(self) -> str:
        """Return the extra that the block needs and that is not installed, or nothing."""
        named = [extra for module, extra in HOSTS.items() if re.search(rf"\b{module}\b", self.code)]
        lacking = [e for e in named if importlib.util.find_spec(e.replace("-", "_")) is None]
        return ", ".join(lacking)


def blocks(*languages: str) -> Iterator[Block]:
    """Yield the blocks of the README and of all pages in some languages."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _FENCE.finditer(text):
            if found[1] in languages:
                yield Block(page, text.count("\n", 0, found.start()) + 2, found[1], found[2])


def pasted(block: Block, folder: Path) -> str:
    """Run a block in a process and a folder of its own; return its traceback, or nothing where all went well.

    The processes come from one that has imported torch and de_plugin: what takes seconds is done once. Names
    are not handed on, so that a block without its imports fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "de_plugin", "de_plugin.testing", "tests.pasting"])
    told = folder / "traceback"
    process = context.Process(target=_run, args=(block.code, str(block), str(folder), str(told)))
    process.start()
    process.join(_LIMIT)
    if process.exitcode is None:
        process.kill()
        process.join()
        return f"{block}: still running after {_LIMIT} s"
    text = told.read_text(encoding="utf-8") if told.exists() else ""
    return text or (f"{block}: exit code {process.exitcode}" if process.exitcode else "")


def _run(code: str, name: str, folder: str, told: str) -> None:
    """Run code as a script would be run; a `DEWarning` counts as an error, for nothing asks for one."""
    import torch

    from de_plugin import DEWarning

    torch.set_num_threads(1)
    os.chdir(folder)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    warnings.simplefilter("ignore")  # hosts are older than the torch they run on
    warnings.simplefilter("error", DEWarning)
    space: dict[str, Any] = {"__name__": "__main__"}
    try:
        exec(compile(code, name, "exec"), space)
    except BaseException:
        Path(told).write_text(traceback.format_exc(), encoding="utf-8")
        sys.exit(1)
