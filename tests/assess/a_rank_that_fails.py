"""One of two processes, whose model fails on the second; told of the error, each prints its kind."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from de_plugin import Activation, Problem
from de_plugin.assess.candidates import Flipped, Made
from de_plugin.assess.serial import Serial


def main(store: str, rank: int, what: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    armed = False

    def forward(student: nn.Module, inputs: Any) -> Tensor:
        if armed and rank == 1:
            raise OSError("the disk is gone")
        out: Tensor = student(inputs)
        return out

    way = "serial" if what == "activation" else "auto"  # the one has batches for both ranks
    problem = Problem(model, torch.randn(64, 6), forward=forward, holdout=0, batch_size=8, evaluate=way)
    flips = Flipped(problem.kept, tuple(torch.tensor([n]) for n in range(4)))
    armed = True

    def mask(number: int) -> Tensor:
        if rank == 1:
            raise OSError("the disk is gone")
        return problem.kept

    try:
        if what == "side by side":
            problem.assess(flips, problem.search)
        elif what == "one by one":
            Serial(problem)(flips, problem.search)
        elif what == "activation":
            Activation()(problem, problem.eligible, 4)
        else:
            problem.assess(Made(mask, (0, 1, 2, 3), problem.units.count), problem.search)
    except Exception as error:
        os.write(1, f"{type(error).__name__}: {error}\n".encode())
    os._exit(0)  # a process that knows of no error would wait for the other


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
