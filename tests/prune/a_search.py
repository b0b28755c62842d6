"""A small search as a process of its own, for tests that kill it or run several of it.

Usage: a_search.py OUT [--checkpoint DIR] [--die-at CALL] [--seed N] [--store FILE --rank N --world N]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Report, Schedule, Swaps
from de_plugin.errors import DEError
from de_plugin.evolve import Halving
from de_plugin.prune.recover import Distillation, Hints

SEARCH = DirectedEvolution(
    population=6,
    generations=2,
    samples=64,
    halving=Halving(2),
    swaps=Swaps(rounds=3, candidates=8, gradient_samples=48, window=40),
)


def network() -> nn.Module:
    """Return a convolution and two linear layers, the same each time."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 12),
        nn.ReLU(),
        nn.Linear(12, 5),
    ).eval()


class Calls:
    """Calls the model, counts, and dies at one of the calls."""

    def __init__(self, die_at: int) -> None:
        self.count = 0
        self.die_at = die_at

    def __call__(self, model: nn.Module, inputs: Tensor) -> Any:
        """Call the model once more."""
        self.count += 1
        if self.count == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return model(inputs)


def jittered(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Return inputs a little apart from those that are given."""
    return inputs + 0.1 * torch.randn(inputs.shape, generator=generator)


def search(checkpoint: Path | None = None, die_at: int = 0, seed: int = 0) -> tuple[nn.Module, Report, int]:
    """Prune the network in three cycles, each followed by a short distillation; count the calls."""
    forward = Calls(die_at)

    model = network()
    report = de_plugin.prune(
        model,
        torch.randn(160, 1, 6, 6, generator=torch.Generator().manual_seed(1)),
        0.8,
        SEARCH,
        schedule=Schedule(3),
        recovery=Distillation(steps=5, validate_every=5, hints=Hints(("1",)), augment=jittered),
        finish="bias",
        batch_size=32,
        forward=forward,
        seed=seed,
        checkpoint=checkpoint,
    )
    return model, report, forward.count


def main() -> None:
    """Search and write what is left of the network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--die-at", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--world", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.store is not None:
        dist.init_process_group(
            "gloo", init_method=f"file://{options.store}", rank=options.rank, world_size=options.world
        )
    try:
        model, _, _ = search(options.checkpoint, options.die_at, options.seed)
    except DEError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.stderr.flush()
        os._exit(1)  # once a peer is gone, gloo's threads may abort an orderly exit
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, options.out)
    if options.store is not None:
        dist.barrier()  # nobody leaves while another still reads
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
