"""A search for levels in a process of its own: one of two ranks, which can be stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from de_plugin.prune.recover import Distillation
from tests.quantize.small import pruned, quick


def main() -> None:
    """Run it, and write the network."""
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--stop", type=int, default=0, help="at so many points")
    parser.add_argument("--bits", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{options.store}", rank=options.rank, world_size=2)
    told: list[Any] = []

    def tell(point: Any) -> None:
        told.append(point)
        if len(told) == options.stop:
            raise KeyboardInterrupt

    model = pruned()
    training = Distillation(steps=30, lr=1e-3, batch_size=64, validate_every=5)
    quick(model, bits=options.bits, recovery=training, checkpoint=options.checkpoint, progress=tell)
    save_file(model.state_dict(), options.output)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
