"""Rows shared out over the processes of `torch.distributed`: each measures its own, all get to know all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from de_plugin.assess.ranks import Ranks
from de_plugin.errors import RankError


def gathered(mine: Any) -> list[Any]:
    """Return what each process has, in their order.

    Raises:
        RankError: a process has died.
    """
    world = Ranks(torch.device("cpu")).world
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
