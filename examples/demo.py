"""Prune a real MNIST network with Directed Evolution and every other criterion, and compare them."""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import de_plugin
from de_plugin.zoo import accuracy, mnist, teacher

CRITERIA = ("random", "magnitude", "activation", "taylor", "fisher", "obs")


def main() -> None:
    """Print the table and save the sparsest network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mlpnet", help="a network of the zoo")
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.90, 0.95, 0.98])
    parser.add_argument("--evaluations", type=int, default=3000, help="budget of every method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo-pruned.safetensors"))
    options = parser.parse_args()
    torch.set_num_threads(2)
    console = Console()
    data = mnist()
    console.print(f"teacher: {options.model} on MNIST (trained on first use, then cached)")
    original = teacher(options.model, data).eval()
    dense = accuracy(original, data.test_inputs, data.test_labels)
    weights = sum(p.numel() for p in original.parameters())
    console.print(f"{weights:,} parameters, test accuracy {dense:.2f} %\n")
    table = Table("sparsity", "criterion", "accuracy %", "divergence", "evaluations", "seconds")
    calibration = (data.train_inputs[:10_000], data.train_labels[:10_000])
    for sparsity in options.sparsity:
        for name in (*CRITERIA, "de"):
            model = copy.deepcopy(original)
            started = time.monotonic()
            report = de_plugin.prune(
                model,
                calibration,
                sparsity,
                name,
                schedule=10,
                budget=de_plugin.Budget(evaluations=options.evaluations),
                seed=options.seed,
            )
            found = accuracy(model, data.test_inputs, data.test_labels)
            table.add_row(
                f"{sparsity:.0%}",
                f"[bold]{name}[/bold]" if name == "de" else name,
                f"{found:.2f}",
                f"{report.divergence:.4f}",
                f"{report.evaluations:,}",
                f"{time.monotonic() - started:.1f}",
            )
            if name == "de" and sparsity == max(options.sparsity):
                save_file(
                    {k: v.detach().clone().contiguous() for k, v in model.state_dict().items()},
                    options.output,
                )
        table.add_section()
    console.print(table)
    console.print(
        "masks only: no weight was updated, no label was used. divergence: KL to the original on "
        f"held-back data.\nsaved {options.output} ({max(options.sparsity):.0%} sparse, Directed Evolution)"
    )


if __name__ == "__main__":
    main()
