"""The parts of `speed.py` that are no rows: ranks, staged assessment, memory, and how the cost grows."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from memory import peak, resident
from torch import Tensor, nn

import de_plugin
from de_plugin import DirectedEvolution, Problem, Schedule, Swaps
from de_plugin.assess.candidates import Flipped, Made
from de_plugin.assess.population import Population
from de_plugin.evolve import Halving
from de_plugin.zoo import MODELS, Crepe, darknet, mnist, teacher


def _itself(*arguments: str, world: int = 1) -> list[dict[str, Any]]:
    """Run this file as one or several processes and return what each of them prints."""
    launcher = [sys.executable]
    if world > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    done = subprocess.run([*launcher, __file__, *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-2000:])
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def ranks(options: argparse.Namespace) -> dict[str, Any]:
    """Compare one process with two, one thread each: the same search of LeNet-5, the same mask."""
    del options
    one = _itself("rank")
    two = _itself("rank", world=2)
    return {
        "seconds": {"1": one[0]["seconds"], "2": max(x["seconds"] for x in two)},
        "ratio": one[0]["seconds"] / max(x["seconds"] for x in two),
        "same_mask": len({x["mask"] for x in (*one, *two)}) == 1,
    }


def _rank() -> dict[str, Any]:
    torch.set_num_threads(1)
    if dist.is_torchelastic_launched():
        dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = MODELS["lenet5"]().eval()
    importlib.import_module("torch._dynamo")  # torch loads it at the first gradient of a function
    started = time.monotonic()
    report = de_plugin.prune(
        model,
        torch.randn(2500, 1, 28, 28, generator=torch.Generator().manual_seed(0)),
        0.9,
        DirectedEvolution(generations=4, swaps=Swaps(rounds=0)),
        schedule=Schedule(1),
    )
    seconds = time.monotonic() - started
    digest = sum(int((m.flatten().nonzero()[:, 0] % 1_000_003).sum()) for m in report.masks.values())
    if dist.is_initialized():
        dist.destroy_process_group()
    return {"seconds": seconds, "mask": digest}


def staged(options: argparse.Namespace) -> dict[str, Any]:
    """Compare staged assessment with measuring every candidate on all samples: a whole search of MLPs."""
    del options
    data = mnist()
    result: dict[str, Any] = {}
    ways = {  # what staging saves pays for one generation and three rounds more
        "unstaged": DirectedEvolution(halving=Halving(1), swaps=Swaps(rounds=10, halving=Halving(1))),
        "staged": DirectedEvolution(
            generations=5, halving=Halving(4, 0.3), swaps=Swaps(rounds=13, halving=Halving(4, 0.3))
        ),
    }
    for name, criterion in ways.items():
        runs = []
        for seed in range(5):
            model = teacher("lenet300", "mnist").eval()
            report = de_plugin.prune(
                model,
                data.train_inputs,
                0.97,
                criterion,
                schedule=Schedule(4, start=0.8),
                samples=20_000,
                seed=seed,
            )
            runs.append((report.divergence, report.sample_evaluations, report.seconds))
        result[name] = {
            "divergence": [r[0] for r in runs],
            "sample_evaluations": sum(r[1] for r in runs) / len(runs),
            "seconds": sum(r[2] for r in runs) / len(runs),
        }
    result["share_of_sample_evaluations"] = (
        result["staged"]["sample_evaluations"] / result["unstaged"]["sample_evaluations"]
    )
    return result


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the peak memory of an assessment and of a search, beyond what torch itself takes, in models."""
    networks = {"crepe-full": "crepe"}
    if options.large_cfg is not None:
        networks["yolov3"] = str(options.large_cfg)
    return {
        name: {what: _itself(what, which)[0] for what in ("assessment", "search")}
        for name, which in networks.items()
    }


def _network(which: str) -> tuple[nn.Module, Tensor]:
    torch.set_num_threads(2)
    torch.manual_seed(0)
    if which == "crepe":
        return Crepe().eval(), torch.randn(8, 1024)
    return darknet(Path(which), seed=0).eval(), torch.rand(2, 3, 96, 96)


def _memory(which: str, work: Callable[[nn.Module, Tensor], dict[str, Any]]) -> dict[str, Any]:
    """Return the peak of some work, and of running the network alone, both with the model itself.

    What the code takes that does the work is there already: the same has been done with a small network.
    """
    small = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).eval()
    work(small, torch.rand(4, 1, 4, 4))
    model, inputs = _network(which)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    before = resident()
    with torch.no_grad():
        model(inputs)
    alone = peak()
    started = time.monotonic()
    found = work(model, inputs)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "model_bytes": size,
        "forward_over_model": (alone - before + size) / size,
        "peak_over_model": (peak() - before + size) / size,
        "seconds": time.monotonic() - started,
        **found,
    }


def _assessment(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Measure sets that differ in few weights, and others that differ in many."""
    problem = Problem(model, inputs, divergence="mse", batch_size=2, holdout=0)
    draw = torch.Generator().manual_seed(0)
    count = problem.units.count
    few = tuple(torch.randint(count, (256,), generator=draw).unique() for _ in range(8))
    problem.assess(Flipped(problem.kept, few), problem.search)

    def half(number: int) -> Tensor:
        draw = problem.generator(number)
        return torch.randint(2, (count,), dtype=torch.int8, generator=draw).bool()

    made = Made(half, tuple(range(4)), count)
    problem.assess(made, problem.search)
    return {"evaluations": problem.evaluations}


def _search(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    report = de_plugin.prune(
        model,
        inputs,
        0.9,
        DirectedEvolution(population=6, generations=1, samples=2, swaps=Swaps(rounds=1, samples=2)),
        schedule=Schedule(2),
        divergence="mse",
        batch_size=2,
    )
    return {"evaluations": report.evaluations}


def growth(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the seconds of one assessment against population, samples and parameters."""
    curves: dict[str, list[tuple[int, float]]] = {"population": [], "samples": [], "parameters": []}
    for count in (1, 2, 4, 8, 16, 32, 64):
        curves["population"].append((count, _cost(300, 256, count)))
    for samples in (64, 256, 1024, 4096):
        curves["samples"].append((samples, _cost(300, samples, 16)))
    for width in (75, 150, 300, 600, 1200):
        curves["parameters"].append((784 * width + width * 100 + 1000, _cost(width, 256, 16)))
    if options.plot is not None:
        _plot(curves, options.plot)
    return curves


def _cost(width: int, samples: int, count: int) -> float:
    torch.manual_seed(0)
    layers = [nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 100), nn.ReLU(), nn.Linear(100, 10)]
    problem = Problem(nn.Sequential(*layers).eval(), torch.randn(samples, 784), holdout=0, evaluate="serial")
    draw = torch.Generator().manual_seed(0)
    orders = [torch.randperm(problem.units.count, generator=draw) for _ in range(count)]
    flips = tuple(order[:512].sort().values for order in orders)
    fast, sets = Population(problem), Flipped(problem.kept, flips)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        fast(sets, problem.search)
        times.append(time.perf_counter() - started)
    return sorted(times)[2]


def _plot(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(curves), figsize=(11, 3.2), constrained_layout=True)
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        axis.loglog([x for x, _ in points], [1e3 * y for _, y in points], marker="o")
        axis.set_xlabel(name)
        axis.set_ylabel("milliseconds an assessment")
        axis.grid(True, which="both", alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:]
    works = {"assessment": _assessment, "search": _search}
    found = _rank() if kind == "rank" else _memory(rest[0], works[kind])
    os.write(1, f"{json.dumps(found)}\n".encode())  # at once: ranks share the output
