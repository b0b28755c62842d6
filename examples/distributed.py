"""One search on several processes: torchrun --nproc-per-node 2 examples/distributed.py; it runs alone too."""

import os
import zlib

import torch
import torch.distributed as dist

import de_plugin
from de_plugin import DirectedEvolution
from de_plugin.zoo import accuracy, mnist, teacher

SAMPLES = 1000


def main() -> None:
    """Prune on all ranks, which share the measuring; any number of them chooses the same weights."""
    torch.set_num_threads(1)  # the same number on each rank, or bits differ
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    data = mnist()
    if rank > 0:
        dist.barrier()  # the first rank trains what is not in the cache
    model = teacher("mlpnet", data).eval()
    if rank == 0 and dist.is_initialized():
        dist.barrier()
    search = DirectedEvolution.brief()
    report = de_plugin.prune(model, data.train_inputs[:SAMPLES], 0.9, search, schedule=2)
    if rank == 0:
        chosen = zlib.crc32(b"".join(mask.numpy().tobytes() for mask in report.masks.values()))
        percent = accuracy(model, data.test_inputs, data.test_labels)
        print(f"{report.sparsity:.1%} zeroed, {percent:.2f} %, mask {chosen:08x}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
