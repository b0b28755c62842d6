"""How small LeNet-300-100 and LeNet-5 become, every byte of the file counted, on MNIST and FashionMNIST.

"post-training" takes no gradient step, and labels only to count errors: masks are chosen by measured
divergence, survivors are updated in closed form, levels make good each other's errors; 5,000 training images
that the search does not see tell how small the file may become: it errs on at most `--points` percent more
of them than the original. "recovered" trains between the cycles and after the levels, with labels, and fits a
file of the size asked for. All choices see training images only. The error is that of the file as it is
loaded, on the 10,000 test images, looked at once. Rows that the file has already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import de_plugin
from de_plugin import DirectedEvolution, Schedule, Swaps
from de_plugin.encode.files import whole
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import RateSearch
from de_plugin.zoo import DATA, Dataset, accuracy, teacher

HELD_OUT = 5000
SEED = 0xF11E
SPARSITIES = {
    ("lenet300", "post-training"): (0.7,),
    ("lenet5", "post-training"): (0.8,),
    ("lenet300", "recovered"): (0.97, 0.98),
    ("lenet5", "recovered"): (0.994,),
}


TARGETS = {"lenet300": 8500, "lenet5": 2800}
"""Bytes of a recovered network's file."""


BRIEF = DirectedEvolution(population=12, generations=1, samples=1000, swaps=Swaps(rounds=0))
"""Where images take their time, and where training follows."""
SAMPLES = {("lenet5", "post-training"): 20_000}
"""Training images that a recipe reads; all where nothing is said."""


def options(network: str, recipe: str) -> dict[str, Any]:
    """Return what a recipe gives to `de_plugin.compress`."""
    if recipe == "post-training":
        search = RateSearch(generations=3, population=6)
        pruning: dict[str, Any] = {"schedule": Schedule(5, start=0.5), "recovery": "obs"}
        if network == "lenet5":
            pruning = {"schedule": Schedule(4, start=0.5), "recovery": "leastsquares", "criterion": BRIEF}
        return {
            "pruning": pruning,
            "quantizing": {"search": search, "rounding": "compensated", "codebooks": ()},
        }
    search = RateSearch(generations=6, population=8)
    between = Distillation(steps=500, lr=2e-3, labels=0.5, batch_size=128, validate_every=250)
    last = replace(between, steps=16000, lr=3e-3, validate_every=400)
    return {
        "pruning": {
            "criterion": BRIEF,
            "schedule": Schedule(15, start=0.6),
            "recovery": between,
            "finish": last,
        },
        "quantizing": {
            "search": search,
            "levels": None,
            "recovery": replace(between, steps=4000, lr=1e-3, validate_every=200),
        },
    }


def steps_of(network: str, recipe: str) -> int:
    """Return the gradient steps of a recipe: between cycles, at their end, and after the levels, twice."""
    given = options(network, recipe)
    pruning, levels = given["pruning"], given["quantizing"].get("recovery")
    if not isinstance(levels, Distillation):
        return 0
    between = pruning["schedule"].cycles * pruning["recovery"].steps
    return int(between + pruning["finish"].steps + 2 * levels.steps)


def row(network: str, data: Dataset, recipe: str, points: float) -> dict[str, Any]:
    """Compress once and measure the file."""
    original = teacher(network, data).eval()
    order = torch.randperm(len(data.train_inputs), generator=torch.Generator().manual_seed(SEED))
    mine, held = order[HELD_OUT:], order[:HELD_OUT]
    images, labels = data.train_inputs[held], data.train_labels[held]

    def error(model: nn.Module) -> float:
        return 100.0 - accuracy(model, images, labels)

    goal: dict[str, Any] = {"target_bytes": TARGETS[network]}
    if recipe == "post-training":
        goal = {"max_loss": points, "metric": error}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.de.safetensors"
        found = de_plugin.compress(
            copy.deepcopy(original),
            (data.train_inputs[mine], data.train_labels[mine]),
            path,
            SPARSITIES[network, recipe],
            batch_size=2048,
            samples=SAMPLES.get((network, recipe)),
            **goal,
            **options(network, recipe),
        )
        seconds = time.monotonic() - started
        loaded = copy.deepcopy(original)
        de_plugin.load(path, into=loaded)
        size = path.stat().st_size
    weights = [x for x in found.file.layers if x.kind == "quantized" and len(x.shape) > 1]
    survivors = sum(x.nonzero for x in weights)
    return {
        "network": network,
        "data": data.name,
        "recipe": recipe,
        "labels": recipe != "post-training",
        "gradient_steps": steps_of(network, recipe),
        "sparsity": 1 - survivors / sum(x.elements for x in weights),
        "bits": 8 * sum(x.bytes for x in weights) / max(1, survivors),
        "bytes": size,
        "ratio": found.ratio,
        "error_percent": 100.0 - accuracy(loaded, data.test_inputs, data.test_labels),
        "dense_error_percent": 100.0 - accuracy(original, data.test_inputs, data.test_labels),
        "seconds": seconds,
        "tried": found.to_dict()["tried"],
    }


def main() -> None:
    """Measure every network, data set and recipe, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="read where it exists, and written")
    parser.add_argument("--networks", nargs="+", default=["lenet300", "lenet5"], choices=list(TARGETS))
    parser.add_argument("--data", nargs="+", default=sorted(DATA, reverse=True), choices=sorted(DATA))
    parser.add_argument(
        "--recipes", nargs="+", default=["post-training", "recovered"], choices=["post-training", "recovered"]
    )
    parser.add_argument("--points", type=float, default=0.5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    document = opened(given.json, given.points)
    rows: list[dict[str, Any]] = document["rows"]
    for name, network, recipe in itertools.product(given.data, given.networks, given.recipes):
        if any((r["data"], r["network"], r["recipe"]) == (name, network, recipe) for r in rows):
            continue
        rows.append(row(network, DATA[name](), recipe, given.points))
        print(rows[-1], flush=True)
        with whole(given.json) as draft:
            draft.write_text(json.dumps(document, indent=1))


def opened(path: Path, points: float) -> dict[str, Any]:
    """Return what the file holds, or a new document.

    Raises:
        SystemExit: its rows were measured with other versions, or within another error.
    """
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "de_plugin": de_plugin.__version__,
    }
    fresh: dict[str, Any] = {"versions": versions, "points": points, "rows": []}
    if not path.exists():
        return fresh
    old: dict[str, Any] = json.loads(path.read_text())
    for name in ("versions", "points"):
        if old.get(name) != fresh[name]:
            raise SystemExit(
                f"--json {path}: its {name} is {old.get(name)}, here it is {fresh[name]}; give another file"
            )
    return old


if __name__ == "__main__":
    main()
