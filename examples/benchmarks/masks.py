"""Masks on MLPNet/MNIST: Directed Evolution and the built-in criteria at the sparsities of the field's table.

Calibration is the 60,000 training images; the test images are looked at once a row, at its end. All
methods run 10 geometric cycles from 0.8 of the target up. Rows do not depend on each other. The settings
were chosen by `masks_settings.py` on training images that were held back there.
"""

from __future__ import annotations

import argparse
import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rows import versions, write

import de_plugin
from de_plugin import DirectedEvolution, Schedule, Swaps
from de_plugin.prune.recover import Distillation
from de_plugin.zoo import accuracy, load_checkpoint, mlpnet, mnist

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class Method:
    """One row of the table: a criterion with what follows a cut."""

    name: str
    criterion: Any
    recovery: Any = None
    finish: Any = None
    labels: bool = False


def methods() -> list[Method]:
    """Return the methods that are compared."""
    search = DirectedEvolution(generations=3, swaps=Swaps(rounds=40, samples=3000, patience=5))
    brief = DirectedEvolution(generations=2, swaps=Swaps(rounds=4, patience=2))
    between = Distillation(steps=200)
    last = Distillation(steps=5000, lr=2e-3, batch_size=512, validate_every=250)
    taught = 0.8
    return [
        Method("magnitude", "magnitude"),
        Method("wanda", "wanda"),
        Method("taylor", "taylor"),
        Method("fisher", "fisher"),
        Method("obs", "obs"),
        Method("de", search),
        Method("de+recovery", brief, between, last),
        Method(
            "de+recovery+labels",
            brief,
            replace(between, labels=taught, lr=2e-3),
            replace(last, labels=taught, lr=4e-3),
            labels=True,
        ),
    ]


def main() -> None:
    """Run every method at every sparsity and seed and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=list(SPARSITIES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=None)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = mnist()
    dense = mlpnet()
    load_checkpoint(dense, options.checkpoint)
    dense.eval()
    rows: list[dict[str, Any]] = []
    for method in methods():
        if options.methods and method.name not in options.methods:
            continue
        for sparsity in options.sparsity:
            for seed in options.seeds:
                model = copy.deepcopy(dense)
                started = time.monotonic()
                report = de_plugin.prune(
                    model,
                    (data.train_inputs, data.train_labels),
                    sparsity,
                    method.criterion,
                    schedule=Schedule(10, start=0.8 * sparsity),
                    recovery=method.recovery,
                    finish=method.finish,
                    seed=seed,
                )
                seconds = time.monotonic() - started
                rows.append(
                    {
                        "method": method.name,
                        "updates_weights": method.recovery is not None,
                        "labels": method.labels,
                        "sparsity": sparsity,
                        "accuracy": accuracy(model, data.test_inputs, data.test_labels),
                        "divergence": report.divergence,
                        "evaluations": report.evaluations,
                        "seconds": seconds,
                        "seed": seed,
                    }
                )
                print(rows[-1], flush=True)
                document = {
                    "network": "MLPNet 784-40-20-10",
                    "dense_accuracy": accuracy(dense, data.test_inputs, data.test_labels),
                    "split": "calibration: 60,000 training images; accuracy: 10,000 test images",
                    "versions": versions(),
                    "threads": options.threads,
                    "rows": rows,
                }
                write(options.json, document)


if __name__ == "__main__":
    main()
