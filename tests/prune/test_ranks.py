"""Several processes choose what one chooses, bit for bit; one that dies is told, the rest goes on later."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.prune.a_search import search

SCRIPT = Path(__file__).with_name("a_search.py")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def expected(one_thread: None) -> dict[str, Tensor]:
    return dict(search()[0].state_dict())


def start(folder: Path, rank: int, world: int, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(SCRIPT), str(folder / f"{rank}.safetensors"), *more]
    command += ["--store", str(folder / "store"), "--rank", str(rank), "--world", str(world)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_ranks_gives_the_same_network(
    world: int, expected: dict[str, Tensor], tmp_path: Path
) -> None:
    processes = [start(tmp_path, rank, world) for rank in range(world)]
    errors = [p.communicate(timeout=300)[1] for p in processes]
    assert [p.returncode for p in processes] == [0] * world, errors
    for rank in range(world):
        found = load_file(tmp_path / f"{rank}.safetensors")
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_rank_that_dies_is_an_error_and_the_search_can_go_on(
    expected: dict[str, Tensor], tmp_path: Path
) -> None:
    kept = ("--checkpoint", str(tmp_path / "kept"))
    first = start(tmp_path, 0, 2, *kept)
    second = start(tmp_path, 1, 2, *kept, "--die-at", "100")
    message = first.communicate(timeout=300)[1]
    second.communicate(timeout=300)
    assert second.returncode == -9
    assert first.returncode == 1
    assert "RankError: a rank has died" in message
    assert "checkpoint=" in message
    model, _, _ = search(tmp_path / "kept")
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.items())


@pytest.mark.parametrize("case", ["seed", "checkpoint"])
def test_ranks_that_were_asked_different_things_are_refused(case: str, tmp_path: Path) -> None:
    more: list[tuple[str, ...]] = [(), ("--seed", "1")]
    what = "arguments"
    if case == "checkpoint":
        search(tmp_path / "kept")
        more = [("--checkpoint", str(tmp_path / "kept")), ("--checkpoint", str(tmp_path / "other"))]
        what = "checkpoint"
    processes = [start(tmp_path, rank, 2, *more[rank]) for rank in range(2)]
    errors = [p.communicate(timeout=300)[1] for p in processes]
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 1
        assert f"ArgumentError: {what}: rank(s) [1] hold(s) something else" in error
