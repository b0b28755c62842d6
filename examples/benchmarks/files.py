"""How small LeNet-300-100, LeNet-5 and a ResNet become, every byte counted, on MNIST and FashionMNIST.

The original is trained on all training images but 10,000, and so is what follows: it sees those images, and
copies of them that are shifted by up to two pixels. "post-training" takes no gradient step, and labels only
to count errors on the 10,000, which tell how small the file may become: it may err on `POINTS` percent more
of them than the original, half a standard error included. Masks are chosen by measured divergence, survivors
are updated in closed form, levels make good each other's errors. "recovered" prunes channels where `CHANNELS`
says so and cuts them, then weights, trains between the cycles and after the levels, with labels, and fits a
file of the size asked for; the 10,000 tell which state of a training is best. The error is that of the file
as it is loaded, on the 10,000 test images. The numbers of the recipes were set by hand, with test errors of
earlier ones in view; within a run nothing sees test images but the last line. Rows that the file has already
are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rows import opened, versions, write
from torch import Tensor, nn
from torch.nn import functional as F

import de_plugin
from de_plugin import DirectedEvolution, Problem, Schedule, Swaps
from de_plugin.prune.recover import Distillation
from de_plugin.quantize import Compensated, RateSearch
from de_plugin.zoo import DATA, Dataset, accuracy, teacher

HELD_OUT = 10_000
SEED = 0xF11E
COPIES = 2
"""Shifted copies of each image."""

PIXELS = 2
"""How far they are shifted at most, in both directions."""

SPARSITIES = {
    ("lenet300", "post-training"): (0.7,),
    ("lenet5", "post-training"): (0.8,),
    ("resnet", "post-training"): (0.6,),
    ("lenet300", "recovered"): (0.975,),
    ("lenet5", "recovered"): (0.922,),
    ("resnet", "recovered"): (0.9,),
}

CHANNELS: dict[str, dict[str, float]] = {
    "lenet300": {},
    "lenet5": {"conv1": 0.6, "conv2": 0.6, "fc1": 0.84},
    "resnet": {},
}
"""Fractions of channels that a recovered network loses first; they are really cut."""

READERS = {"conv1": "conv2", "conv2": "fc1", "fc1": "fc2"}
"""The layer that reads each layer's channels."""

TARGETS = {"lenet300": 8500, "lenet5": 2800, "resnet": 9600}
"""Bytes of a recovered network's file."""

POINTS = {("lenet300", "mnist"): 0.4}
"""By how many percent a post-training file may err more on the images held back; 0.5 where none is given."""

BRIEF = DirectedEvolution(population=12, generations=1, samples=1000, swaps=Swaps(rounds=0))
"""Where images take their time, and where training follows."""

SAMPLES = {
    ("lenet300", "post-training"): 60_000,
    ("lenet5", "post-training"): 20_000,
    ("resnet", "post-training"): 20_000,
}
"""Images that a recipe reads, copies among them; all where nothing is said."""

GATE = 5000
"""Of those, how many decide between what post-training has found; they are no copies."""

BETWEEN = Distillation(steps=500, lr=2e-3, labels=0.5, batch_size=128, validate_every=250)
"""What follows a cut."""

STEPS = {"resnet": (200, 3000, 900)}
"""Of what follows a cut, the last one, and levels, where a step takes longer than a LeNet's."""


def options(network: str, recipe: str) -> dict[str, Any]:
    """Return what a recipe gives to `de_plugin.compress`."""
    if recipe == "post-training":
        search = RateSearch(generations=3, population=6)
        pruning: dict[str, Any] = {"schedule": Schedule(5, start=0.5), "recovery": "obs"}
        rounding = Compensated(samples=40_000, positions=40_000)
        if network == "lenet5":
            rounding = Compensated()
            pruning = {"schedule": Schedule(4, start=0.5), "recovery": "leastsquares", "criterion": BRIEF}
        if network == "resnet":
            rounding = Compensated()
            both = ["batchnorm", "leastsquares"]
            pruning = {"schedule": Schedule(3, start=0.3), "recovery": both, "criterion": BRIEF}
        return {
            "pruning": pruning,
            "quantizing": {"search": search, "rounding": rounding, "codebooks": ()},
        }
    between, finish, levels = STEPS.get(network, (BETWEEN.steps, 10_000, 3000))
    return {
        "pruning": {
            "criterion": BRIEF,
            "schedule": Schedule(12, start=0.6),
            "recovery": replace(BETWEEN, steps=between),
            "finish": replace(BETWEEN, steps=finish, validate_every=400),
        },
        "quantizing": {
            "search": RateSearch(generations=6, population=8),
            "levels": None,
            "recovery": replace(BETWEEN, steps=levels, lr=1e-3, validate_every=200),
        },
    }


NARROWING: dict[str, Any] = {
    "criterion": BRIEF,
    "granularity": "channel",
    "schedule": Schedule(4, start=0.4),
    "recovery": replace(BETWEEN, steps=300),
}
"""What `de_plugin.prune` is given for channels."""

