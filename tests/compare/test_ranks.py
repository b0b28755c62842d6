"""Two processes share the rows and know all of them; their numbers are those of one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from de_plugin import Comparison
from de_plugin.compare import Row
from tests.compare.a_comparison import found

SCRIPT = Path(__file__).with_name("a_comparison.py")
ROOT = Path(__file__).parents[2]


def start(folder: Path, rank: int, world: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(folder / f"{rank}.json"), *more]
    command += ["--store", str(folder / "store"), "--rank", str(rank), "--world", str(world)]
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": str(rank + 1)}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def timeless(comparison: Comparison) -> list[Row]:
    return [replace(row, seconds=0.0) for row in comparison.rows]


@pytest.fixture(scope="module")
def expected() -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return timeless(found())
    finally:
        torch.set_num_threads(threads)


def test_two_ranks_find_what_one_finds(expected: list[Row], tmp_path: Path) -> None:
    path = ("--path", str(tmp_path / "rows.json"))
    processes = [start(tmp_path, rank, 2, *path) for rank in range(2)]
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], errors
    for name in ("0", "1", "rows"):
        assert timeless(Comparison.from_json(tmp_path / f"{name}.json")) == expected
    assert sum(row.failed for row in expected) == 2


def test_ranks_that_were_asked_different_things_are_refused(tmp_path: Path) -> None:
    processes = [start(tmp_path, rank, 2, "--budget", str(40 + rank)) for rank in range(2)]
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert [p.returncode for p in processes] == [1, 1]
    assert all("rank(s) [1] were asked something else" in error for error in errors), errors
