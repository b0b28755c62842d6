"""A small comparison as a process of its own, for tests that run several of it.

Usage: a_comparison.py OUT --store FILE --rank N --world N [--path FILE] [--budget N]
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from de_plugin import Comparison, compare
from de_plugin.errors import DEError
from tests.compare.small import BROKEN, data, network

METHODS = ("de", "nest(magnitude, de)", "random", BROKEN)


def found(path: Path | None = None, budget: int = 40) -> Comparison:
    """Compare a search, a hybrid, something drawn and something that fails."""
    return compare(
        network(), data(), hosts=(), methods=METHODS, sparsities=(0.5, 0.8), budget=budget, path=path
    )


def main() -> None:
    """Compare as one of several processes, and write what this one has."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--world", type=int, required=True)
    parser.add_argument("--path", type=Path)
    parser.add_argument("--budget", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=options.world
    )
    try:
        found(options.path, options.budget).save(options.out)
    except DEError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)  # once a peer is gone, gloo's threads may abort an orderly exit
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