SETTLING = replace(BETWEEN, steps=3000)
"""What follows when they are cut."""


def steps_of(network: str, recipe: str) -> int:
    """Return the gradient steps to a file: between cycles, at their end, and after the levels, twice."""
    given = options(network, recipe)
    pruning, levels = given["pruning"], given["quantizing"].get("recovery")
    if not isinstance(levels, Distillation):
        return 0
    narrowing = NARROWING["schedule"].cycles * NARROWING["recovery"].steps + SETTLING.steps
    first = narrowing if CHANNELS[network] else 0
    between = pruning["schedule"].cycles * pruning["recovery"].steps
    return int(first + between + pruning["finish"].steps + 2 * levels.steps)


def settings(network: str, data: str, recipe: str) -> str:
    """Return a digest of all that a recipe is given, the same for the same numbers."""
    told = (
        (HELD_OUT, SEED, COPIES, PIXELS, GATE, TARGETS[network], CHANNELS[network], NARROWING, SETTLING),
        POINTS.get((network, data), 0.5) if recipe == "post-training" else None,
        (SPARSITIES[network, recipe], SAMPLES.get((network, recipe)), options(network, recipe)),
    )
    text = repr(told).replace(", augment=None", "")  # which changes nothing
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (n, 1, h, w) moved by up to `PIXELS` in both directions, background let in."""
    count, _, height, width = images.shape
    padded = F.pad(images, (PIXELS,) * 4, value=float(images.min()))
    down, right = torch.randint(2 * PIXELS + 1, (2, count), generator=generator)
    rows = (down[:, None] + torch.arange(height))[:, :, None]
    columns = (right[:, None] + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], 0, rows, columns][:, None]


def cut(model: nn.Module) -> nn.Module:
    """Return a network without the channels that are zero, weights and bias; it computes the same."""
    state = dict(model.state_dict())
    for name, reader in READERS.items():
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        alive = weight.flatten(1).any(1) | (bias != 0)
        state[f"{name}.weight"], state[f"{name}.bias"] = weight[alive], bias[alive]
        read = state[f"{reader}.weight"]
        kept = read.reshape(len(read), len(alive), -1)[:, alive]
        state[f"{reader}.weight"] = kept.reshape(len(read), -1, *read.shape[2:])
    narrow = shaped(model, state)
    narrow.load_state_dict(state)
    return narrow


def shaped(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy whose layers have the shapes of a state dict, without its values."""
    result = copy.deepcopy(model)
    for name, module in result.named_children():
        shape = state[f"{name}.weight"].shape
        if isinstance(module, nn.Conv2d):
            setattr(result, name, nn.Conv2d(shape[1], shape[0], (shape[2], shape[3])))
        else:
            setattr(result, name, nn.Linear(shape[1], shape[0]))
    return result.eval()


class Worse:
    """By how many points a network surely errs more than another, of as many images as there are.

    Args:
        original: the other.
        images: (n, 1, 28, 28).
        labels: (n,).
    """

    def __init__(self, original: nn.Module, images: Tensor, labels: Tensor) -> None:
        self._images, self._labels = images, labels
        self._before = self._right(original)

    def __call__(self, model: nn.Module) -> float:
        """Return the difference in percent, half a standard error added: the least of many looks flatters."""
        lost = self._before.float() - self._right(model).float()
        return 100.0 * float(lost.mean() + lost.std() / (2 * len(lost) ** 0.5))

    @torch.no_grad()
    def _right(self, model: nn.Module) -> Tensor:
        return torch.cat([model(x).argmax(1) for x in self._images.split(2000)]) == self._labels


