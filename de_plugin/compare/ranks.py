"""Rows shared out over the processes of `torch.distributed`: each measures its own, all get to know all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from de_plugin.assess import ranks
from de_plugin.errors import RankError


class _Nobody:
    """Stands for `torch.distributed` where there are no other processes."""

    @staticmethod
    def is_available() -> bool:
        return False


@contextmanager
def alone() -> Iterator[None]:
    """Let this process search for itself: the others are busy with other rows."""
    names = vars(ranks)
    shared = names["dist"]
    names["dist"] = _Nobody
    try:
        yield
    finally:
        names["dist"] = shared


def place() -> tuple[int, int]:
    """Return the number of this process, and how many there are."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(mine: Any) -> list[Any]:
    """Return what each process has, in their order.

    Raises:
        RankError: a process has died.
    """
    _, world = place()
    if world == 1:
        return [mine]
    every: list[Any] = [None] * world
    try:
        dist.all_gather_object(every, mine)
    except RuntimeError as error:
        raise RankError(
            f"a rank has died or can't be reached ({str(error).splitlines()[0]}); start all of them again "
            "with the same results file: what is in it is not measured again"
        ) from error
    return every
