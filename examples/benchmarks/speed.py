"""How fast populations are measured, next to the serial loop on the same samples in the same run.

Rows: for every layer, candidates that differ from the student in that layer alone, as swaps draw them.
Both evaluators take turns; the ratio is that of their median times. Then: ranks, staged assessment,
peak memory, growth with population, samples and parameters, and the limit that arithmetic sets.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import speed_parts
import torch
from torch import Tensor, nn

import de_plugin
from de_plugin import Problem
from de_plugin.assess.candidates import Flipped
from de_plugin.assess.population import Population
from de_plugin.assess.recorder import record
from de_plugin.assess.serial import Serial
from de_plugin.zoo import MODELS, darknet

SPARSITY = 0.5
LARGEST = 512


def networks(cfg: Path | None, weights: Path | None) -> Iterator[tuple[str, nn.Module, Tensor, int, int]]:
    """Yield name, network, inputs, candidates and repetitions; a search takes 2,000 samples by default."""
    torch.manual_seed(0)
    digits = torch.randn(2000, 1, 28, 28)
    yield "lenet300", MODELS["lenet300"]().eval(), digits, 32, 5
    yield "lenet300-256", MODELS["lenet300"]().eval(), digits[:256], 32, 5
    yield "lenet5", MODELS["lenet5"]().eval(), digits, 32, 1
    yield "lenet5-256", MODELS["lenet5"]().eval(), digits[:256], 32, 5
    yield "resnet", MODELS["resnet"]().eval(), digits[:256], 32, 1
    if cfg is not None:
        yield "yolov3-tiny", darknet(cfg, weights).eval(), torch.rand(1, 3, 416, 416), 8, 1


def candidates(problem: Problem, layer: int, count: int) -> Flipped:
    """Return candidates that differ in 2 % of a layer's units, at most 256 exchanges."""
    part = problem.units.layers[layer]
    size = min(LARGEST, max(1, round(0.02 * part.count)))
    draw = torch.Generator().manual_seed(layer)
    return Flipped(
        problem.kept,
        tuple(
            part.start + torch.randperm(part.count, generator=draw)[:size].sort().values for _ in range(count)
        ),
    )


def paired(first: Callable[[], Any], second: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Return the median seconds of two calls that take turns."""
    times: list[tuple[float, float]] = []
    for _ in range(repeats):
        pair = []
        for call in (first, second):
            started = time.perf_counter()
            call()
            pair.append(time.perf_counter() - started)
        times.append((pair[0], pair[1]))
    return statistics.median(a for a, _ in times), statistics.median(b for _, b in times)


def matrix_rate() -> float:
    """Return the multiplications a second of a large matrix product, the best of ten."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    times = []
    for _ in range(11):
        started = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - started)
    return 1024**3 / min(times)


def rows_of(
    name: str, model: nn.Module, inputs: Tensor, count: int, repeats: int, rate: float
) -> list[dict[str, Any]]:
    """Measure every layer of a network, single weights and whole channels."""
    rows = []
    for granularity in ("weight", "channel"):
        problem = Problem(
            model, inputs, divergence="mse", granularity=granularity, holdout=0, evaluate="serial"
        )
        draw = torch.Generator().manual_seed(0)
        share = SPARSITY if granularity == "weight" else 0.1
        problem.kept = torch.rand(problem.units.count, generator=draw) > share
        serial, fast = Serial(problem), Population(problem)
        with torch.no_grad():
            run = record(
                lambda: model(inputs), {id(x.parameter): n for n, x in enumerate(problem.units.layers)}, False
            )
        for number, layer in enumerate(problem.units.layers):
            sets = candidates(problem, number, count)
            expected, found = serial(sets, problem.search), fast(sets, problem.search)
            slow, quick = paired(
                partial(serial, sets, problem.search), partial(fast, sets, problem.search), repeats
            )
            suffix = run.work_from(run.first[number] + 1)
            rows.append(
                {
                    "network": name,
                    "granularity": granularity,
                    "samples": len(inputs),
                    "candidates": count,
                    "layer": layer.name,
                    "evaluator": "population",
                    "evaluations_per_second": count / quick,
                    "serial_evaluations_per_second": count / slow,
                    "ratio_to_serial": slow / quick,
                    "suffix_limit_evaluations_per_second": rate / suffix if suffix else None,
                    "max_relative_difference": float(((found - expected) / expected).abs().max()),
                }
            )
            print(rows[-1], flush=True)
    return rows


def means(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the geometric mean ratio of each network and granularity."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        key = row["network"], row["granularity"]
        ratios = [r["ratio_to_serial"] for r in rows if (r["network"], r["granularity"]) == key]
        found.setdefault(key[0], {})[key[1]] = statistics.geometric_mean(ratios)
    return found


def main() -> None:
    """Measure and write everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--cfg", type=Path, help="yolov3-tiny.cfg")
    parser.add_argument("--weights", type=Path, help="yolov3-tiny.weights")
    parser.add_argument("--large-cfg", type=Path, help="yolov3.cfg, for the memory of 62 million weights")
    parser.add_argument("--plot", type=Path, help="write the growth of the cost to this picture")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", nargs="+", default=["rows", "ranks", "staged", "memory", "growth"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    document: dict[str, Any] = {
        "threads": options.threads,
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "de_plugin": de_plugin.__version__,
        "multiplications_per_second": matrix_rate(),
        "rows": [],
    }
    if "rows" in options.parts:
        for network in networks(options.cfg, options.weights):
            document["rows"] += rows_of(*network, document["multiplications_per_second"])
        document["geomean"] = means(document["rows"])
        print(document["geomean"], flush=True)
    for part in ("ranks", "staged", "memory", "growth"):
        if part in options.parts:
            document[part] = getattr(speed_parts, part)(options)
            print(part, document[part], flush=True)
        options.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