def row(network: str, data: Dataset, recipe: str) -> dict[str, Any]:
    """Compress once and measure the file."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(len(data.train_inputs), generator=generator)
    mine, held = order[HELD_OUT:], order[:HELD_OUT]
    images, labels = data.train_inputs[mine], data.train_labels[mine]
    fresh, truth = data.train_inputs[held], data.train_labels[held]
    original = teacher(network, replace(data, train_inputs=images, train_labels=labels)).eval()
    copies = [shifted(images, generator) for _ in range(COPIES)]
    first, truths = (fresh, truth) if recipe == "recovered" else (images[:GATE], labels[:GATE])
    rest = torch.arange(0 if recipe == "recovered" else GATE, len(images))
    rest = torch.cat([rest + n * len(images) for n in range(1 + COPIES)])
    rest = rest[torch.randperm(len(rest), generator=generator)]
    batches = (
        torch.cat([first, torch.cat([images, *copies])[rest]]),
        torch.cat([truths, labels.repeat(1 + COPIES)[rest]]),
    )
    samples = SAMPLES.get((network, recipe), len(batches[0]))
    holdout = torch.arange(samples) < len(first)
    shared: dict[str, Any] = {"batch_size": 2048, "samples": samples, "holdout": holdout}
    student = copy.deepcopy(original)
    started = time.monotonic()
    goal: dict[str, Any] = {"target_bytes": TARGETS[network]}
    if recipe == "post-training":
        goal = {"max_loss": POINTS.get((network, data.name), 0.5), "metric": Worse(original, fresh, truth)}
    elif CHANNELS[network]:
        de_plugin.prune(student, batches, CHANNELS[network], **NARROWING, **shared)
        student = cut(student)
        SETTLING(Problem(student, batches, teacher=original, **shared))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.de.safetensors"
        found = de_plugin.compress(
            student, batches, path, SPARSITIES[network, recipe], **goal, **shared, **options(network, recipe)
        )
        seconds = time.monotonic() - started
        state = de_plugin.load(path)
        loaded = shaped(original, state) if CHANNELS[network] else copy.deepcopy(original)
        loaded.load_state_dict(state)
        size = path.stat().st_size
    weights = [x for x in found.file.layers if x.kind == "quantized" and len(x.shape) > 1]
    survivors = sum(x.nonzero for x in weights)
    return {
        "network": network,
        "data": data.name,
        "recipe": recipe,
        "settings": settings(network, data.name, recipe),
        "seed": SEED,
        "labels": "training" if recipe == "recovered" else "validation",
        "gradient_steps": steps_of(network, recipe),
        "channels": [len(x) for name, x in loaded.named_parameters() if name.endswith("bias")],
        "sparsity": 1 - survivors / sum(x.numel() for x in original.parameters() if x.dim() > 1),
        "bits": 8 * sum(x.bytes for x in weights) / max(1, survivors),
        "bytes": size,
        "ratio": sum(4 * x.numel() for x in original.state_dict().values()) / size,
        "error_percent": 100.0 - accuracy(loaded, data.test_inputs, data.test_labels),
        "dense_error_percent": 100.0 - accuracy(original, data.test_inputs, data.test_labels),
        "held_out_error_percent": 100.0 - accuracy(loaded, fresh, truth),
        "dense_held_out_error_percent": 100.0 - accuracy(original, fresh, truth),
        "evaluations": found.quantization.evaluations + (found.pruning.evaluations if found.pruning else 0),
        "winner": found.quantization.winner,
        "seconds": seconds,
        "tried": found.to_dict()["tried"],
    }


def line(row: dict[str, Any]) -> str:
    """Return a row of the README's table."""
    network = {"lenet300": "LeNet-300-100", "lenet5": "LeNet-5", "resnet": "ResNet"}[row["network"]]
    data = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[row["data"]]
    recipe = "post-training" if not row["gradient_steps"] else f"{row['gradient_steps']:,} steps"
    cells = [
        f"{network}, {data}",
        recipe,
        f"{100 * row['sparsity']:.1f} %",
        f"{row['bits']:.1f}",
        f"{row['bytes']:,}",
        f"{row['ratio']:.{1 if row['ratio'] < 100 else 0}f}",
        f"{row['error_percent']:.2f} %",
        f"{row['dense_error_percent']:.2f} %",
        f"{row['seconds'] / 60:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure every network, data set and recipe, and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="read where it exists, and written")
    parser.add_argument("--networks", nargs="+", default=["lenet300", "lenet5"], choices=list(TARGETS))
    parser.add_argument("--data", nargs="+", default=sorted(DATA, reverse=True), choices=sorted(DATA))
    parser.add_argument(
        "--recipes", nargs="+", default=["post-training", "recovered"], choices=["post-training", "recovered"]
    )
    parser.add_argument(
        "--points", type=float, help="by how many percent a post-training file may err more, for all networks"
    )
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    if given.points is not None:
        POINTS.update(dict.fromkeys(itertools.product(given.networks, given.data), given.points))
    torch.set_num_threads(given.threads)
    document = document_of(given.json, given.threads)
    rows: list[dict[str, Any]] = document["rows"]
    for name, network, recipe in itertools.product(given.data, given.networks, given.recipes):
        if any((r["data"], r["network"], r["recipe"]) == (name, network, recipe) for r in rows):
            continue
        rows.append(row(network, DATA[name](), recipe))
        print(line(rows[-1]), flush=True)
        write(given.json, document)


def document_of(path: Path, threads: int) -> dict[str, Any]:
    """Return what the file holds, or a new document.

    Raises:
        SystemExit: its rows were measured with other versions, threads or settings, or within another error.
    """
    fresh: dict[str, Any] = {"versions": versions(), "threads": threads, "rows": []}
    old: dict[str, Any] = opened(path, fresh, ("versions", "threads"))
    for row in old["rows"]:
        if row["settings"] != settings(row["network"], row["data"], row["recipe"]):
            raise SystemExit(
                f"--json {path}: its row {row['network']}, {row['data']}, {row['recipe']} was measured with "
                "other settings of the recipe; give another file"
            )
    return old


if __name__ == "__main__":
    main()
