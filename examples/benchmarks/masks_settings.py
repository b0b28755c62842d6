"""How the settings of `masks.py` were chosen: on training images alone, never on the test images.

Calibration is 50,000 of the training images; the accuracy that decides is measured on the 10,000 others.
Every variant changes one thing of the base. The rows, with what they cost, go to a JSON file.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import de_plugin
from de_plugin import DirectedEvolution, Schedule, Swaps
from de_plugin.prune.recover import Distillation
from de_plugin.zoo import accuracy, load_checkpoint, mlpnet, mnist


@dataclass(frozen=True)
class Variant:
    """One setting under trial."""

    group: str
    name: str
    search: DirectedEvolution
    cycles: int = 10
    start: float = 0.8
    between: Distillation | None = None
    finish: Distillation | None = None


def variants() -> Iterator[Variant]:
    """Yield what is tried, by group: masks alone, recovery without labels, and with them."""
    swaps = Swaps(rounds=40, samples=3000, patience=5)
    search = DirectedEvolution(generations=3, swaps=swaps)
    yield Variant("masks", "base", search)
    for name, other in (
        ("rounds=80", replace(swaps, rounds=80, patience=10)),
        ("window=256", replace(swaps, window=256)),
        ("candidates=48", replace(swaps, candidates=48)),
        ("candidates=48 samples=6000", replace(swaps, candidates=48, samples=6000)),
    ):
        yield Variant("masks", name, replace(search, swaps=other))
    yield Variant("masks", "start=0.5", search, start=0.5)
    brief = DirectedEvolution(generations=2, swaps=Swaps(rounds=4, patience=2))
    between = Distillation(steps=200)
    last = Distillation(steps=5000, lr=2e-3, batch_size=512, validate_every=250)
    for name, finish in (
        ("base", last),
        ("lr=1e-3", replace(last, lr=1e-3)),
        ("steps=10000", replace(last, steps=10000)),
    ):
        yield Variant("recovery", name, brief, between=between, finish=finish)
    for labels in (0.6, 0.8, 1.0):
        for lr in (1e-3, 4e-3):
            first = replace(between, labels=labels, lr=2e-3)
            yield Variant(
                "recovery+labels",
                f"labels={labels} lr={lr}",
                brief,
                between=first,
                finish=replace(last, labels=labels, lr=lr),
            )


def main() -> None:
    """Try every variant at every sparsity and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--groups", nargs="+", default=["masks", "recovery", "recovery+labels"])
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.98])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = mnist()
    order = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(123))
    mine, others = order[:50_000], order[50_000:]
    calibration = data.train_inputs[mine], data.train_labels[mine]
    held_back = data.train_inputs[others], data.train_labels[others]
    dense = mlpnet()
    load_checkpoint(dense, options.checkpoint)
    dense.eval()
    rows: list[dict[str, Any]] = []
    for variant in variants():
        if variant.group not in options.groups:
            continue
        for sparsity in options.sparsity:
            found = []
            for seed in options.seeds:
                model = copy.deepcopy(dense)
                report = de_plugin.prune(
                    model,
                    calibration,
                    sparsity,
                    variant.search,
                    schedule=Schedule(variant.cycles, start=variant.start * sparsity),
                    recovery=variant.between,
                    finish=variant.finish,
                    seed=seed,
                )
                found.append(
                    {
                        "accuracy": accuracy(model, *held_back),
                        "divergence": report.divergence,
                        "evaluations": report.evaluations,
                        "seconds": report.seconds,
                    }
                )
            mean = {key: statistics.mean(run[key] for run in found) for key in found[0]}
            rows.append({"group": variant.group, "variant": variant.name, "sparsity": sparsity, **mean})
            print(rows[-1], flush=True)
            options.json.write_text(json.dumps({"seeds": options.seeds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
